"""How far what is hidden of an image lies from what is visible."""
import math

import numpy as np


def average_distance(mask, cell=1):
    """AvgDist of one mask: the mean distance of hidden pixels to the nearest visible one.

    Args:
        mask: (rows, cols), True or not 0 = hidden.
        cell: pixels per side of its cells.
    Returns: float, pixels from centre to centre; NaN where nothing is hidden, or nothing visible.
    Source: SimMIM (arXiv 2111.09886), section 4.1.2, which defines it in words.
    """
    from scipy.ndimage import distance_transform_edt  # takes a second, and only who measures masks needs it

    hidden = np.asarray(mask).astype(bool)
    if not 0 < hidden.sum() < hidden.size:
        return math.nan
    hidden = hidden.repeat(cell, axis=0).repeat(cell, axis=1)
    return float(distance_transform_edt(hidden)[hidden].mean())
