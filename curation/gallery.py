"""Contact sheets: what lies in a cluster is seen, not read."""

import io
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from curation.tree import ClusterTree


def thumbnail(image: Image.Image, size: int = 64) -> Image.Image:
    """An RGB square of ``size`` pixels, the picture centred on white."""
    picture = image.convert("RGBA")
    picture.thumbnail((size, size))
    sheet = Image.new("RGB", (size, size), "white")
    sheet.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2), picture)
    return sheet


def contact_sheet(pool: Any, rows: Int[np.ndarray, "m"], columns: int = 12, size: int = 64, gap: int = 3) -> bytes:
    """JPEG of the pictures of some pool rows, left to right, top to bottom; unreadable ones stay grey."""
    n_lines = max(1, -(-len(rows) // columns))
    width = min(columns, max(1, len(rows)))
    sheet = Image.new("RGB", (width * (size + gap) - gap, n_lines * (size + gap) - gap), "white")
    for position, row in enumerate(rows):
        try:
            picture = thumbnail(pool[int(row)]["image"], size)
        except (OSError, ValueError):
            picture = Image.new("RGB", (size, size), "lightgrey")
        sheet.paste(picture, ((position % columns) * (size + gap), position // columns * (size + gap)))
    stream = io.BytesIO()
    sheet.save(stream, "JPEG", quality=80, optimize=True)
    return stream.getvalue()


def gallery_clusters(tree: ClusterTree, level: int, n: int, seed: int = 0) -> Int[np.ndarray, "c"]:
    """Clusters to show: a third the largest, a third at random, a third the smallest, by rows, largest first."""
    counts = tree.row_counts(level)
    order = np.argsort(-counts, kind="stable")
    if len(order) <= n:
        return order
    ends = max(1, n // 3)
    middle = np.random.default_rng(seed).choice(order[ends:-ends], n - 2 * ends, replace=False)
    return np.concatenate([order[:ends], middle[np.argsort(-counts[middle], kind="stable")], order[-ends:]])


def cluster_examples(tree: ClusterTree, level: int, cluster: int, n: int, seed: int = 0) -> Int[np.ndarray, "m"]:
    """Up to n rows beneath a cluster: at level 1 the closest to the centroid first, above at random."""
    rows = np.flatnonzero(tree.row_clusters(level) == cluster)
    if level == 0:
        return rows[np.argsort(np.asarray(tree.levels[0].distance)[rows], kind="stable")][:n]
    return np.random.default_rng([seed, level, cluster]).permutation(rows)[:n]
