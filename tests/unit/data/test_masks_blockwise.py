"""Masks of blocks that may be cut: counts, order, borders and errors."""
import numpy as np
import pytest

from config import check_pretraining, load_config
from data.masks import MASKS, BlockwiseMaskGenerator, build_mask_generator

from ..helpers import opts_of

RNG = np.random.RandomState
VIT = {"MODEL.TYPE": "vit", "MODEL.VIT.PATCH_SIZE": 16, "DATA.IMG_SIZE": [80, 112], "DATA.MASK_PATCH_SIZE": 32}


@pytest.mark.parametrize(("size", "block", "patch", "ratio", "rounding", "hidden"), [
    (448, 32, 16, 0.75, "visible_down", 588),         # 784 patches, 196 visible: 49 blocks
    ((80, 112), 32, 16, 0.75, "visible_down", 27),    # 35 patches, 8.75 visible
    ((80, 112), 32, 16, 0.75, "down", 26),
    ((80, 112), 32, 16, 0.75, "up", 27),
    ((80, 112), 48, 16, 0.0, "visible_down", 0),
    ((80, 112), 48, 16, 1.0, "visible_down", 35),
    ((48, 32), 64, 16, 0.5, "visible_down", 3),       # one block, larger than the image
])
def test_mask_hides_the_share_of_patches(size, block, patch, ratio, rounding, hidden):
    mask = BlockwiseMaskGenerator(size, block, patch, ratio, rounding)(RNG(0))
    height, width = (size, size) if isinstance(size, int) else size
    assert mask.shape == (height // patch, width // patch) and mask.dtype == np.int64
    assert mask.sum() == hidden and set(np.unique(mask)) <= {0, 1}


def test_blocks_are_hidden_as_a_whole_where_the_number_allows():
    mask = BlockwiseMaskGenerator((64, 96), 32, 8, 0.5)(RNG(1))  # 6 blocks of 4x4 patches
    blocks = mask.reshape(2, 4, 3, 4).transpose(0, 2, 1, 3).reshape(6, 16)
    assert sorted(blocks.sum(axis=1)) == [0, 0, 0, 16, 16, 16]


def test_at_most_one_block_is_hidden_in_part():
    generator, rng = BlockwiseMaskGenerator((80, 112), 32, 16, 0.75), RNG(2)
    for _ in range(20):
        mask = np.full((6, 8), -1)
        mask[:5, :7] = generator(rng)  # blocks reach over the border
        blocks = [set(block[block >= 0]) for block in mask.reshape(3, 2, 4, 2).transpose(0, 2, 1, 3).reshape(12, 4)]
        assert sum(len(block) == 2 for block in blocks) <= 1


def test_patches_come_block_by_block_and_column_by_column():
    """3x5 patches, 2x2 blocks: 2x3 of them, the last row and column cut."""
    order = BlockwiseMaskGenerator((24, 40), 16, 8).order(np.array([4, 2, 0, 5, 1, 3]))
    assert order.tolist() == [12, 13, 4, 9, 0, 5, 1, 6, 14, 2, 7, 3, 8, 10, 11]


def test_visible_patches_are_the_first_in_order():
    generator = BlockwiseMaskGenerator((24, 40), 16, 8, 0.6)
    order = generator.order(RNG(5).permutation(6))
    assert generator(RNG(5)).reshape(-1)[order].tolist() == [0] * 6 + [1] * 9


def test_each_patch_is_hidden_about_as_often():
    """400 masks with half of 24 patches hidden: 200 +- 5 standard errors of 10."""
    generator, rng = BlockwiseMaskGenerator((32, 48), 16, 8, 0.5), RNG(2)
    counts = sum(generator(rng) for _ in range(400))
    assert counts.shape == (4, 6) and counts.min() > 150 and counts.max() < 250


def test_mask_is_repeated_by_its_generator_and_changes_with_it():
    generator = BlockwiseMaskGenerator((64, 96), 16, 8, 0.5)
    assert np.array_equal(generator(RNG(3)), generator(RNG(3)))
    assert not np.array_equal(generator(RNG(3)), generator(RNG(4)))


def test_private_generator_leaves_the_global_one_alone():
    before = np.random.get_state()[1].copy()
    BlockwiseMaskGenerator((64, 96), 16, 8)(RNG(0))
    assert np.array_equal(np.random.get_state()[1], before)


def test_blocks_of_one_patch_draw_what_single_units_do_in_number():
    sums = {MASKS[name]((64, 96), 16, 16, 0.75, "visible_down")(RNG(0)).sum() for name in MASKS if name != "file"}
    assert sums == {18}


@pytest.mark.parametrize(("size", "block", "patch"), [(100, 32, 16), ((64, 90), 32, 16), (96, 24, 16)])
def test_parts_of_patches_are_refused(size, block, patch):
    with pytest.raises(ValueError, match=f"model_patch_size={patch} must divide.*mask_patch_size={block}"):
        BlockwiseMaskGenerator(size, block, patch)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match="mask_ratio="):
        BlockwiseMaskGenerator(64, 16, 16, ratio)


# ---- config -------------------------------------------------------------------------------------------------------

def test_config_lets_blocks_reach_over_the_border():
    config = load_config(opts=opts_of(VIT | {"DATA.MASK_TYPE": "blockwise"}))
    check_pretraining(config)
    assert build_mask_generator(config)(RNG(0)).shape == (5, 7)


def test_config_refuses_the_same_for_a_mask_of_whole_units():
    with pytest.raises(ValueError, match=r"DATA\.MASK_PATCH_SIZE=32 does not divide"):
        check_pretraining(load_config(opts=opts_of(VIT)))


def test_config_refuses_blocks_of_parts_of_patches_with_one_that_works():
    wrong = VIT | {"DATA.MASK_TYPE": "blockwise", "DATA.MASK_PATCH_SIZE": 40}
    with pytest.raises(ValueError, match=r"DATA\.MASK_PATCH_SIZE=40 is not a multiple.*Use DATA\.MASK_PATCH_SIZE 32\."):
        check_pretraining(load_config(opts=opts_of(wrong)))


@pytest.mark.parametrize("name", MASKS)
def test_config_knows_which_masks_take_only_whole_units(name):
    """What the config lets through, the mask takes, and the other way round."""
    config = load_config(opts=opts_of(VIT | {"DATA.MASK_TYPE": name}))
    refusals = []
    for check in (check_pretraining, build_mask_generator):
        try:
            check(config)
        except ValueError:
            refusals.append(check)
    assert len(refusals) in (0, 2)
