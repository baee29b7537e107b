"""One pass over the pictures of a pool for all that preparation asks of them: bytes, hash, colours, junk measures.

The pictures are read by worker processes, and what is found is kept on disk block by block: a killed pass goes on.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch.utils.data import DataLoader
from tqdm import tqdm

from curation.embedding.embed import worker_count
from curation.preparation.duplicates import GRID, can_hash, colour_grid, perceptual_hash, picture_bytes
from curation.preparation.filters.junk import MEASURES, measure
from foundation.errors import CurationError
from foundation.files import load_array, save_array
from foundation.images import read_image
from foundation.threads import useful_processes

ROWS_PER_FILE = 8192
LOOK = np.dtype(
    [
        ("digest", "u1", (16,)),
        ("hash", "u1", (8,)),
        ("colours", "u1", (GRID, GRID, 3)),
        ("readable", "?"),
        ("hashed", "?"),
        ("junk", "<f4", (len(MEASURES),)),
    ]
)


class _Pictures(torch.utils.data.Dataset):
    """The look of row ``rows[i]``, as the bytes of one `LOOK`."""

    def __init__(self, pool: Any, column: str, rows: Int[np.ndarray, "m"], hashes: bool):
        self.stored = pool.select_columns(column).with_format("arrow")
        self.column, self.rows, self.hashes = column, rows, hashes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        look = np.zeros((), LOOK)
        try:
            stored = self.stored[int(self.rows[index])][self.column][0].as_py()
            content = picture_bytes(stored)
            look["digest"] = np.frombuffer(hashlib.blake2b(content, digest_size=16).digest(), np.uint8)
            tile = not stored["bytes"] and "://" in stored["path"]
            picture = read_image(stored if tile else {"bytes": content, "path": None})
            look["junk"] = measure(picture)
            look["readable"] = True
            if self.hashes:
                look["hash"], look["colours"], look["hashed"] = perceptual_hash(picture), colour_grid(picture), True
        except Exception:  # Pillow raises many types on broken files; the row is counted as unreadable
            pass
        return look


def _stack(items: list[np.ndarray]) -> np.ndarray:
    return np.stack(items)


def look_at(
    pool: Any,
    rows: Int[np.ndarray, "m"],
    work: Path,
    column: str = "image",
    workers: int | None = None,
    title: str = "",
) -> np.ndarray:
    """(m,) `LOOK` of the given pool rows.

    Args:
        work: folder for the finished blocks; of this pool and these rows alone.
        title: of the progress bar; "": none.

    Raises:
        CurationError: the pool has no column of images.
    """
    from datasets import Image

    if column not in pool.column_names or not isinstance(pool.features[column], Image):
        raise CurationError(f"the pool has no image column {column!r}; it has {', '.join(pool.column_names)}")
    hashes = can_hash()
    found: list[np.ndarray] = []
    with tqdm(total=len(rows), desc=title, unit="image", disable=not title) as bar:
        for number, start in enumerate(range(0, len(rows), ROWS_PER_FILE)):
            mine, path = rows[start : start + ROWS_PER_FILE], work / f"looks-{number:05d}.npy"
            before = load_array(path, mmap=False) if path.exists() else np.empty(0)
            if before.dtype == LOOK and len(before) == len(mine):
                found.append(before)
                bar.update(len(mine))
                continue
            count = useful_processes(worker_count(workers, free=True), -(-len(mine) // 32))
            loader = DataLoader(
                _Pictures(pool, column, mine, hashes),
                batch_size=32,
                num_workers=count,
                collate_fn=_stack,
                prefetch_factor=2 if count else None,
            )
            blocks = []
            for block in loader:
                blocks.append(block)
                bar.update(len(block))
            found.append(np.concatenate(blocks))
            save_array(path, found[-1])
    return np.concatenate(found) if found else np.empty(0, LOOK)
