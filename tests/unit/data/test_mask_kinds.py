"""Squares, blocks, and masks from files: how many units they hide, and where. Recorded masks are in tests/parity."""
import numpy as np
import pytest
from PIL import Image

from config import load_config
from data.mask_generators import UnitMasks
from data.masks import MASKS, build_mask_generator, draw_masks

from ..helpers import opts_of

RNG = np.random.RandomState
OF_UNITS = [name for name, kind in MASKS.items() if issubclass(kind, UnitMasks) and name != "file"]


def units_of(mask, side):
    """The units of a mask, each of side x side patches; fails where one is hidden in part."""
    rows, cols = (length // side for length in mask.shape)
    share = mask.reshape(rows, side, cols, side).mean(axis=(1, 3))
    assert set(np.unique(share)) <= {0, 1}
    return share.astype(bool)


@pytest.mark.parametrize("kind", OF_UNITS)
@pytest.mark.parametrize(("size", "unit", "patch"), [(192, 32, 4), (96, 4, 4), (64, 32, 8), ((64, 96), 8, 8), ((32, 64), 8, 4)])
@pytest.mark.parametrize("rounding", ["up", "down", "visible_down"])
def test_every_ratio_hides_its_number_of_whole_units(kind, size, unit, patch, rounding):
    for ratio in (0.01, 0.1, 0.37, 0.6, 0.75, 0.99):
        generator = MASKS[kind](size, unit, patch, ratio, rounding)
        total = generator.units[0] * generator.units[1]
        expected = {"up": np.ceil(total * ratio), "down": int(total * ratio), "visible_down": total - int(total * (1 - ratio))}
        for seed in range(3):
            assert units_of(generator(RNG(seed)), unit // patch).sum() == expected[rounding]


@pytest.mark.parametrize("kind", OF_UNITS)
def test_masks_follow_their_generator_and_every_unit_is_hidden_some_time(kind):
    generator, rng = MASKS[kind]((64, 96), 16, 8, 0.5), RNG(2)
    assert np.array_equal(generator(RNG(3)), generator(RNG(3)))
    masks = [generator(rng) for _ in range(60)]
    assert len({mask.tobytes() for mask in masks}) > 3 and sum(masks).min() > 0


@pytest.mark.parametrize(("size", "ratio", "sides"), [(192, 0.25, (3, 3)), (192, 0.6, (5, 5)), ((32, 192), 0.5, (1, 3)),
                                                      ((192, 64), 0.6, (4, 2))])
def test_a_square_is_in_one_piece(size, ratio, sides):
    for seed in range(20):
        mask = units_of(MASKS["square"](size, 32, 4, ratio)(RNG(seed)), 8)
        rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert (len(rows), len(cols)) == sides == (rows[-1] - rows[0] + 1, cols[-1] - cols[0] + 1)
        assert sides[0] * sides[1] - mask.sum() < sides[1]  # all but the rest of the last row


def test_blocks_hide_larger_pieces_than_random_units():
    """Neighbours that are both hidden, of 14 x 14 units at ratio 0.4: by chance about 0.16 of all pairs."""
    def share(kind):
        masks = [MASKS[kind](224, 16, 16, 0.4)(RNG(seed)) for seed in range(30)]
        return np.mean([(mask[:, 1:] * mask[:, :-1]).mean() for mask in masks])

    assert share("random") == pytest.approx(0.16, abs=0.02) and share("block") > 0.28


def config_of(path):
    return load_config(opts=opts_of({
        "DATA.MASK_TYPE": "file", "DATA.MASK_FILE": str(path), "DATA.IMG_SIZE": [64, 96], "DATA.MASK_PATCH_SIZE": 16,
        "MODEL.SWIN.WINDOW_SIZE": 4, "MODEL.SWIN.DEPTHS": [2, 2], "MODEL.SWIN.NUM_HEADS": [1, 2]}))


UNITS = np.arange(24).reshape(4, 6) % 5 < 2


@pytest.mark.parametrize("cells", [1, 4, 16])
@pytest.mark.parametrize("ending", ["png", "npy"])
def test_the_mask_of_a_file_is_that_of_every_image(cells, ending, tmp_path):
    path, hidden = tmp_path / f"mask.{ending}", UNITS.repeat(cells, axis=0).repeat(cells, axis=1)
    if ending == "npy":
        np.save(path, hidden)
    else:
        Image.fromarray(hidden.astype(np.uint8) * 255).save(path)
    masks = draw_masks(config_of(path), 3, RNG(0)).numpy()
    assert masks.shape == (3, 16, 24) and all(np.array_equal(units_of(mask, 4), UNITS) for mask in masks)


@pytest.mark.parametrize(("values", "message"), [
    (np.ones((4, 6)), "hides all of its 24 units"), (np.zeros((4, 6)), "hides none of its 24 units"),
    (np.ones((5, 6)), "is of 5x6 cells; expected 64x96 pixels, 16x24 patches, 4x6 units"),
    (np.ones((4, 6, 3)), "a mask has two axes"), (np.array([["a"]]), "a mask has two axes"),
    (np.arange(16 * 24).reshape(16, 24) % 24 < 6, "in part .the first in row 0, column 1.*DATA.MASK_PATCH_SIZE")])
def test_files_that_are_no_mask_of_the_images_are_refused(values, message, tmp_path):
    np.save(tmp_path / "mask.npy", values)
    with pytest.raises(ValueError, match=message):
        build_mask_generator(config_of(tmp_path / "mask.npy"))


@pytest.mark.parametrize(("name", "message"), [("mask.npy", "no array of numbers"), ("mask.png", "no picture"),
                                               ("", "needs DATA.MASK_FILE")])
def test_files_that_hold_something_else_are_refused(name, message, tmp_path):
    (tmp_path / "mask.npy").write_text("no array")
    (tmp_path / "mask.png").write_text("no picture")
    with pytest.raises(ValueError, match=message):
        build_mask_generator(config_of(tmp_path / name if name else ""))
