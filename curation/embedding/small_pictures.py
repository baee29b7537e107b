"""Are the pictures of a pool small for a network? Enlarging them costs time, and tells it nothing new."""

from typing import Any

import numpy as np

from foundation.images import read_image

LOOKED_AT = 32  # rows, spread evenly over the pool
SMALL = 96  # pixels
ENLARGED = 2  # times its side a network may enlarge a picture before a word is said


def median_side(pool: Any, column: str = "image") -> int:
    """Median of the shorter sides in pixels, over a few rows; 0: none of them can be read."""
    stored = pool.select_columns(column).with_format("arrow")
    sides = []
    for row in np.unique(np.linspace(0, len(pool) - 1, LOOKED_AT).astype(np.int64)).tolist():
        try:
            sides.append(min(read_image(stored[row][column][0].as_py()).size))
        except Exception:  # Pillow raises many types on broken files; they are counted elsewhere
            continue
    return int(np.median(sides)) if sides else 0


def small_for(pool: Any, size: int, column: str = "image") -> str | None:
    """The beginning of a line that says so, where pictures are enlarged to ``size`` pixels in vain; else None."""
    if size < ENLARGED * SMALL or column not in pool.column_names:
        return None
    side = median_side(pool, column)
    return f"small pictures (median side {side} pixels) are enlarged to {size}" if 0 < side < SMALL else None
