"""Files laid out as the released ones, of tiny models: weights, optimizer and the pickled config node beside them."""
import pytest
import torch
from torch.nn import functional as F
from yacs.config import CfgNode

from models import load_pretrained
from utils.checkpoint import load_checkpoint, load_weights

from ..helpers import TINY, perturb, random_images, random_mask, state_of, tiny_config, tiny_model

HEAD = {"head.weight", "head.bias"}


def plain(node):
    return {key: plain(value) if isinstance(value, dict) else value for key, value in node.items()}


def official_file(path, model, encoder):
    """What `save_checkpoint` of the SimMIM and Swin repositories writes; the node is pickled as it is, frozen."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    config = CfgNode(plain(tiny_config(encoder)))
    config.freeze()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                "lr_scheduler": {"base_values": [1e-3], "t_in_epochs": False, "_initial_param_group_field": "initial_lr"},
                "scaler": {"scale": 65536.0, "_growth_tracker": 0}, "max_accuracy": 71.5, "epoch": 99, "config": config}, path)
    return path


def assert_equal(one, other, names):
    assert names
    assert [name for name in names if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("encoder", TINY)
def test_node_beside_the_weights_is_read_as_plain_data(encoder, tmp_path):
    content = load_checkpoint(official_file(tmp_path / "a.pth", tiny_model(encoder), encoder))
    assert content["config"]["MODEL"]["TYPE"] == encoder and content["epoch"] == 99
    assert not isinstance(content["config"], CfgNode) and not isinstance(content["config"]["MODEL"], CfgNode)


@pytest.mark.parametrize("encoder", TINY)
def test_released_pretraining_file_starts_a_classifier_that_trains(encoder, tmp_path):
    source = perturb(tiny_model(encoder))
    model = tiny_model(encoder, is_pretrain=False, seed=9)
    report = load_pretrained(model, official_file(tmp_path / "a.pth", source, encoder))
    assert set(report.missing) == HEAD and report.unexpected == ["mask_token"] and report.source == "pre-training model"
    images, labels = random_images(), torch.tensor([0, 1, 2])
    assert torch.equal(model.eval().forward_map(images), source.eval().encoder(images))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


@pytest.mark.parametrize("encoder", TINY)
def test_released_pretraining_file_gives_its_loss_again(encoder, tmp_path):
    source, model = perturb(tiny_model(encoder)).eval(), tiny_model(encoder, seed=9).eval()
    report = load_pretrained(model, official_file(tmp_path / "a.pth", source, encoder))
    assert report.missing == report.unexpected == []
    images, mask = random_images(), random_mask(encoder)
    assert torch.equal(model(images, mask), source(images, mask))


@pytest.mark.parametrize("encoder", TINY)
@pytest.mark.parametrize("way", ["--resume", "--pretrained"])
def test_released_finetuned_file_gives_its_logits_again(encoder, way, tmp_path):
    source = perturb(tiny_model(encoder, is_pretrain=False)).eval()
    model = tiny_model(encoder, is_pretrain=False, seed=9).eval()
    path = official_file(tmp_path / "a.pth", source, encoder)
    if way == "--resume":
        load_weights(model, load_checkpoint(path), path)
    else:
        assert load_pretrained(model, path).missing == []
    assert torch.equal(model(random_images()), source(random_images()))


@pytest.mark.parametrize("way", ["--resume", "--pretrained"])
def test_finetuned_file_with_the_early_names_of_swinv2_gives_its_logits_again(way, tmp_path):
    source = perturb(tiny_model("swinv2", is_pretrain=False)).eval()
    model = tiny_model("swinv2", is_pretrain=False, seed=9).eval()
    early = {name.replace("cpb_mlp", "rpe_mlp"): value for name, value in source.state_dict().items()}
    torch.save({"model": early}, tmp_path / "a.pth")
    if way == "--resume":
        load_weights(model, load_checkpoint(tmp_path / "a.pth"), "a.pth")
    else:
        assert load_pretrained(model, tmp_path / "a.pth").missing == []
    assert torch.equal(model(random_images()), source(random_images()))


@pytest.mark.parametrize("encoder", ["swin", "swinv2"])
@pytest.mark.parametrize("classes", [1000, 21841])
def test_supervised_file_gives_all_but_its_head(encoder, classes, tmp_path):
    source = perturb(tiny_model(encoder, {"MODEL.NUM_CLASSES": classes}, is_pretrain=False))
    torch.save({"model": source.state_dict()}, tmp_path / "a.pth")
    model = tiny_model(encoder, is_pretrain=False, seed=9)
    before = state_of(model)
    report = load_pretrained(model, tmp_path / "a.pth")
    assert_equal(model.state_dict(), source.state_dict(), {name for name, _ in model.named_parameters()} - HEAD)
    assert_equal(model.state_dict(), before, HEAD)
    assert set(report.missing) == set(report.unexpected) == HEAD
    assert f"the head of the file is for {classes} classes, not 5: left as initialised" in str(report)


@pytest.mark.parametrize("encoder", TINY)
@pytest.mark.parametrize("size", [[64, 64], [64, 128]])
def test_released_file_of_another_image_size_starts_a_classifier(encoder, size, tmp_path):
    """Tables follow: for Swin those of windows that the map was too small for, for ViT all."""
    source = perturb(tiny_model(encoder, {"DATA.IMG_SIZE": [32, 32]} | wide_windows(encoder)))
    model = tiny_model(encoder, {"DATA.IMG_SIZE": size} | wide_windows(encoder), is_pretrain=False)
    report = load_pretrained(model, official_file(tmp_path / "a.pth", source, encoder))
    tables = {name for name, _ in model.named_parameters() if name.endswith("relative_position_bias_table")}
    assert set(report.resized) == tables and bool(tables) == (encoder != "swinv2")
    assert model(random_images(height=size[0], width=size[1])).isfinite().all()


def wide_windows(encoder):
    return {} if encoder == "vit" else {f"MODEL.{encoder.upper()}.WINDOW_SIZE": 16}
