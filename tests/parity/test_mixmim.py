"""MixMIM: small models of both stages, resizing, and names, sizes and fine-tuning groups of the published ones."""
import functools
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from config import load_config, scaled_config
from data.masks import draw_masks
from models import build_model, load_pretrained
from models.position import sincos_table
from models.weights.key_maps import MIXMIM_MMPRETRAIN
from optimizer import finetune_groups
from utils.seeding import rng_for

from .mae_records import load_mim, load_mim_json, mim_names, our_name, our_names, part, patches_of, wrong_gradients
from .recorded import REPOSITORY, opts_of

STRIDE, PATCH = 32, 4
FORWARD = {"atol": 1e-5, "rtol": 0}
KEYS = load_mim_json("mixmim_official_keys")
SIZES = {"base": (128, [4, 8, 16, 32]), "large": (192, [6, 12, 24, 48]), "huge": (352, [11, 22, 44, 88])}


def config_of(record, num_classes=7, **overrides):
    opts = {"MODEL.TYPE": "mixmim", "MODEL.DROP_PATH_RATE": 0.0, "DATA.IMG_SIZE": record["img_size"],
            "MODEL.MIXMIM.EMBED_DIM": record["embed_dim"], "MODEL.MIXMIM.DEPTHS": record["depths"],
            "MODEL.MIXMIM.NUM_HEADS": record["num_heads"], "MODEL.MIXMIM.WINDOW_SIZES": record["window_size"],
            "MODEL.NUM_CLASSES": num_classes}
    if "decoder_depth" in record:
        opts |= {"MODEL.METHOD": "mixmim", "DATA.MASK_SHARED": True, "DATA.MASK_RATIO": record["mask_ratio"],
                 "DATA.MASK_ROUND": "down", "MODEL.MIXMIM.DECODER_EMBED_DIM": record["decoder_dim"],
                 "MODEL.MIXMIM.DECODER_DEPTH": record["decoder_depth"],
                 "MODEL.MIXMIM.DECODER_NUM_HEADS": record["decoder_num_heads"],
                 "MODEL.MIXMIM.NORM_PIX_LOSS": record["norm_pix_loss"]}
    return load_config(opts=opts_of(opts | overrides))


def without_indices(state):
    """Position indices follow from the windows and were not recorded."""
    return {name: value for name, value in state.items() if not name.endswith("relative_position_index")}


def load(model, state):
    """All weights of a recorded state into a model."""
    assert without_indices(model.state_dict()).keys() == state.keys()
    model.load_state_dict(state, strict=False)


@functools.cache
@torch.enable_grad()
def pretrained(name, **overrides):
    """A recorded pre-training model after its backward pass; the cells with the smallest noise are hidden."""
    record, tensors = load_mim(name)
    model = build_model(config_of(record, **overrides))
    load(model, our_names(part(tensors, "state")))
    images, side = tensors["in/image"], record["img_size"] // STRIDE
    cells = (tensors["in/noise"].flatten().argsort().argsort() < record["n_masked"]).view(side, side)
    mask = cells.repeat_interleave(STRIDE // PATCH, 0).repeat_interleave(STRIDE // PATCH, 1).expand(len(images), -1, -1)
    loss = model(images, mask)
    loss.backward()
    return SimpleNamespace(record=record, tensors=tensors, model=model, images=images, mask=mask, cells=cells,
                           loss=loss.item())


@pytest.fixture(params=mim_names("mixmim_pretrain_*"))
def run(request):
    return pretrained(request.param)


# ---- pre-training -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stage", range(4))
def test_masks_of_the_stages_are_the_recorded_ones(run, stage):
    """Recorded per token; 1 = shows the partner."""
    step = 2 ** stage
    expected = run.tensors[f"out/mask_stage{stage + 1}"].bool().flatten()
    assert torch.equal(run.mask[0, ::step, ::step].flatten(), expected)


@torch.no_grad()
@pytest.mark.parametrize("stage", range(4))
def test_every_stage_matches(run, stage):
    """Recorded behind the merging of the stage."""
    outputs, layer = [], run.model.encoder.layers[stage]
    handle = getattr(layer, "downsample", layer.blocks[-1]).register_forward_hook(lambda *args: outputs.append(args[2]))
    run.model.encoder.forward_mixed(run.images, run.cells)
    handle.remove()
    torch.testing.assert_close(outputs[0].flatten(1, 2), run.tensors[f"out/after_layer{stage}"], **FORWARD)


@torch.no_grad()
def test_encoder_matches(run):
    tokens = run.model.encoder.forward_mixed(run.images, run.cells).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens, run.tensors["out/encoder"], **FORWARD)


