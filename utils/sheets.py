"""Rows of pictures with names, for people: as one picture, or as a page that needs no other file."""
import base64
import html
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from utils.files import replacing, write_text
from utils.names import shown

TEXT, LINE = 12, 15  # sizes of text and of a line of it, pixels
GAP = 4              # between pictures, pixels
LONGEST = 200        # pixels of a line of a row's name
PAGES = (".html", ".htm")

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 14px sans-serif; margin: 1em }}
table {{ border-spacing: 6px }}
thead th {{ position: sticky; top: 0; background: #fff }}
tbody th {{ font-weight: normal; text-align: left; white-space: pre-line }}
img {{ width: {cell}px; image-rendering: pixelated; display: block }}
</style></head><body><h1>{title}</h1>
<table><thead><tr><th></th>{names}</tr></thead><tbody>
{rows}
</tbody></table></body></html>
"""


def columns_of(rows):
    """Names of all columns, in the order in which rows have them."""
    return list(dict.fromkeys(name for _, pictures in rows for name in pictures))


def check_sheet(path, flag="--out"):
    """Refuse a file that no sheet can be written to, before anything is computed. Raises ValueError."""
    ending, known = Path(path).suffix.lower(), Image.registered_extensions()
    if ending not in PAGES and known.get(ending) not in Image.SAVE:
        raise ValueError(f"{flag} {path} must end in .png or as another picture, or in .html.")
    if not Path(path).parent.is_dir():
        raise ValueError(f"{flag} {path}: there is no folder {Path(path).parent}. Make it, or choose another.")


def write_sheet(path, rows, title, cell=128):
    """Write rows as a picture or a page, as the ending of the file says; one that is there is replaced. See draw_sheet."""
    if Path(path).suffix.lower() in PAGES:
        return write_text(path, sheet_page(rows, title, cell))
    with replacing(path) as temporary:
        draw_sheet(rows, cell).save(temporary, format=Image.registered_extensions()[Path(path).suffix.lower()])


def draw_sheet(rows, cell=128):
    """One picture of all rows.

    Args:
        rows: list of (name, one or several lines; {column: PIL image}). A row may lack columns of others.
        cell: pixels of the longer side of each picture; small ones are enlarged in squares, so that their pixels show.
    Returns: PIL RGB image, with the names of the columns on top and of the rows on the left.
    """
    font, columns = ImageFont.load_default(TEXT), columns_of(rows)
    texts = [[shortened(line, font, LONGEST) for line in _printable(name).splitlines()] for name, _ in rows]
    margin = max((int(font.getlength(line)) for lines in texts for line in lines), default=-2 * GAP) + 3 * GAP
    tiles = [{name: fitted(picture, cell) for name, picture in pictures.items()} for _, pictures in rows]
    widths = [max(row[name].width for row in tiles if name in row) for name in columns]
    widths = [max(width, int(font.getlength(name)) + GAP) for width, name in zip(widths, columns, strict=True)]
    lefts = [margin + sum(widths[:i]) + i * GAP for i in range(len(columns))]
    heights = [max(*(tile.height for tile in row.values()), len(lines) * LINE) for row, lines in zip(tiles, texts, strict=True)]
    header = LINE + GAP
    sheet = Image.new("RGB", (margin + sum(widths) + GAP * len(columns), header + sum(heights) + GAP * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for name, left in zip(columns, lefts, strict=True):
        draw.text((left, 2), name, fill="black", font=font)
    top = header
    for row, lines, height in zip(tiles, texts, heights, strict=True):
        for i, line in enumerate(lines):
            draw.text((GAP, top + i * LINE), line, fill="black", font=font)
        for name, tile in row.items():
            sheet.paste(tile, (lefts[columns.index(name)], top))
        top += height + GAP
    return sheet


def sheet_page(rows, title, cell=128):
    """The same as one page of HTML, text; pictures are in it as they are."""
    columns, lines = columns_of(rows), []
    for name, pictures in rows:
        cells = (f'<img src="data:image/png;base64,{_encoded(pictures[column])}" alt="{html.escape(column)}">'
                 if column in pictures else "" for column in columns)
        lines.append(f"<tr><th>{html.escape(_printable(name))}</th>{''.join(f'<td>{one}</td>' for one in cells)}</tr>")
    return PAGE.format(title=html.escape(shown(title)), cell=cell, rows="\n".join(lines),
                       names="".join(f"<th>{html.escape(column)}</th>" for column in columns))


def fitted(picture, cell):
    """A picture whose longer side has `cell` pixels, or the next multiple of its own where it is smaller."""
    longer = max(picture.size)
    if longer <= cell:
        scale = max(1, cell // longer)
        return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    return picture.resize(tuple(max(1, round(side * cell / longer)) for side in picture.size), Image.Resampling.LANCZOS)


def shortened(text, font, width):
    """Text that fits into so many pixels; its middle is left out where it is longer."""
    kept, cut = len(text), text
    while font.getlength(cut) > width and kept > 2:
        kept -= 1
        head = (kept + 1) // 2
        cut = f"{text[:head]}...{text[len(text) - (kept - head):]}"
    return cut


def _printable(name):
    """A name of several lines, each as `shown`."""
    return "\n".join(shown(line) for line in name.splitlines())


def _encoded(picture):
    buffer = BytesIO()
    picture.save(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode()
