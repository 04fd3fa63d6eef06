"""Masks of LSMAE, exactly, from the recorded order of blocks."""
import numpy as np
import pytest

from config import load_config
from data.masks import BlockwiseMaskGenerator, build_mask_generator

from .mae_records import load_mim, mim_names
from .recorded import opts_of

CASES = mim_names("lsmae_pretrain*")


class Fixed:
    """A generator of random numbers that gives one recorded permutation."""

    def __init__(self, permutation):
        self.recorded = permutation

    def permutation(self, size):
        assert size == len(self.recorded)
        return self.recorded


@pytest.fixture(params=CASES)
def recorded(request):
    """(mask generator, recorded arrays, images)"""
    record, tensors = load_mim(request.param)
    generator = BlockwiseMaskGenerator(record["img_size"], record["mask_downsampling"] * record["patch_size"],
                                       record["patch_size"], record["mask_ratio"], "visible_down")
    arrays = {name.split("/")[1]: value.numpy() for name, value in tensors.items() if name.startswith(("in/", "out/mask"))}
    return generator, arrays, range(record["batch"])


def test_order_of_patches_matches(recorded):
    generator, arrays, images = recorded
    orders = [generator.order(arrays["block_permutation"][i]) for i in images]
    assert np.array_equal(orders, arrays["ids_shuffle"])
    assert np.array_equal(np.argsort(orders, axis=1), arrays["ids_restore"])


def test_kept_patches_match(recorded):
    generator, arrays, images = recorded
    num_visible = generator.count.num_units - generator.count.draw(None)
    kept = [generator.order(arrays["block_permutation"][i])[:num_visible] for i in images]
    assert np.array_equal(kept, arrays["ids_keep"])


def test_masks_match(recorded):
    generator, arrays, images = recorded
    masks = [generator(Fixed(arrays["block_permutation"][i])).reshape(-1) for i in images]
    assert np.array_equal(masks, arrays["mask"])


@pytest.mark.parametrize("name", CASES)
def test_config_makes_the_generator_of_the_record(name):
    record, tensors = load_mim(name)
    opts = {"MODEL.TYPE": "vit", "MODEL.VIT.PATCH_SIZE": record["patch_size"], "DATA.IMG_SIZE": record["img_size"],
            "DATA.MASK_TYPE": "blockwise", "DATA.MASK_PATCH_SIZE": record["mask_downsampling"] * record["patch_size"],
            "DATA.MASK_RATIO": record["mask_ratio"], "DATA.MASK_ROUND": "visible_down"}
    mask = build_mask_generator(load_config(opts=opts_of(opts)))(Fixed(tensors["in/block_permutation"][0].numpy()))
    assert np.array_equal(mask.reshape(-1), tensors["out/mask"][0].numpy())
