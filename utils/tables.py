"""Text in aligned columns."""


def aligned(rows, num_left=1):
    """Lines of a table.

    Args:
        rows: lists of texts, all of one length.
        num_left: columns, from the first, that are aligned on the left; the others on the right.
    Returns: list of lines, without blanks at their ends.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) if i < num_left else cell.rjust(width)
                      for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]


def markdown(columns, rows):
    """A table of Markdown: names of the columns, then lists of texts."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [columns, ["---"] * len(columns), *rows]) + "\n"
