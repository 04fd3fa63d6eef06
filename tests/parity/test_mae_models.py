"""MAE's published models: names and sizes; classifiers of its encoder; position tables and their resizing."""
import functools

import pytest
import torch
from torch.nn import functional as F

from config import load_config
from models import build_model, load_pretrained
from models.position import resize_position_embedding, sincos_table
from models.weights.key_maps import MAE_TRANSFORMERS

from .mae_records import (
    MAE_VIT,
    SIZES,
    load_mim,
    load_mim_json,
    mim_names,
    our_name,
    our_names,
    part,
    to_transformers,
    transformers_rules,
    vit_opts,
    wrong_gradients,
)
from .recorded import opts_of

KEYS = load_mim_json("mae_model_keys")
PRETRAIN = {name: size for name in KEYS for size in SIZES if name.startswith(f"mae_vit_{size}_")}
FINETUNE = {name: size for name in KEYS for size in SIZES if name.startswith(f"vit_{size}_") and "finetune" in name}
FORWARD = {"atol": 1e-5, "rtol": 0}


# ---- names and sizes ----------------------------------------------------------------------------------------------

@functools.cache
def published_model(name):
    """A model of the paper, without memory."""
    width, depth, heads, patch = SIZES[(PRETRAIN | FINETUNE)[name]]
    opts = MAE_VIT | {
        "MODEL.METHOD": "mae", "DATA.IMG_SIZE": 224, "DATA.MASK_PATCH_SIZE": patch, "MODEL.VIT.PATCH_SIZE": patch,
        "MODEL.VIT.EMBED_DIM": width, "MODEL.VIT.DEPTH": depth, "MODEL.VIT.NUM_HEADS": heads, "MODEL.NUM_CLASSES": 1000,
        "MODEL.VIT.USE_MEAN_POOLING": "globalpool" in name}
    with torch.device("meta"):
        return build_model(load_config(opts=opts_of(opts)), is_pretrain=name in PRETRAIN)


