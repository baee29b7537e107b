"""The benchmark from pools to page: finished results are kept, cells without their data are skipped and named."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.balance.figure import balance_figure
from benchmarks.balance.measure import tabulate, tasks_of
from benchmarks.balance.page import page
from benchmarks.balance.pools import CELLS
from benchmarks.balance.sources import Sources
from experiments.engine.inputs import DATA
from experiments.engine.provenance import provenance
from experiments.engine.results import run_tasks
from foundation.errors import CurationError
from foundation.files import digest_json, save_json, write_atomically
from foundation.options import whole_numbers
from foundation.settings import LARGEST_SEED, Range, nearest_name


def chosen(text: str, names: Iterable[str], what: str) -> list[str]:
    """Names of a list with commas, in the order of ``names``; all for an empty one.

    Raises:
        CurationError: there is no such name.
    """
    known = list(names)
    asked = [name.strip() for name in text.split(",") if name.strip()]
    for name in asked:
        if name not in known:
            raise CurationError(f"there is no {what} {name!r}; {nearest_name(name, known)}")
    return [name for name in known if name in asked or not asked]


def parse_seeds(text: str) -> list[int]:
    """Seeds of a list with commas, each once.

    Raises:
        CurationError: not such a list.
    """
    return sorted(set(whole_numbers(text, "--seeds", Range(ge=0, le=LARGEST_SEED))))


def available(cells: Sequence[str]) -> tuple[list[str], list[str]]:
    """Cells whose data are here, and a line for each other that names the files it lacks."""
    lines = {}
    for name in cells:
        lacking = CELLS[name].missing()
        if lacking:
            lines[name] = f"{CELLS[name].title} ({', '.join(path.name for path in lacking)})"
    return [name for name in cells if name not in lines], list(lines.values())


def run_benchmark(
    output: Path, work: Path, cells: Sequence[str], methods: Sequence[str], seeds: str, command: str, threads: int = 1
) -> None:
    """Write the page, ``.json`` beside it, and ``images/balance.png``.

    Args:
        work: gets ``embeddings/`` and ``results/``; what is there is not made again.

    Raises:
        CurationError: seeds that are none, or no cell has its data.
    """
    numbers = parse_seeds(seeds)
    here, missing = available(cells)
    for line in missing:
        print(f"skipped: {line}")
    if not here:
        raise CurationError(f"none of the cells has its data; set {DATA} to the folder of domains/, text/, cifar10/")
    sources = Sources(work / "embeddings")
    methods = list(dict.fromkeys(["random", "labels", *methods]))
    records = run_tasks(tasks_of(here, methods, numbers, sources), work / "results", provenance("cpu", threads))
    table = tabulate(records)
    text = page(table, records, numbers, command, missing, f"{output.stem}.png")
    balance_figure(table, output.parent / "images" / f"{output.stem}.png")
    write_atomically(output, lambda stream: stream.write(text.encode()))
    entries = {cell: {name: asdict(entry) for name, entry in row.items()} for cell, row in table.entries.items()}
    found = {"command": command, "seeds": numbers, "even": table.even, "skipped": missing, "cells": entries}
    made = {digest_json(record["provenance"]): record["provenance"] for record in records}
    save_json(output.with_suffix(".json"), {**found, "source": list(made.values())})
