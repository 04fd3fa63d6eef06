"""The linear probe of MAE against recorded numbers: optimizer, head, crop, names."""
import pytest
import torch
from torch.nn import functional as F

from config import load_config
from data.transforms import SingleDrawCrop, crop_size
from models.probe import SharedBatchNorm, build_probe
from optimizer import LARS

from .mae_records import MAE_VIT, SIZES, load_mim, load_mim_json, part
from .recorded import opts_of

BOXES = load_mim_json("mae_linprobe_crop_boxes")


@pytest.mark.parametrize("name", ["lars_linprobe_trace", "lars_wd_zero_init"])
def test_head_and_optimizer_follow_the_official_trace(name):
    settings, recorded = load_mim(name)
    classes, width = recorded["init/weight"].shape
    head = torch.nn.Sequential(SharedBatchNorm(width), torch.nn.Linear(width, classes))
    head[1].load_state_dict(part(recorded, "init"))
    optimizer = LARS(head.parameters(), lr=settings["lr"], weight_decay=settings["weight_decay"],
                     momentum=settings["momentum"], trust_coefficient=settings["trust_coefficient"])
    for number in range(settings["steps"]):
        then = part(recorded, f"step{number}")
        logits = head(then["x"])
        loss = F.cross_entropy(logits, then["y"].long())
        optimizer.zero_grad()
        loss.backward()
        gradients = {"grad_weight": head[1].weight.grad.clone(), "grad_bias": head[1].bias.grad.clone()}
        optimizer.step()
        now = {"logits": logits, "loss": loss, **gradients, "weight_after": head[1].weight, "bias_after": head[1].bias,
               "mu_weight": optimizer.state[head[1].weight]["mu"], "mu_bias": optimizer.state[head[1].bias]["mu"],
               "running_mean": head[0].running_mean, "running_var": head[0].running_var}
        assert set(then) == {"x", "y", *now}
        for key, value in now.items():
            torch.testing.assert_close(value.detach(), then[key], atol=1e-6, rtol=1e-5,
                                       msg=lambda text, key=key: f"{key}: {text}")
    then = part(recorded, "eval")
    torch.testing.assert_close(head.eval()(then["x"]).detach(), then["logits"], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("box", BOXES, ids=range(len(BOXES)))
def test_crop_has_the_official_size(box):
    size = crop_size(box["height"], box["width"], box["drawn_area_fraction"], box["drawn_log_ratio"])
    assert size == (box["crop_h"], box["crop_w"])
    assert (box["height"] - size[0], box["width"] - size[1]) == (box["top_max"], box["left_max"])


@pytest.mark.parametrize("size", [(500, 375), (37, 200)])
def test_crop_draws_as_the_official_one(size):
    """The numbers come from one generator in this order: area, shape, top, left."""
    from PIL import Image
    picture, ratio = Image.new("RGB", size), (3 / 4, 4 / 3)
    for seed in range(20):
        torch.manual_seed(seed)
        found = SingleDrawCrop.get_params(picture, (0.08, 1.0), ratio)
        torch.manual_seed(seed)
        share = torch.empty(1).uniform_(0.08, 1.0).item()
        log_ratio = torch.empty(1).uniform_(*torch.log(torch.tensor(ratio)))
        rows, columns = crop_size(size[1], size[0], share, log_ratio.item())
        top = torch.randint(0, size[1] - rows + 1, size=(1,)).item()
        assert found == (top, torch.randint(0, size[0] - columns + 1, size=(1,)).item(), rows, columns)


@pytest.mark.parametrize("size", SIZES)
def test_names_shapes_and_counts_are_official(size):
    width, depth, heads, patch = SIZES[size]
    config = load_config(opts=opts_of({
        **MAE_VIT, "MODEL.VIT.EMBED_DIM": width, "MODEL.VIT.DEPTH": depth, "MODEL.VIT.NUM_HEADS": heads,
        "MODEL.VIT.PATCH_SIZE": patch, "PROBE.FEATURE": "cls"}))
    recorded = load_mim_json("mae_model_keys")[f"vit_{size}_patch{patch}_linprobe"]
    with torch.device("meta"):
        probe = build_probe(config, 1000)
    assert {name: list(value.shape) for name, value in probe.state_dict().items()} == recorded["keys"]
    assert sum(p.numel() for p in probe.parameters()) == recorded["params"]
    assert sum(p.numel() for p in probe.parameters() if p.requires_grad) == recorded["trainable"]
