"""The models that tools/benchmark.py peers and traffic measure beside ours have our loss, with our weights."""
import pytest
import torch

from tools.benchmarks.peer_models import peers_of

from ..contracts.tiny import build, make_config, make_images, make_mask


@torch.no_grad()
@pytest.mark.parametrize(("encoder", "variant"), [("swin", "plain"), ("vit", "plain")])
def test_peer_has_the_loss_of_our_model(encoder, variant):
    config = make_config(encoder, variant)
    ours = build(config, is_pretrain=True)
    images, mask = make_images(config), make_mask(config)
    peers = peers_of(config, ours.state_dict())
    assert "timm, plain SimMIM" in peers
    for peer in peers.values():
        assert peer.eval()(images, mask).item() == pytest.approx(ours(images, mask).item(), rel=1e-5)
