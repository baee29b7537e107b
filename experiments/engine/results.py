"""Finished results, one small JSON file for each (study, row, seed): a killed run loses at most the one it was at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from foundation.files import digest_json, load_json, save_json

CODE_VERSION = 1  # raise it when the code of an experiment changes what comes out: old files are then not reused


@dataclass(frozen=True)
class Task:
    """One result to compute.

    Attributes:
        study: table of the report, such as "table".
        row: row of that table.
        seed: of data and method.
        settings: everything else that decides the result, as JSON.
        compute: gives the result as JSON.
    """

    study: str
    row: str
    seed: int
    settings: dict[str, Any]
    compute: Callable[[], dict[str, Any]]

    @property
    def key(self) -> str:
        return digest_json([CODE_VERSION, self.study, self.row, self.seed, self.settings])[:10]

    def file(self, folder: Path) -> Path:
        return folder / self.study / f"{self.row}-seed{self.seed}-{self.key}.json"


def run_tasks(
    tasks: Sequence[Task], folder: Path, provenance: dict[str, Any], fresh: bool = False, progress: bool = True
) -> list[dict[str, Any]]:
    """Compute what is not on disk yet and return all results, in the order of ``tasks``.

    Args:
        tasks: what to compute.
        folder: where the results lie.
        provenance: commit, versions, device: written into every new result.
        fresh: compute all again.

    Returns:
        One dict a task: study, row, seed, settings, provenance, and ``result``.

    Raises:
        CurationError: a result file is not whole (made by another program), or the disk is full.
    """
    waiting = [task for task in tasks if fresh or not task.file(folder).exists()]
    print(f"{len(tasks)} results: {len(tasks) - len(waiting)} finished before and skipped, {len(waiting)} to compute")
    with tqdm(waiting, unit="result", disable=not progress) as bar:
        for task in bar:
            bar.set_description(f"{task.study}, {task.row}, seed {task.seed}")
            record = {"study": task.study, "row": task.row, "seed": task.seed, "settings": task.settings}
            save_json(task.file(folder), record | {"provenance": provenance, "result": task.compute()})
    return [load_json(task.file(folder)) for task in tasks]


def grouped(records: Sequence[dict[str, Any]], study: str, measure: str) -> dict[str, list[float]]:
    """row -> values of ``measure`` over the seeds, rows in the order of ``records``."""
    found: dict[str, list[float]] = {}
    for record in records:
        if record["study"] == study:
            found.setdefault(record["row"], []).append(record["result"][measure])
    return found
