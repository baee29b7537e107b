"""Rows of a prepared pool and their embeddings, shard by shard: memory holds one, and a killed stage keeps whole ones.

Any number of processes (tasks of a SLURM job, torchrun) may call the same function on the same folder: each takes the
next shard that nobody has, and all return when all shards are there. The lock of a dead process is free again.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, Features
from filelock import FileLock, Timeout
from tqdm import tqdm

from curation.embedding.embed import embed_pool
from curation.embedding.embedders import Embedder
from experiments.engine.stages import LATE
from foundation.errors import CurationError
from foundation.files import checksum, load_array, load_json, save_array, save_json, write_atomically

ROWS_PER_SHARD = 4096
ROWS_PER_PART = 65_536  # of embeddings; a multiple of the batch size, so that parts do not show in a batch


def unfinished(paths: Sequence[Path], title: str, progress: bool, until: Path | None = None) -> Iterator[int]:
    """Numbers of the paths that are not there, each held by this process while it is worked on.

    What another process holds is passed over once, and waited for at the end.

    Args:
        until: once it is there, nothing is left to do, whatever of ``paths`` is gone.
    """
    for folder in {path.parent for path in paths}:
        folder.mkdir(parents=True, exist_ok=True)
    there = np.zeros(len(paths), bool)
    with tqdm(total=len(paths), desc=title, unit="shard", leave=False, disable=not progress) as bar:
        for seconds in (0, -1):  # not at all, for ever
            for number in np.flatnonzero(~there).tolist():
                path = paths[number]
                if not path.exists():
                    with (
                        suppress(Timeout),
                        FileLock(path.parent / f".{path.name}.lock", timeout=seconds),
                    ):
                        if not path.exists() and not (until is not None and until.exists()):
                            yield number
                there[number] = path.exists()
                bar.update(int(there[number]))


def seen(*paths: Path, seconds: float = LATE) -> Path:
    """The first of ``paths``, once all are there and listed by their folders.

    On a shared file system that lags, another machine's marker may be seen before the file that it stands for, and a
    file be opened by its name before its folder lists it: half a pool would be read for a whole one.

    Raises:
        CurationError: one is not there in time.
    """
    deadline = time.monotonic() + seconds
    for folder in sorted({path.parent for path in paths}):
        wanted = {path.name for path in paths if path.parent == folder}
        while missing := wanted - set(os.listdir(folder) if folder.is_dir() else ()):
            if time.monotonic() > deadline:
                raise CurationError(
                    f"{folder / min(missing)} is marked as done but was not seen for {seconds:.0f} s; the file system "
                    "that the processes share lags, or the file was removed: run the same again"
                )
            time.sleep(min(0.2, seconds / 10))
    return paths[0]


def write_shards(
    folder: Path,
    n_rows: int,
    row: Callable[[int], dict[str, Any]],
    features: Features,
    rows_per_shard: int = ROWS_PER_SHARD,
    progress: bool = False,
) -> None:
    """``folder/00000.parquet`` and so on, which `curation.pools.pool.open_pool` reads as one pool in this order.

    Shards that are there are kept: ``row`` must give the same for the same index, whatever was asked before.

    Args:
        n_rows: of the pool.
        row: index -> columns; called once for every row of a shard that is not there.
        features: of the columns.
        rows_per_shard: so many rows are held in memory, and lost by a kill.
    """
    starts = range(0, n_rows, rows_per_shard)
    paths = [folder / f"{number:05}.parquet" for number in range(len(starts))]
    for number in unfinished(paths, folder.name, progress):
        rows = [row(i) for i in range(starts[number], min(starts[number] + rows_per_shard, n_rows))]
        write_atomically(paths[number], Dataset.from_list(rows, features=features).to_parquet)
    if paths:
        seen(*paths)


def once(path: Path, make: Callable[[], object]) -> None:
    """Let one process of all make ``path``, which others wait for; nothing where it is there."""
    for _ in unfinished([path], path.name, False):
        make()


def array_in_parts(
    path: Path,
    n_rows: int,
    rows: Callable[[int, int], np.ndarray],
    rows_per_part: int = ROWS_PER_PART,
    progress: bool = False,
) -> np.ndarray:
    """``path`` (``.npy``) of ``n_rows`` rows, of which processes share the parts and memory holds one; mapped.

    Args:
        rows: start and stop -> these rows, for every part that is not there; the same whatever was asked before.
    """
    starts = range(0, n_rows, rows_per_part)
    folder = path.with_name(f".{path.name}.parts")
    parts = [folder / f"{number:05}.npy" for number in range(len(starts))]
    if not path.exists():
        for number in unfinished(parts, path.stem, progress, path):
            save_array(parts[number], rows(starts[number], min(starts[number] + rows_per_part, n_rows)))

    def join(stream: Any) -> None:
        first = load_array(parts[0])
        descr = np.lib.format.dtype_to_descr(first.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (n_rows, *first.shape[1:])}
        np.lib.format.write_array_header_1_0(stream, header)
        for part in parts:
            stream.write(np.ascontiguousarray(load_array(part, mmap=False)).data)

    once(path, lambda: write_atomically(path, join))
    for part in parts:
        part.unlink(missing_ok=True)
    return load_array(path)


def read_column(folder: Path, name: str) -> np.ndarray:
    """A column of integers of all shards, in order."""
    found: np.ndarray = pq.read_table(folder, columns=[name])[name].to_numpy()
    return found


def embed_shards(
    pool: Any, embedder: Embedder, folder: Path, rows_per_part: int = ROWS_PER_PART, progress: bool = False
) -> None:
    """Embeddings of a pool as `curation.embedding.embed.embed_pool` writes them, part by part; see `embed_in_parts`.

    Raises:
        CurationError: see `embed_pool`; no image of a part can be read.
    """

    def embed(rows: range, part: Path) -> None:
        embed_pool(pool.select(rows), embedder, part, n_workers=0, progress=progress)

    embed_in_parts(len(pool), embed, folder, rows_per_part, progress)


def embed_in_parts(
    n_rows: int,
    embed: Callable[[range, Path], object],
    folder: Path,
    rows_per_part: int = ROWS_PER_PART,
    progress: bool = False,
) -> None:
    """Embeddings of ``n_rows`` rows in folders ``folder/part-00000`` and so on, which processes share.

    ``embeddings.json`` of the whole names the shards of all parts; it is written last, and nothing is copied.

    Args:
        embed: writes a finished folder of embeddings of these rows; it goes on where one was begun.
    """
    starts = range(0, n_rows, rows_per_part)
    parts = [folder / f"part-{number:05}" for number in range(len(starts))]
    done = [part.with_suffix(".done") for part in parts]
    for number in unfinished(done, folder.name, progress):
        embed(range(starts[number], min(starts[number] + rows_per_part, n_rows)), parts[number])
        save_json(done[number], {})
    once(folder / "embeddings.json", lambda: _join_embeddings(folder, parts, starts, n_rows))
    seen(*(folder / shard["file"] for shard in load_json(folder / "embeddings.json")["shards"]))


def _join_embeddings(folder: Path, parts: list[Path], starts: range, n_rows: int) -> None:
    infos = [load_json(seen(part / "embeddings.json", part / "row_ids.npy")) for part in parts]
    row_ids = [load_array(part / "row_ids.npy") + start for part, start in zip(parts, starts, strict=True)]
    save_array(folder / "row_ids.npy", np.concatenate(row_ids))
    whole = {**infos[0], "pool_rows": n_rows, "rows": sum(info["rows"] for info in infos)}
    whole["shards"] = [
        {**shard, "file": f"{part.name}/{shard['file']}"}
        for part, info in zip(parts, infos, strict=True)
        for shard in info["shards"]
    ]
    whole["skipped"] = {
        str(int(row) + start): reason
        for info, start in zip(infos, starts, strict=True)
        for row, reason in info["skipped"].items()
    }
    whole["row_ids_checksum"] = checksum(folder / "row_ids.npy")
    save_json(folder / "embeddings.json", whole, seal=True)


def own_device(device: str) -> str:
    """The GPU of this process among those of its machine; any other device as it is."""
    if device != "cuda":
        return device
    import torch

    local = int(os.environ.get("SLURM_LOCALID", os.environ.get("LOCAL_RANK", 0)))
    return f"cuda:{local % max(torch.cuda.device_count(), 1)}"