@torch.no_grad()
@pytest.mark.parametrize(("eps", "recorded"), [(1e-5, "out/decoder_every16"), (1e-6, "out/mmpretrain_decoder_every16")])
@pytest.mark.parametrize("name", mim_names("mixmim_pretrain_*"))
def test_decoder_matches_with_the_epsilon_of_either_code(name, eps, recorded):
    run = pretrained(name, **{"MODEL.MIXMIM.DECODER_NORM_EPS": eps})
    both = torch.cat(run.model.reconstruct_both(run.images, run.mask))
    torch.testing.assert_close(patches_of(both, STRIDE)[..., ::16], run.tensors[recorded], **FORWARD)


def test_loss_matches(run):
    assert run.loss == pytest.approx(run.tensors["out/loss"].item(), abs=1e-6, rel=1e-6)


@pytest.mark.parametrize("name", mim_names("mixmim_pretrain_*"))
def test_loss_matches_that_of_mmpretrain_with_its_epsilon(name):
    run = pretrained(name, **{"MODEL.MIXMIM.DECODER_NORM_EPS": 1e-6})
    assert run.loss == pytest.approx(run.tensors["out/mmpretrain_loss"].item(), abs=1e-6, rel=1e-6)


def test_pretraining_gradients_match(run):
    assert wrong_gradients(run.model.named_parameters(), run.tensors, our_name) == {}


def test_recorded_gradients_are_those_of_all_trainable_parameters(run):
    names = {our_name(name) for prefix in ("grad", "grad_every8") for name in part(run.tensors, prefix)}
    assert {name for name, parameter in run.model.named_parameters() if parameter.requires_grad} == names


# ---- classification -----------------------------------------------------------------------------------------------

@functools.cache
@torch.enable_grad()
def classified():
    record, tensors = load_mim("mixmim_cls_b")
    model = build_model(config_of(record), is_pretrain=False)
    load(model, part(tensors, "state"))
    logits = model(tensors["in/image"])
    loss = F.cross_entropy(logits, tensors["in/label"])
    loss.backward()
    return SimpleNamespace(record=record, tensors=tensors, model=model, logits=logits.detach(), loss=loss.item())


@torch.no_grad()
def test_classifier_gives_one_pooled_feature():
    run = classified()
    features = run.model.extract_feat(run.tensors["in/image"])
    assert len(features) == 1
    torch.testing.assert_close(features[0], run.tensors["out/feature"], **FORWARD)


def test_logits_loss_and_gradients_match():
    run = classified()
    torch.testing.assert_close(run.logits, run.tensors["out/logits"], **FORWARD)
    assert run.loss == pytest.approx(run.tensors["out/loss"].item(), abs=1e-6, rel=1e-6)
    assert wrong_gradients(run.model.named_parameters(), run.tensors) == {}


# ---- another size -------------------------------------------------------------------------------------------------

@torch.no_grad()
def test_weights_move_to_another_size_and_other_windows(tmp_path):
    record, tensors = load_mim("mixmim_interp")
    torch.save({"model": part(tensors, "pretrain_state")}, tmp_path / "pretrained.pth")
    model = build_model(config_of(record["pretrain"] | record["finetune"]), is_pretrain=False)
    report = load_pretrained(model, tmp_path / "pretrained.pth")
    head = part(tensors, "ft_new")
    assert set(report.missing) == set(head) and report.unexpected == ["mask_token"]  # the decoder's, recorded without it
    resized = {name for name in part(tensors, "out") if name != "logits"}
    assert set(report.resized) == resized
    for name in resized:
        torch.testing.assert_close(model.state_dict()[name], tensors[f"out/{name}"], **FORWARD)
    model.load_state_dict(head, strict=False)
    torch.testing.assert_close(model(tensors["in/image"]), tensors["out/logits"], **FORWARD)


# ---- mmpretrain's files -------------------------------------------------------------------------------------------

def transposed(table, side):
    """A sin-cos table with rows and columns exchanged, as mmpretrain makes it."""
    return table.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)


