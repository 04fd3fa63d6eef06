"""The models of timm, torchvision and transformers, run here, beside ours with the same weights, in both directions."""
from types import SimpleNamespace

import pytest
import torch

from config import load_config
from models import build_model, load_pretrained
from models.weights.layouts import read_layout, write_layout
from utils.checkpoint import save_checkpoint

from .recorded import import_transformers, opts_of

SIZE, CLASSES = (64, 64), 5
COMMON = {"DATA.IMG_SIZE": list(SIZE), "MODEL.NUM_CLASSES": CLASSES, "MODEL.DROP_PATH_RATE": 0.0}
STAGES = {"EMBED_DIM": 8, "DEPTHS": [2, 1, 2, 1], "NUM_HEADS": [1, 2, 2, 4], "WINDOW_SIZE": 2}
SWIN = COMMON | {"MODEL.TYPE": "swin"} | {f"MODEL.SWIN.{key}": value for key, value in STAGES.items()}
SWINV2 = COMMON | {"MODEL.TYPE": "swinv2", "DATA.MASK_PATCH_SIZE": 8} | {
    f"MODEL.SWINV2.{key}": value for key, value in (STAGES | {"DEPTHS": [2, 2], "NUM_HEADS": [1, 2], "WINDOW_SIZE": 4}).items()}
VIT = COMMON | {"MODEL.TYPE": "vit", "MODEL.VIT.PATCH_SIZE": 16, "MODEL.VIT.EMBED_DIM": 16, "MODEL.VIT.DEPTH": 2,
                "MODEL.VIT.NUM_HEADS": 2}
PER_BLOCK = VIT | {"MODEL.VIT.USE_SHARED_RPB": False, "MODEL.VIT.USE_RPB": True, "MODEL.VIT.USE_MEAN_POOLING": True}
PLAIN = VIT | {"MODEL.VIT.USE_SHARED_RPB": False, "MODEL.VIT.USE_APE": True, "MODEL.VIT.INIT_VALUES": None}
MAE_VIT = PLAIN | {"MODEL.VIT.USE_APE": False, "MODEL.VIT.USE_SINCOS_APE": True, "MODEL.VIT.K_BIAS": True}
MAE = MAE_VIT | {"MODEL.METHOD": "mae", "MODEL.MAE.DECODER_EMBED_DIM": 16, "MODEL.MAE.DECODER_DEPTH": 1,
                 "MODEL.MAE.DECODER_NUM_HEADS": 2}