def shapes_of(model):
    return {name: list(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", PRETRAIN)
def test_pretraining_model_has_the_official_names_and_shapes(name):
    assert shapes_of(published_model(name)) == our_names(KEYS[name]["keys"])


@pytest.mark.parametrize("name", FINETUNE)
def test_classifier_has_the_official_names_and_shapes(name):
    assert shapes_of(published_model(name)) == KEYS[name]["keys"]


@pytest.mark.parametrize("name", FINETUNE)
def test_parameters_of_a_classifier_come_in_the_official_order(name):
    """Optimizer states are stored by position."""
    assert list(shapes_of(published_model(name))) == list(KEYS[name]["keys"])


@pytest.mark.parametrize("name", PRETRAIN | FINETUNE)
def test_number_of_parameters_is_the_official_one(name):
    assert sum(parameter.numel() for parameter in published_model(name).parameters()) == KEYS[name]["params"]


@pytest.mark.parametrize("name", PRETRAIN)
def test_number_of_trainable_parameters_is_the_official_one(name):
    """All but the two position tables."""
    parameters = published_model(name).parameters()
    assert sum(parameter.numel() for parameter in parameters if parameter.requires_grad) == KEYS[name]["trainable"]


@pytest.mark.parametrize("name", FINETUNE)
def test_every_parameter_of_a_classifier_is_trained(name):
    assert all(parameter.requires_grad for parameter in published_model(name).parameters())


@pytest.mark.parametrize("direction", ["to theirs", "to ours"])
def test_names_of_transformers_are_the_recorded_ones(direction):
    record, tensors = load_mim("mae_pretrain_a")
    official = part(tensors, "state")
    theirs = to_transformers(official, transformers_rules(record["depth"], record["decoder_depth"]))
    ours = our_names(official)
    actual, expected = ((MAE_TRANSFORMERS.to_theirs(ours), theirs) if direction == "to theirs" else
                        (MAE_TRANSFORMERS.to_ours(theirs), ours))
    assert set(actual) == set(expected)
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


# ---- classifiers --------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module", params=mim_names("mae_ft_*"))
def classifier(request):
    """(model after its backward pass, loss, logits, recorded tensors)."""
    record, tensors = load_mim(request.param)
    model = build_model(load_config(opts=opts_of(vit_opts(record))), is_pretrain=False).train()
    model.load_state_dict(part(tensors, "state"), strict=True)
    logits = model(tensors["in/image"])
    loss = F.cross_entropy(logits, tensors["in/label"])
    loss.backward()
    return model, loss, logits, tensors


def test_logits_and_loss_of_a_classifier_match(classifier):
    _, loss, logits, tensors = classifier
    torch.testing.assert_close(logits, tensors["out/logits"], **FORWARD)
    assert loss.item() == pytest.approx(tensors["out/loss"].item(), abs=1e-6, rel=1e-6)


def test_pooled_feature_of_a_classifier_matches(classifier):
    model, _, _, tensors = classifier
    with torch.no_grad():
        torch.testing.assert_close(model.forward_pooled(tensors["in/image"]), tensors["out/feature"], **FORWARD)


def test_gradients_of_a_classifier_match(classifier):
    """Also of the position table, which is trained here."""
    model, _, _, tensors = classifier
    assert wrong_gradients(model.named_parameters(), tensors) == {}
    names = {name for prefix in ("grad", "grad_every8") for name in part(tensors, prefix)}
    assert names == {name for name, parameter in model.named_parameters() if parameter.grad is not None}


# ---- position tables ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", [name for name in load_mim("sincos_pos_embed")[1] if name.startswith("mae_")])
def test_sincos_table_matches(name):
    """mae_grid<side>_dim<channels>_<cls, with a row of zeros in front, or nocls>_<dtype of the record>"""
    expected = load_mim("sincos_pos_embed")[1][name]
    _, grid, dim, kind, _ = name.split("_")
    side, dim = int(grid.removeprefix("grid")), int(dim.removeprefix("dim"))
    table = sincos_table((side, side), dim, num_extra=int(kind == "cls"))
    torch.testing.assert_close(table.squeeze(0).double(), expected.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", ["14to10", "14to16", "14to24", "7to14"])
def test_resized_position_table_matches(case):
    _, tensors = load_mim("mae_posembed_interp")
    source, target = (int(side) for side in case.split("to"))
    resized = resize_position_embedding(tensors[f"interp/{case}/in"], (source, source), (target, target), num_extra=1)
    torch.testing.assert_close(resized, tensors[f"interp/{case}/out"], atol=2e-6, rtol=0)  # 1e-6 with the torch of the record


@pytest.fixture(params=["official names", "our names"])
def moved(request, tmp_path):
    """(classifier at another resolution with the weights of a pre-training file, Report, recorded tensors)."""
    record, tensors = load_mim("mae_posembed_interp")
    model = build_model(load_config(opts=opts_of(vit_opts(record, "dst"))), is_pretrain=False).eval()
    state = part(tensors, "pretrain_state")
    torch.save({"model": our_names(state) if request.param == "our names" else state}, tmp_path / "mae.pth")
    report = load_pretrained(model, tmp_path / "mae.pth")
    return model, report, tensors


def test_pretrained_position_table_is_resized_to_the_recorded_one(moved):
    model, report, tensors = moved
    torch.testing.assert_close(model.pos_embed.detach(), tensors["out/pos_embed"], atol=1e-6, rtol=0)
    assert report.resized == ["pos_embed"]


def test_pretrained_file_lacks_the_recorded_parameters_only(moved):
    _, report, tensors = moved
    assert set(report.missing) == set(part(tensors, "ft_new"))
    assert {name for name in map(our_name, part(tensors, "pretrain_state"))
            if name.startswith("encoder.")} >= {f"encoder.{name}" for name in report.matched}


def test_classifier_with_pretrained_weights_gives_the_recorded_logits(moved):
    model, _, tensors = moved
    model.load_state_dict(part(tensors, "ft_new"), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(model(tensors["in/image"]), tensors["out/logits"], **FORWARD)