@torch.no_grad()
@pytest.mark.parametrize("trained_there", [False, True])
def test_file_of_mmpretrain_gives_the_same_model_with_the_positions_it_was_trained_with(trained_there, run, tmp_path):
    """Names and the order within patch merging differ; its own tables are those of the official code, transposed."""
    weights = {name: value.clone() for name, value in run.model.state_dict().items()}
    side = run.record["img_size"] // STRIDE
    if trained_there:
        weights["encoder.absolute_pos_embed"] = transposed(weights["encoder.absolute_pos_embed"], side * STRIDE // PATCH)
        weights["decoder.pos_embed"] = transposed(weights["decoder.pos_embed"], side)
    theirs = MIXMIM_MMPRETRAIN.to_theirs(weights)
    assert all(name.startswith(("backbone.", "neck.")) for name in theirs)
    torch.save({"state_dict": theirs}, tmp_path / "mmpretrain.pth")
    model = build_model(config_of(run.record)).eval()
    report = load_pretrained(model, tmp_path / "mmpretrain.pth")
    assert report.source == "mmpretrain's MixMIM" and report.missing == report.unexpected == []
    expected = build_model(config_of(run.record)).eval()
    expected.load_state_dict(weights)
    assert torch.equal(model(run.images, run.mask), expected(run.images, run.mask))
    assert (abs(model(run.images, run.mask).item() - run.loss) > 1e-4) == trained_there


def test_positions_of_mmpretrain_are_ours_transposed():
    _, recorded = load_mim("sincos_pos_embed")
    theirs = transposed(sincos_table((7, 7), 32), 7)[0]
    torch.testing.assert_close(theirs, recorded["mmpretrain_grid7_dim32_nocls_float32"], atol=1e-6, rtol=0)


# ---- the published sizes ------------------------------------------------------------------------------------------

@functools.cache
def published_model(name):
    """A model of the paper, without memory."""
    stage, _, size, *img = name.split("_")
    width, heads = SIZES[size]
    record = {"img_size": 384 if img else 224, "embed_dim": width, "depths": [2, 2, 18, 2], "num_heads": heads,
              "window_size": [16, 16, 24, 12] if img else [14, 14, 14, 7]}
    overrides = {"MODEL.METHOD": "mixmim", "DATA.MASK_SHARED": True} if stage == "pretrain" else {}
    with torch.device("meta"):
        return build_model(config_of(record, 1000, **overrides), is_pretrain=stage == "pretrain")


@pytest.mark.parametrize("name", KEYS)
def test_published_model_has_the_official_names_shapes_and_totals(name):
    """Of the 18 blocks of the third stage the first is recorded."""
    model, record = published_model(name), KEYS[name]
    rename = our_name if name.startswith("pretrain") else str
    ours = {key: list(value.shape) for key, value in without_indices(model.state_dict()).items()
            if "layers.2.blocks." not in key or "layers.2.blocks.0." in key}
    assert ours == {rename(key): shape for key, shape in record["keys"].items()}
    assert sum(p.numel() for p in model.parameters()) == record["params"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == record["trainable"]


def test_finetuning_groups_match():
    model, record = published_model("classification_mixmim_base"), load_mim_json("mixmim_layer_decay_base")
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def facts(groups):
        return {(name, round(group["lr_scale"], 15), bool(group["decays"])) for group in groups for name in group["params"]}

    ours = [group | {"params": [names[id(p)] for p in group["params"]]} for group in finetune_groups(model, 0.7)]
    assert facts(ours) == facts([group | {"decays": group["weight_decay"]} for group in record["groups"]])


# ---- the published recipes ----------------------------------------------------------------------------------------

def recipe(name):
    return load_config(REPOSITORY / "configs" / "mixmim" / f"mixmim_{name}.yaml")


@pytest.mark.parametrize(("name", "epochs", "eps"), [("base__img224__600ep", 600, 1e-5), ("base__img224__300ep", 300, 1e-6)])
def test_pretraining_recipe_is_that_of_the_code_it_names(name, epochs, eps):
    """600 epochs are the official code's, 300 mmpretrain's; 24 of 49 cells are hidden, the same in all of a batch."""
    config = recipe(f"pretrain__mixmim_{name}")
    train, rates = config.TRAIN, scaled_config(config, 2048 // config.DATA.BATCH_SIZE).TRAIN
    assert (train.EPOCHS, train.WARMUP_EPOCHS, train.WEIGHT_DECAY, train.OPTIMIZER.BETAS) == (epochs, 40, 0.05, [0.9, 0.95])
    assert (rates.BASE_LR, rates.MIN_LR) == (pytest.approx(1.2e-3), 0) and not train.CLIP_GRAD
    assert (config.DATA.CROP, config.DATA.CROP_SCALE, config.DATA.CROP_INTERPOLATION) == ("rrc", [0.2, 1.0], "bicubic")
    assert config.MODEL.MIXMIM.NORM_PIX_LOSS and config.MODEL.MIXMIM.DECODER_NORM_EPS == eps
    masks = draw_masks(config, 3, rng_for(0))
    assert masks.shape == (3, 56, 56) and masks.sum(dim=(1, 2)).tolist() == [24 * 64] * 3
    assert torch.equal(masks, masks[:1].expand_as(masks))


@pytest.mark.parametrize("name", ["base__img224__600ep", "base__img224__300ep"])
def test_finetuning_recipe_is_the_official_one(name):
    config = recipe(f"finetune__mixmim_{name}")
    train, rates, aug = config.TRAIN, scaled_config(config, 1024 // config.DATA.BATCH_SIZE).TRAIN, config.AUG
    assert (train.EPOCHS, train.WARMUP_EPOCHS, train.WEIGHT_DECAY, train.LAYER_DECAY) == (100, 5, 0.05, 0.7)
    assert (rates.BASE_LR, rates.MIN_LR) == (pytest.approx(2e-3), pytest.approx(1e-6)) and not train.CLIP_GRAD
    assert train.OPTIMIZER.BETAS == [0.9, 0.999] and config.MODEL.DROP_PATH_RATE == 0.1
    assert (aug.REPROB, aug.MIXUP, aug.CUTMIX, config.MODEL.LABEL_SMOOTHING) == (0.25, 0.8, 1.0, 0.1)
