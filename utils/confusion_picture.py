"""A confusion matrix as a picture: right ones blue, mistakes red, each row by its own number of images."""
import unicodedata
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.names import shown

CELLS = {44: 1000, 30: 1000, 15: 2000, 10: 2000, 6: 2000, 4: 2000, 3: 2000, 2: 2000}  # side of a cell: of all of them, pixels
NUMBERS, NAMES = 30, 15  # sides of a cell from which on it has its number, and each row its name
TEXT, LINE = 12, 15  # sizes of text and of a line of it, pixels
LONGEST = 170       # pixels of a name
STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # every so many rows are named where not each can be
RIGHT, WRONG, FRAME = (8, 81, 156), (190, 20, 25), (210, 210, 210)
# of systems, for names that the font of Pillow can't write, which knows ASCII alone
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "arial.ttf", "Arial Unicode.ttf",
         "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "PingFang.ttc", "msyh.ttc", "YuGothM.ttc", "malgun.ttf")


def confusion_picture(matrix, names):
    """Draw what images of each class were taken for.

    A single mistake has a fifth of the shade, so that it can be seen; more follow the square root of their share of the row.

    Args:
        matrix: (C, C) counts: a row a label, a column a prediction.
        names: of the classes. Those without images have no row; what is taken for them is a last column, "others".
    Returns: PIL RGB image.
    """
    rows = np.flatnonzero(matrix.sum(axis=1))
    counts = matrix[np.ix_(rows, rows)]
    others = matrix[rows].sum(axis=1) - counts.sum(axis=1)
    if others.any():
        counts = np.hstack([counts, others[:, None]])
    cell = next((side for side, all_of_them in CELLS.items() if side * len(rows) <= all_of_them), 1)
    font = _font_for("".join(shown(names[row]) for row in rows))
    texts = [_axis_text(names[row], row, font) for row in rows]
    every = next(step for step in STEPS if step * cell >= NAMES or step == STEPS[-1])
    named = range(0, len(rows), every)
    margin = 8 + max(int(font.getlength(texts[i])) for i in [*named]) if len(rows) else 0
    top = 2 * LINE + margin
    height, width = counts.shape
    sheet = Image.new("RGB", (max(margin + width * cell + LINE, 360), top + height * cell + LINE), "white")
    draw = ImageDraw.Draw(sheet)
    plain = ImageFont.load_default(TEXT)
    draw.text((4, 2), "rows: labels; columns: predictions", fill="black", font=plain)
    draw.text((4, 2 + LINE), "shade: share of the row; blue right, red wrong", fill="black", font=plain)
    sheet.paste(_cells(counts, cell), (margin, top))
    for i in named:
        middle = i * cell + cell // 2
        draw.text((margin - 4, top + middle), texts[i], fill="black", font=font, anchor="rm")
        _write_upwards(sheet, texts[i], font, (margin + middle, top - 4))
    if width > height:
        _write_upwards(sheet, "others", plain, (margin + height * cell + cell // 2, top - 4))
    if cell >= NUMBERS:
        _write_numbers(draw, counts, cell, (margin, top))
    return sheet


def _cells(counts, cell):
    """The coloured cells, framed where there is room."""
    shades = np.where(counts, 0.2 + 0.8 * np.sqrt(_shares(counts)), 0)[..., None]
    colours = np.where(np.eye(*counts.shape, dtype=bool)[..., None], RIGHT, WRONG)
    pixels = (255 + shades * (colours - 255)).round().astype(np.uint8).repeat(cell, axis=0).repeat(cell, axis=1)
    if cell >= NAMES:
        pixels[::cell] = FRAME
        pixels[:, ::cell] = FRAME
    return Image.fromarray(pixels)


def _shares(counts):
    return counts / counts.sum(axis=1, keepdims=True)


def _write_numbers(draw, counts, cell, corner):
    shares = _shares(counts)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            text = str(count)
            size = next((size for size in (TEXT, 10, 8) if ImageFont.load_default(size).getlength(text) <= cell - 4), 7)
            place = (corner[0] + column * cell + cell // 2, corner[1] + row * cell + cell // 2)
            draw.text(place, text, fill="white" if shares[row, column] > 0.3 else "black", anchor="mm",
                      font=ImageFont.load_default(size))


def _write_upwards(sheet, text, font, bottom):
    """Text that is read from the bottom to the top, its lower end in the middle of a column."""
    line = Image.new("L", (int(font.getlength(text)) + 2, LINE))
    ImageDraw.Draw(line).text((0, LINE // 2), text, fill=255, font=font, anchor="lm")
    line = line.transpose(Image.Transpose.ROTATE_90)
    sheet.paste("black", (bottom[0] - LINE // 2, bottom[1] - line.height), line)


def _axis_text(name, label, font):
    """A name as far as a font can write it, cut where it is long; without accents or by its number where it can't."""
    text = shown(name)
    if not _writes(font, text):
        text = "".join(sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign))
    if not _writes(font, text):
        text = f"label {label}"
    while font.getlength(text) > LONGEST:
        text = text.removesuffix("...")[:-1] + "..."
    return text


def _font_for(text):
    """The font of Pillow, or of the system where only that can write a text."""
    own = ImageFont.load_default(TEXT)
    if _writes(own, text):
        return own
    for name in FONTS:
        try:
            font = ImageFont.truetype(name, TEXT)
        except OSError:  # not on this machine
            continue
        if _writes(font, text):
            return font
    return own


def _writes(font, text):
    return all(_has_sign(font, sign) for sign in set(text))


@cache
def _has_sign(font, sign):
    """Whether a font draws a sign otherwise than one that does not exist."""
    return sign.isspace() or bytes(font.getmask(sign)) != bytes(font.getmask("\U0010ffff"))
