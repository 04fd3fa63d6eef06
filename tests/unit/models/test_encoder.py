"""What all encoders inherit: recomputation of activations."""
import pytest
import torch

from ..helpers import TINY, perturb, random_images, random_mask, tiny_model

DROP = {"MODEL.DROP_PATH_RATE": 0.5, "MODEL.DROP_RATE": 0.2}


def blocks_of(encoder):
    return [module for module in encoder.modules() if hasattr(module, "attn") and hasattr(module, "mlp")]


def trained_once(encoder, use_checkpoint):
    """(loss, gradients, how often the first block ran), with drop path and dropout on."""
    model = perturb(tiny_model(encoder, DROP | {"TRAIN.USE_CHECKPOINT": use_checkpoint})).train()
    calls = []
    blocks_of(model.encoder)[0].register_forward_pre_hook(lambda *_: calls.append(1))
    torch.manual_seed(7)
    loss = model(random_images(), random_mask(encoder))
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}, len(calls)


@pytest.mark.parametrize("encoder", TINY)
def test_checkpointing_recomputes_blocks_and_changes_neither_loss_nor_gradients(encoder):
    loss, gradients, calls = trained_once(encoder, use_checkpoint=False)
    loss_again, gradients_again, calls_again = trained_once(encoder, use_checkpoint=True)
    assert (calls, calls_again) == (1, 2)
    assert torch.equal(loss_again, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_again[name], gradient, atol=1e-7, rtol=1e-5, msg=name)


@pytest.mark.parametrize("encoder", TINY)
def test_drop_path_changes_the_loss_in_training_only(encoder):
    """The comparison above would be empty if nothing were dropped."""
    model = perturb(tiny_model(encoder, DROP))
    images, mask = random_images(), random_mask(encoder)
    with torch.no_grad():
        model.eval()
        assert torch.equal(model(images, mask), model(images, mask))
        model.train()
        assert not torch.equal(model(images, mask), model(images, mask))


@pytest.mark.parametrize("encoder", TINY)
def test_checkpointing_is_off_where_no_gradient_is_needed(encoder):
    model = tiny_model(encoder, {"TRAIN.USE_CHECKPOINT": True}).eval()
    with torch.no_grad():
        assert torch.equal(model(random_images())[0], tiny_model(encoder).eval()(random_images())[0])
