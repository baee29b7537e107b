"""Numbered jobs that all processes share, of which a killed run repeats few.

Every process takes a stretch of the jobs and writes what it has found every so often; the same run with any number of
processes takes up what is there. What a job gives depends on its number alone, so the result does not depend on either.
"""

import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from curation.group import Group
from foundation.errors import CurationError
from foundation.files import require_free_space, write_atomically

Found = tuple[np.ndarray, ...]  # of one length each
SECONDS = 20.0  # between two files


class Pieces:
    """Results of jobs in files of many jobs each; every file is whole or absent.

    Args:
        folder: where they lie, seen by all processes; None keeps nothing.
        seconds: between two files.
    """

    def __init__(self, folder: Path | None, seconds: float | None = None):
        self.folder, self.seconds = folder, SECONDS if seconds is None else seconds
        self._held: dict[int, Found] = {}
        self._saved_at = time.monotonic()

    def load(self, first: int, last: int) -> dict[int, Found]:
        """Results that were kept of the jobs from ``first`` to before ``last``.

        Raises:
            CurationError: a file is damaged.
        """
        found: dict[int, Found] = {}
        paths = sorted(self.folder.glob("*.npz")) if self.folder is not None and self.folder.exists() else []
        for path in paths:
            low, high = (int(part) for part in path.stem.split("-")[:2])
            if high < first or low >= last:
                continue
            try:
                with np.load(path, allow_pickle=False) as file:
                    jobs, lengths = file["jobs"], file["lengths"]
                    arrays = [file[name] for name in sorted(set(file.files) - {"jobs", "lengths"})]
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise CurationError(f"{path} is damaged ({error}); delete it, and its jobs are done again") from error
            ends = np.cumsum(lengths)
            for job, start, end in zip(jobs.tolist(), ends - lengths, ends, strict=True):
                if first <= job < last:
                    found[job] = tuple(array[start:end] for array in arrays)
        return found

    def keep(self, job: int, found: Found) -> None:
        """Take the result of a job; it is on disk after ``seconds`` at the latest, or after `flush`."""
        if self.folder is None:
            return
        self._held[job] = found
        if time.monotonic() - self._saved_at >= self.seconds:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        if self.folder is None or not self._held:
            return
        jobs, results = list(self._held), list(self._held.values())
        columns = [np.concatenate(parts) for parts in zip(*results, strict=True)]
        content: dict[str, Any] = {f"array{i}": column for i, column in enumerate(columns)}
        content |= {"jobs": np.array(jobs), "lengths": np.array([len(result[0]) for result in results])}
        self.folder.mkdir(parents=True, exist_ok=True)
        require_free_space(self.folder, sum(column.nbytes for column in columns))
        path = self.folder / f"{min(jobs)}-{max(jobs)}-{len(jobs)}.npz"
        write_atomically(path, lambda stream: np.savez(stream, **content))
        self._held, self._saved_at = {}, time.monotonic()


def stretch(sizes: np.ndarray, group: Group) -> tuple[int, int]:
    """First and last (exclusive) job of this process: stretches of about equal ``sizes`` in all."""
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    shares = [total * part // group.size for part in (group.rank, group.rank + 1)]
    first, last = np.searchsorted(ends, shares, side="right").tolist()
    return first if group.rank else 0, len(sizes) if group.rank == group.size - 1 else last


def run_jobs(
    sizes: np.ndarray,
    work: Callable[[int], Found],
    folder: Path | None,
    group: Group,
    n_threads: int = 1,
    say: Callable[[str], None] = lambda _text: None,
) -> tuple[np.ndarray, Found]:
    """Do all jobs, each in one process, and give every process all results.

    Args:
        sizes: (j,) amount of work of each job.
        work: number of a job -> arrays of one length; called by threads.
        folder: of `Pieces`.
        say: takes how far this process is, with the time that is left.

    Returns:
        (j,) lengths of the results, and the arrays one job after the other.
    """
    pieces = Pieces(folder)
    first, last = stretch(sizes, group)
    with group.all_or_none():
        found = pieces.load(first, last)
        todo = [job for job in range(first, last) if job not in found]
        started, done, total = time.monotonic(), 0.0, float(sizes[todo].sum())
        try:
            for job, result in _results(todo, work, n_threads):
                found[job] = result
                pieces.keep(job, result)
                done += float(sizes[job])
                say(f"{done / max(total, 1):.0%}, {left(started, done, total)} left")
        finally:
            pieces.flush()
    mine = [found[job] for job in range(first, last)]
    lengths = group.gather(np.array([len(result[0]) for result in mine], np.int64))
    # a process without a job learns from the others what a result looks like
    kinds = group.gather(np.array([array.dtype.str.encode() for array in mine[0]] if mine else [], "S8")).tolist()
    kinds = kinds[: max(group.gather(np.array([len(mine[0]) if mine else 0])).tolist(), default=0)]
    columns = []
    for i, kind in enumerate(kinds):
        part = np.concatenate([result[i] for result in mine]) if mine else np.empty(0, np.dtype(kind.decode()))
        columns.append(group.gather(part))
    return lengths, tuple(columns)


def _results(todo: list[int], work: Callable[[int], Found], n_threads: int) -> Iterator[tuple[int, Found]]:
    """Job and result, in order; a few jobs ahead by other threads."""
    if n_threads <= 1:
        for job in todo:
            yield job, work(job)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        for start in range(0, len(todo), 4 * n_threads):
            some = todo[start : start + 4 * n_threads]
            yield from zip(some, pool.map(work, some), strict=True)


def left(started: float, done: float, total: float) -> str:
    """Time that is left at the present rate, as people say it."""
    seconds = (time.monotonic() - started) * (total - done) / max(done, 1e-9)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
