"""What methods share."""
import torch

from ..helpers import random_images, random_mask, tiny_model


@torch.no_grad()
def test_pictures_hide_and_paste_exactly_the_hidden_pixels():
    model = tiny_model("swin", is_pretrain=True)
    images, mask = random_images(), random_mask("swin")
    pictures = model.pictures(images, mask)
    patch = model.encoder.patch_size
    hidden = mask.bool().repeat_interleave(patch, 1).repeat_interleave(patch, 2).unsqueeze(1).expand_as(images)
    assert list(pictures) == ["original", "masked", "prediction", "pasted"]
    assert pictures["masked"][hidden].isnan().all() and torch.equal(pictures["masked"][~hidden], images[~hidden])
    assert torch.equal(pictures["pasted"][~hidden], images[~hidden])
    assert torch.equal(pictures["pasted"][hidden], model.reconstruct(images, mask)[hidden])
    assert torch.equal(pictures["prediction"], model.reconstruct(images, mask, denormalize=True))
