"""Images as a picture for people."""
import torch
from PIL import Image, ImageDraw

HIDDEN_GREY = 0.5


def picture_grid(columns, mean, std, cell=128):
    """One row an image, one column for each way to look at it.

    Args:
        columns: {name: (B, C, H, W) float, normalised}; NaN pixels are drawn grey.
        mean, std: per channel, of pixels in [0, 1].
        cell: pixels per side at which small images are shown at least.
    Returns: PIL RGB image with a line of column names on top.
    """
    number, _, height, width = next(iter(columns.values())).shape
    scale = max(1, -(-cell // max(height, width)))
    gap, header = 4, 16
    sheet = Image.new("RGB", (len(columns) * (width * scale + gap) - gap, header + number * (height * scale + gap) - gap),
                      "white")
    draw = ImageDraw.Draw(sheet)
    for column, (name, pictures) in enumerate(columns.items()):
        left = column * (width * scale + gap)
        draw.text((left + 2, 2), name, fill="black")
        for row, picture in enumerate(as_pictures(pictures, mean, std)):
            tile = picture.resize((width * scale, height * scale), Image.Resampling.NEAREST)
            sheet.paste(tile, (left, header + row * (height * scale + gap)))
    return sheet


def as_pictures(images, mean, std):
    """(B, C, H, W) float, normalised by `mean` and `std` per channel -> list of B PIL RGB images; NaN pixels are grey."""
    mean, std = torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)
    return [to_pil(picture) for picture in (images.float().cpu() * std + mean).nan_to_num(HIDDEN_GREY).clamp(0, 1)]


def to_pil(picture):
    """(C, H, W) float in [0, 1] -> PIL RGB; one channel as grey, of more than three the first three."""
    picture = picture[:3] if picture.shape[0] >= 3 else picture[:1].expand(3, -1, -1)
    return Image.fromarray((picture * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
