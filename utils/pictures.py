"""Reconstructions as a picture for people."""
import torch
from PIL import Image, ImageDraw

COLUMNS = ("original", "masked", "prediction", "pasted")
HIDDEN_GREY = 0.5


def reconstruction_grid(images, hidden, prediction, mean, std, cell=128):
    """One row an image: original, masked, prediction, and the prediction pasted into the visible parts.

    Args:
        images: (B, C, H, W) float, normalised.
        hidden: (B, H, W) bool, True = hidden pixel.
        prediction: (B, C, H, W) float, normalised.
        mean, std: per channel, of pixels in [0, 1].
        cell: pixels per side at which small images are shown at least.
    Returns: PIL RGB image with a line of column names on top.
    """
    images, prediction, hidden = images.float().cpu(), prediction.float().cpu(), hidden.cpu().unsqueeze(1)
    mean, std = torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)
    original = (images * std + mean).clamp(0, 1)
    predicted = (prediction * std + mean).clamp(0, 1)
    masked = torch.where(hidden, torch.full_like(original, HIDDEN_GREY), original)
    pasted = torch.where(hidden, predicted, original)
    height, width = images.shape[-2:]
    scale = max(1, -(-cell // max(height, width)))
    gap, header = 4, 16
    sheet = Image.new("RGB", (4 * (width * scale + gap) - gap, header + len(images) * (height * scale + gap) - gap), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (name, pictures) in enumerate(zip(COLUMNS, (original, masked, predicted, pasted), strict=True)):
        left = column * (width * scale + gap)
        draw.text((left + 2, 2), name, fill="black")
        for row, picture in enumerate(pictures):
            tile = to_pil(picture).resize((width * scale, height * scale), Image.Resampling.NEAREST)
            sheet.paste(tile, (left, header + row * (height * scale + gap)))
    return sheet


def to_pil(picture):
    """(C, H, W) float in [0, 1] -> PIL RGB; one channel as grey, of more than three the first three."""
    picture = picture[:3] if picture.shape[0] >= 3 else picture[:1].expand(3, -1, -1)
    return Image.fromarray((picture * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
