"""Embed the images of a pool: resumable, row by row accounted for, decoded by worker processes."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from curation.embedding.embedders import Embedder
from curation.pools.pool import pool_fingerprint
from curation.store.embedding_writer import EmbeddingWriter
from curation.store.embeddings import check_row_ids
from foundation.errors import CurationError, is_final
from foundation.files import load_array, save_array, write_atomically
from foundation.images import read_image, reason_of
from foundation.locks import locked_folder
from foundation.settings import Range, require_number
from foundation.threads import useful_processes

SKIPPED_LOG = "skipped.jsonl"


@dataclass(frozen=True)
class EmbedResult:
    """What `embed_pool` did.

    Attributes:
        n_rows: embeddings in the folder; the pool row of each is in ``row_ids.npy``.
        skipped: pool row id to the reason why its image could not be read.
    """

    n_rows: int
    skipped: dict[int, str]


def embed_pool(
    pool: Any,
    embedder: Embedder,
    folder: str | Path,
    batch_size: int = 64,
    *,
    n_workers: int | None = None,
    dtype: str = "float16",
    image_column: str = "image",
    rows_per_shard: int = 65_536,
    progress: bool = True,
    overwrite: bool = False,
) -> EmbedResult:
    """Embed every readable image of a pool into a folder of shards.

    Unreadable images have no embedding: ``row_ids.npy`` (int64, ascending) holds the pool row of every embedding,
    and ``skipped`` in ``embeddings.json`` the other rows with their reasons. The same call after a kill goes on
    after the last whole shard and ends with the same bytes.

    Args:
        pool: a `datasets.Dataset` (see `curation.pools.pool.open_pool`).
        embedder: see `curation.embedding.embedders.open_embedder`.
        folder: where the embeddings go.
        batch_size: images per forward pass.
        n_workers: processes that decode; None takes one less than the cores, at most 8; 0 decodes in this process.
        dtype: stored dtype.
        image_column: the column of images.
        rows_per_shard: embeddings per file, and held in memory: what a kill can lose.
        overwrite: replace embeddings of another embedder, pool or dtype, which are refused else.

    Raises:
        CurationError: no such column, no readable image at all, or the folder holds something else.
    """
    from datasets import Image

    folder = Path(folder)
    if image_column not in pool.column_names or not isinstance(pool.features[image_column], Image):
        raise CurationError(f"the pool has no image column {image_column!r}; it has {', '.join(pool.column_names)}")
    if batch_size < 1 or rows_per_shard < 1:
        raise CurationError(f"batch size {batch_size} and rows per shard {rows_per_shard} must be at least 1")
    n_workers = useful_processes(worker_count(n_workers), -(-len(pool) // batch_size))
    metadata = {**embedder.identity, "pool_fingerprint": pool_fingerprint(pool), "pool_rows": len(pool)}
    with locked_folder(folder):
        writer = EmbeddingWriter(folder, embedder.dim, dtype, rows_per_shard, metadata, overwrite)
        if writer.complete and (folder / "row_ids.npy").exists():
            row_ids = check_row_ids(load_array(folder / "row_ids.npy"), writer.n_written, str(folder / "row_ids.npy"))
            return EmbedResult(
                len(row_ids), {int(row): reason for row, reason in writer.info.get("skipped", {}).items()}
            )
        try:
            return _embed_into(writer, pool, embedder, batch_size, n_workers, image_column, progress)
        except CurationError as error:
            if is_final(error) and not writer.n_written:  # nothing is embedded, and never will be: nothing is claimed
                (folder / SKIPPED_LOG).unlink(missing_ok=True)
            raise


def _embed_into(
    writer: EmbeddingWriter,
    pool: Any,
    embedder: Embedder,
    batch_size: int,
    n_workers: int,
    image_column: str,
    progress: bool,
) -> EmbedResult:
    """Embed what is not embedded yet, and finish the folder."""
    folder = writer.folder
    for stray in folder.glob(".*.tmp"):  # what a kill in the middle of a write left behind
        stray.unlink(missing_ok=True)
    first_row, skipped = _where_to_resume(folder, writer.n_written, len(pool))
    with writer:
        _embed_rows(
            pool,
            embedder,
            writer,
            first_row=first_row,
            skipped=skipped,
            batch_size=batch_size,
            n_workers=n_workers,
            image_column=image_column,
            progress=progress,
        )
        row_ids = _readable(len(pool), skipped)
        if not len(row_ids):
            row, reason = next(iter(skipped.items()))
            raise CurationError(f"none of the {len(pool)} images can be read; the first, row {row}: {reason}")
        # embeddings.json turns complete last: whoever sees it complete also finds the row ids
        save_array(folder / "row_ids.npy", row_ids)
        writer.finish(skipped={str(row): reason for row, reason in sorted(skipped.items())})
    (folder / SKIPPED_LOG).unlink(missing_ok=True)
    return EmbedResult(len(row_ids), dict(sorted(skipped.items())))


def _embed_rows(
    pool: Any,
    embedder: Embedder,
    writer: EmbeddingWriter,
    *,
    first_row: int,
    skipped: dict[int, str],
    batch_size: int,
    n_workers: int,
    image_column: str,
    progress: bool,
) -> None:
    """Embed the pool rows from ``first_row`` on, adding the unreadable ones to ``skipped``."""
    # start at a batch's first row: a network's last bits depend on the batch, and a resumed run must give the same
    start = first_row // batch_size * batch_size
    images = _Images(pool, image_column, embedder.transform, embedder.image_size, start)
    loader = DataLoader(
        images,
        batch_size=batch_size,
        num_workers=n_workers,
        collate_fn=_collate,
        pin_memory=False,
        prefetch_factor=2 if n_workers else None,
    )
    with (
        tqdm(total=len(pool), initial=first_row, unit=" images", desc="embed", disable=not progress) as bar,
        open(_log_path(writer.folder), "a", encoding="utf-8") as log,
    ):
        for rows, batch, failures in loader:
            new = {row: reason for row, reason in failures.items() if row >= first_row}
            if new:
                skipped.update(new)
                # on disk before the embeddings behind them: after a kill the row of every embedding is known
                log.writelines(json.dumps([row, reason]) + "\n" for row, reason in new.items())
                log.flush()
                os.fsync(log.fileno())
            if len(rows):
                embeddings = embedder.forward(batch)
                wanted = torch.from_numpy(rows >= first_row)
                _append(writer, embeddings[wanted], rows[rows >= first_row])
            bar.update(int((rows >= first_row).sum()) + len(new))
            bar.set_postfix(skipped=len(skipped), refresh=False)


def _append(writer: EmbeddingWriter, embeddings: Tensor, rows: np.ndarray) -> None:
    """Append finite embeddings; a NaN is named by its pool row, not by its place in the file."""
    finite = torch.isfinite(embeddings).all(dim=1)
    if not bool(finite.all()):
        row = int(rows[int((~finite).nonzero()[0])])
        raise CurationError(
            f"pool row {row}: the network gave NaN or infinity; the weights may be broken, or try another device"
        )
    writer.append(embeddings)


def worker_count(n_workers: int | None, free: bool = False) -> int:
    """Processes that decode: as asked, or one less than the cores (all, where nothing else computes), at most 8."""
    require_number(n_workers, Range(ge=0, le=1024), "workers")
    return min(8, max(1, (os.cpu_count() or 2) - (not free))) if n_workers is None else n_workers


def _readable(n_rows: int, skipped: dict[int, str]) -> np.ndarray:
    """(m,) int64 pool rows that have an embedding, ascending."""
    keep = np.ones(n_rows, dtype=bool)
    keep[list(skipped)] = False
    return np.flatnonzero(keep).astype(np.int64)


def _log_path(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / SKIPPED_LOG


def _where_to_resume(folder: Path, n_written: int, n_rows: int) -> tuple[int, dict[int, str]]:
    """The first pool row without an embedding on disk, and the skipped rows before it."""
    logged: dict[int, str] = {}
    path = _log_path(folder)
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            row, reason = json.loads(line)
            logged[int(row)] = str(reason)
        except (ValueError, TypeError):  # the kill cut the last line; its rows come again
            break
    logged = {row: reason for row, reason in logged.items() if 0 <= row < n_rows}
    readable = _readable(n_rows, logged)
    if n_written > len(readable):
        raise CurationError(f"{folder} has {n_written} embeddings of {len(readable)} rows; delete it, or --overwrite")
    first_row = int(readable[n_written - 1]) + 1 if n_written else 0
    skipped = {row: reason for row, reason in logged.items() if row < first_row}
    lines = "".join(json.dumps([row, reason]) + "\n" for row, reason in skipped.items())
    write_atomically(path, lambda stream: stream.write(lines.encode()))
    return first_row, skipped


class _Images(torch.utils.data.Dataset):
    """Rows ``start`` to the end of a pool: (row, tensor) of a readable image, (row, reason) of another."""

    def __init__(self, pool: Any, column: str, transform: Callable[[Any], Tensor], image_size: int, start: int):
        self.stored = pool.select_columns(column).with_format("arrow")  # undecoded: a bad image must not end the run
        self.column, self.transform, self.image_size, self.start = column, transform, image_size, start

    def __len__(self) -> int:
        return len(self.stored) - self.start

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        row = index + self.start
        try:
            stored = self.stored[row][self.column][0].as_py()
            return row, self.transform(read_image(stored, self.image_size))
        except Exception as error:  # Pillow raises many types on broken files
            return row, reason_of(error)


def _collate(items: list[tuple[int, Tensor | str]]) -> tuple[np.ndarray, Tensor, dict[int, str]]:
    """Rows, batch (b, 3, h, w) of the readable images, and the reasons of the others."""
    good = [(row, image) for row, image in items if isinstance(image, Tensor)]
    failures = {row: reason for row, reason in items if isinstance(reason, str)}
    batch = torch.stack([image for _, image in good]) if good else torch.empty(0)
    return np.array([row for row, _ in good], dtype=np.int64), batch, failures