def perturb(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.1 if parameter.ndim > 1 else 0.3
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def ours(settings, is_pretrain, seed=1):
    torch.manual_seed(seed)
    return perturb(build_model(load_config(opts=opts_of(settings)), is_pretrain), seed)


# ---- the other models ---------------------------------------------------------------------------------------------

def timm_swin(classes):
    from timm.models.swin_transformer import SwinTransformer
    return SwinTransformer(img_size=SIZE, embed_dim=8, depths=(2, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=2,
                           num_classes=classes, always_partition=False)


def timm_swinv2(classes):
    from timm.models.swin_transformer_v2 import SwinTransformerV2
    return SwinTransformerV2(img_size=SIZE, embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=4, num_classes=classes)


def timm_beit(classes, **settings):
    from timm.models.beit import Beit
    return Beit(img_size=SIZE, patch_size=16, embed_dim=16, depth=2, num_heads=2, num_classes=classes,
                **{"use_abs_pos_emb": False, "init_values": 0.1} | settings)


def timm_vit(classes, pool):
    from timm.models.vision_transformer import VisionTransformer
    return VisionTransformer(img_size=SIZE, patch_size=16, embed_dim=16, depth=2, num_heads=2, num_classes=classes,
                             global_pool=pool)


def torchvision_swin(classes, **settings):
    from torchvision.models import SwinTransformer
    stages = {"depths": [2, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": [2, 2], **settings}
    model = SwinTransformer(patch_size=[4, 4], embed_dim=8, stochastic_depth_prob=0.0, num_classes=classes or 1, **stages)
    model.head = model.head if classes else torch.nn.Identity()
    return model


def torchvision_swinv2(classes):
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
    return torchvision_swin(classes, depths=[2, 2], num_heads=[1, 2], window_size=[4, 4], block=SwinTransformerBlockV2,
                            downsample_layer=PatchMergingV2)


def torchvision_vit(classes):
    from torchvision.models import VisionTransformer
    model = VisionTransformer(image_size=SIZE[0], patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=64,
                              num_classes=classes or 1)
    model.heads = model.heads if classes else torch.nn.Identity()
    return model


def hf(name, config, settings, **more):
    transformers = import_transformers()
    config = getattr(transformers, config)(image_size=SIZE[0], num_labels=CLASSES, **settings)
    return getattr(transformers, name)(config, **more)


def hf_swin(name):
    return hf(name, "SwinConfig", {"patch_size": 4, "embed_dim": 8, "depths": [2, 1, 2, 1], "num_heads": [1, 2, 2, 4],
                                   "window_size": 2, "encoder_stride": 32, "drop_path_rate": 0.0})


def hf_swinv2(name):
    return hf(name, "Swinv2Config", {"patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4,
                                     "encoder_stride": 8, "drop_path_rate": 0.0})


VIT_CONFIG = {"patch_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
              "encoder_stride": 16, "layer_norm_eps": 1e-6}


def hf_beit(name, **settings):
    model = hf(name, "BeitConfig", VIT_CONFIG | {"layer_scale_init_value": 0.1, "drop_path_rate": 0.0} | settings,
               **({"add_pooling_layer": False} if name == "BeitModel" else {}))
    if hasattr(model, "beit"):
        model.beit.pooler.layernorm.eps = 1e-6  # has 1e-5 or 1e-12 by version, whatever the config says
    return model


def hf_vit(name):
    return hf(name, "ViTConfig", VIT_CONFIG)


# ---- what they compute --------------------------------------------------------------------------------------------

def visible(model, images):
    """The encoder's tokens of images of which nothing is hidden: (B, h, w, C)."""
    return model.encoder(images).permute(0, 2, 3, 1)


def logits(model, images):
    return model(images)


def timm_tokens(model, images):
    return model.forward_features(images)


def timm_patches(model, images):
    return model.forward_features(images)[:, 1:].unflatten(1, (4, 4))


def torchvision_map(model, images):
    return model.norm(model.features(images))


def torchvision_patches(model, images):
    tokens = torch.cat([model.class_token.expand(len(images), -1, -1), model._process_input(images)], dim=1)
    return model.encoder(tokens)[:, 1:].unflatten(1, (4, 4))


def hf_logits(model, images):
    return model(images).logits


def hf_patches(model, images):
    return model(images).last_hidden_state[:, 1:].unflatten(1, (4, 4))


def mask_of(grid):
    return torch.rand(2, *grid, generator=torch.Generator().manual_seed(9)) < 0.5


def reconstruction(grid):
    return lambda model, images: torch.cat([model.reconstruct(images, mask_of(grid)).flatten(),
                                            model(images, mask_of(grid)).view(1)])


def hf_reconstruction(grid):
    def run(model, images):
        output = model(images, bool_masked_pos=mask_of(grid).flatten(1))
        return torch.cat([output.reconstruction.flatten(), output.loss.view(1)])
    return run


SHARED = {"use_shared_relative_position_bias": True, "use_mask_token": True, "use_mean_pooling": False}
CASES = {  # settings of ours, whether it is pre-trained, what is compared, layout, the other model, what is compared there
    "swin to timm": (SWIN, True, visible, "timm", lambda: timm_swin(0), timm_tokens),
    "swin classifier to timm": (SWIN, False, logits, "timm", lambda: timm_swin(CLASSES), logits),
    "swinv2 to timm": (SWINV2, True, visible, "timm", lambda: timm_swinv2(0), timm_tokens),
    "swinv2 classifier to timm": (SWINV2, False, logits, "timm", lambda: timm_swinv2(CLASSES), logits),
    "vit to timm": (VIT, True, visible, "timm", lambda: timm_beit(0, use_shared_rel_pos_bias=True, global_pool="token"),
                    timm_patches),
    "vit classifier to timm": (PER_BLOCK, False, logits, "timm", lambda: timm_beit(CLASSES, use_rel_pos_bias=True), logits),
    "plain vit to timm": (PLAIN, True, visible, "timm",
                          lambda: timm_beit(0, use_abs_pos_emb=True, init_values=None, global_pool="token"), timm_patches),
    "mae to timm": (MAE, True, visible, "timm", lambda: timm_vit(0, "token"), timm_patches),
    "mae classifier to timm": (MAE_VIT | {"MODEL.VIT.USE_MEAN_POOLING": True}, False, logits, "timm",
                               lambda: timm_vit(CLASSES, "avg"), logits),
    "swin to torchvision": (SWIN, True, visible, "torchvision", lambda: torchvision_swin(0), torchvision_map),
    "swin classifier to torchvision": (SWIN, False, logits, "torchvision", lambda: torchvision_swin(CLASSES), logits),
    "swinv2 to torchvision": (SWINV2, True, visible, "torchvision", lambda: torchvision_swinv2(0), torchvision_map),
    "swinv2 classifier to torchvision": (SWINV2, False, logits, "torchvision", lambda: torchvision_swinv2(CLASSES), logits),
    "mae to torchvision": (MAE, True, visible, "torchvision", lambda: torchvision_vit(0), torchvision_patches),
    "vit classifier to torchvision": (MAE_VIT, False, logits, "torchvision", lambda: torchvision_vit(CLASSES), logits),
    "swin to transformers": (SWIN, True, reconstruction((16, 16)), "transformers",
                             lambda: hf_swin("SwinForMaskedImageModeling"), hf_reconstruction((16, 16))),
    "swin classifier to transformers": (SWIN, False, logits, "transformers", lambda: hf_swin("SwinForImageClassification"),
                                        hf_logits),
    "swinv2 to transformers": (SWINV2, True, reconstruction((16, 16)), "transformers",
                               lambda: hf_swinv2("Swinv2ForMaskedImageModeling"), hf_reconstruction((16, 16))),
    "swinv2 classifier to transformers": (SWINV2, False, logits, "transformers",
                                          lambda: hf_swinv2("Swinv2ForImageClassification"), hf_logits),
    "vit to transformers": (VIT, True, visible, "transformers", lambda: hf_beit("BeitModel", **SHARED), hf_patches),
    "vit classifier to transformers": (PER_BLOCK, False, logits, "transformers", lambda: hf_beit(
        "BeitForImageClassification", use_relative_position_bias=True), hf_logits),
    "plain vit to transformers": (PLAIN, True, reconstruction((4, 4)), "transformers",
                                  lambda: hf_vit("ViTForMaskedImageModeling"), hf_reconstruction((4, 4))),
    "mae classifier to transformers": (MAE_VIT, False, logits, "transformers", lambda: hf_vit("ViTForImageClassification"),
                                       hf_logits),
}


@pytest.fixture(params=CASES)
def case(request):
    settings, is_pretrain, run, layout, other, run_other = CASES[request.param]
    return SimpleNamespace(name=request.param, model=lambda seed=1: ours(settings, is_pretrain, seed), run=run, layout=layout,
                           other=lambda: perturb(other(), 5), run_other=run_other,
                           images=torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(3)))


def assert_close(case, actual, expected):
    difference = (actual - expected).abs().max().item()
    print(f"{case.name}: largest difference {difference:.1e} of values up to {expected.abs().max().item():.1f}")
    assert actual.shape == expected.shape and difference <= 1e-5, f"{case.name}: {difference}"


@torch.no_grad()
def test_other_model_computes_the_same_with_our_weights(case):
    model, other = case.model(), case.other()
    weights, _, _ = write_layout(read_layout(model.state_dict(), case.name)[0], case.layout)
    missing, unexpected = other.load_state_dict(weights, strict=False)
    assert unexpected == [] and [name for name in missing if not name.endswith("position_index")] == []  # stored by older timm
    assert_close(case, case.run_other(other, case.images), case.run(model, case.images))


@torch.no_grad()
def test_our_model_computes_the_same_with_its_weights(case, tmp_path):
    model, other = case.model(seed=2), case.other()
    save_checkpoint(tmp_path / "theirs.safetensors", other.state_dict())
    report = load_pretrained(model, tmp_path / "theirs.safetensors")
    assert report.unexpected == [] and {name.split(".")[0] for name in report.missing} <= {"mask_token", "decoder"}
    assert_close(case, case.run(model, case.images), case.run_other(other, case.images))
