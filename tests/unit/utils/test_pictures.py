import pytest
import torch

from utils.pictures import picture_grid, to_pil


def grid_of(channels=3, height=32, width=64, **settings):
    """Two images of level 0.25 in three columns: whole, with the left half hidden, as 0.75."""
    images = torch.full((2, channels, height, width), -0.5)  # 0.25 by mean 0.5 and deviation 0.5
    masked = images.clone()
    masked[..., :width // 2] = torch.nan
    columns = {"original": images, "masked": masked, "prediction": torch.full_like(images, 0.5)}
    return picture_grid(columns, [0.5] * channels, [0.5] * channels, **settings)


@pytest.mark.parametrize(("cell", "scale"), [(128, 2), (64, 1), (65, 2), (1, 1)])
def test_grid_has_a_row_per_image_a_column_per_view_and_a_header(cell, scale):
    """Small images are magnified by a whole number until the longer side has `cell` pixels; gaps of 4, header of 16."""
    sheet = grid_of(cell=cell)
    assert sheet.mode == "RGB"
    assert sheet.size == (3 * 64 * scale + 2 * 4, 16 + 2 * 32 * scale + 4)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_columns_stand_in_order_and_hidden_pixels_are_grey(channels):
    sheet = grid_of(channels, cell=1)
    levels = [[sheet.getpixel((column * 68 + x, 16 + 36 + 5))[0] for x in (10, 50)] for column in range(3)]
    quarter, half, three_quarters = round(0.25 * 255), round(0.5 * 255), round(0.75 * 255)
    assert levels == [[quarter, quarter], [half, quarter], [three_quarters, three_quarters]]


def test_values_out_of_range_are_cut():
    sheet = picture_grid({"high": torch.full((1, 3, 8, 16), 9.0), "low": torch.full((1, 3, 8, 16), -9.0, dtype=torch.bfloat16)},
                         [0.5] * 3, [0.5] * 3, cell=1)
    assert sheet.getpixel((3, 20)) == (255, 255, 255) and sheet.getpixel((20 + 3, 20)) == (0, 0, 0)


def test_one_channel_is_grey_and_four_show_three():
    assert to_pil(torch.full((1, 2, 3), 0.2)).getpixel((2, 1)) == (51, 51, 51)
    assert to_pil(torch.tensor([0.0, 0.2, 0.4, 1.0]).view(4, 1, 1).expand(4, 2, 3)).getpixel((2, 1)) == (0, 51, 102)
