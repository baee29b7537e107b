"""How balanced a subset is, by the labels that no method saw, and what that comes to over all cells and seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from benchmarks.balance.methods import METHODS
from benchmarks.balance.pools import CELLS, Pool
from benchmarks.balance.sources import Sources
from curation.trees.balance import kl_to_uniform, rarest_decile_coverage
from experiments.engine.results import Task
from experiments.simulated.data import NOISE
from foundation.files import checksum, digest_json

SUBSET = 4  # a subset is one row in so many
EVEN = 0.1  # KL of random rows, up to which a pool counts as even: there is no way to go
ROOT = Path(__file__).parents[2]
DECISIVE = ("foundation", "curation", "benchmarks/balance", "experiments/simulated/data.py")
PRESENTATION = ("page.py", "figure.py", "benchmark.py")


def subset_measures(pool: Pool, rows: Int[np.ndarray, "m"]) -> dict[str, float]:
    """Measures of a subset.

    Returns:
        ``rows``; ``kl`` of its rows of known concept to uniform over the pool's concepts, in nats; ``rare_concepts``
        and ``rare_rows``, the shares held of the tenth of concepts that is rarest in the pool and of their rows;
        ``junk`` and ``duplicates``, shares of its rows.
    """
    n_concepts = int(pool.concept_of.max()) + 1
    known = pool.concept_of[pool.concept_of != NOISE]
    taken = pool.concept_of[rows]
    counts = np.bincount(taken[taken != NOISE], minlength=n_concepts)
    rare_concepts, rare_rows = rarest_decile_coverage(np.bincount(known, minlength=n_concepts), counts)
    return {
        "rows": len(rows),
        "kl": kl_to_uniform(counts) if counts.any() else float(np.log(n_concepts)),
        "rare_concepts": rare_concepts,
        "rare_rows": rare_rows,
        "junk": float((taken == NOISE).mean()),
        "duplicates": float(pool.duplicate[rows].mean()),
    }


def share_of_way(kl: float, random: float, labels: float) -> float:
    """How far from random rows (0) to true labels (1); negative: worse than random rows."""
    return (random - kl) / (random - labels)


def code_digest() -> str:
    """Changes with the code that decides results, so that none is reused after a change of it."""
    files = [
        file for name in DECISIVE for file in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))
    ]
    return digest_json(
        {file.relative_to(ROOT).as_posix(): checksum(file) for file in files if file.name not in PRESENTATION}
    )


def tasks_of(cells: Sequence[str], methods: Sequence[str], seeds: Sequence[int], sources: Sources) -> list[Task]:
    """One task for each cell, seed and method; a pool is made once for the methods of a seed."""
    code = code_digest()
    pool_of = lru_cache(maxsize=1)(lambda name, seed: CELLS[name].pool(sources, seed))

    def task(name: str, method: str, seed: int) -> Task:
        def compute() -> dict[str, Any]:
            pool = pool_of(name, seed)
            found = subset_measures(pool, METHODS[method].draw(pool, len(pool.x) // SUBSET, seed))
            return {**found, "pool_rows": len(pool.x), "concepts": int(pool.concept_of.max()) + 1}

        cell = CELLS[name]
        settings = {"code": code, "cell": cell.settings, "files": cell.file_sizes()}
        return Task(name, method, seed, settings, compute)

    return [
        task(name, method, seed)
        for seed in seeds
        for name in cells
        for method in methods
        if not METHODS[method].for_bursts or CELLS[name].bursts
    ]


@dataclass(frozen=True)
class Entry:
    """One method in one cell.

    Attributes:
        kl: of each seed.
        way: share of the way of each seed; in an even cell, KL less that of random rows.
        means: mean over the seeds of every other measure.
    """

    kl: list[float]
    way: list[float]
    means: dict[str, float]

    @property
    def mean(self) -> float:
        return float(np.mean(self.way))

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; 0 for one."""
        return float(np.std(self.way, ddof=1)) if len(self.way) > 1 else 0.0


@dataclass(frozen=True)
class Table:
    """All entries, by cell and method, and which cells are even pools."""

    entries: Mapping[str, Mapping[str, Entry]]
    even: list[str]

    @property
    def uneven(self) -> list[str]:
        return [cell for cell in self.entries if cell not in self.even]

    def ways(self, method: str) -> dict[str, Entry]:
        """Entries of a method in the pools that are not even."""
        return {cell: self.entries[cell][method] for cell in self.uneven if method in self.entries[cell]}


def tabulate(records: Sequence[Mapping[str, Any]]) -> Table:
    """Results as a table; every cell has random rows and true labels of its seeds."""
    found: dict[str, dict[str, dict[int, dict[str, float]]]] = {}
    for record in records:
        found.setdefault(record["study"], {}).setdefault(record["row"], {})[record["seed"]] = record["result"]
    entries, even = {}, []
    for cell, methods in found.items():
        random, labels = methods["random"], methods["labels"]
        is_even = float(np.mean([result["kl"] for result in random.values()])) <= EVEN
        even += [cell] if is_even else []
        entries[cell] = {
            method: _entry({seed: (results[seed], random[seed], labels[seed]) for seed in results}, is_even)
            for method, results in methods.items()
        }
    return Table(entries, even)


def _entry(seeds: dict[int, tuple[dict[str, float], dict[str, float], dict[str, float]]], even: bool) -> Entry:
    kl, way = [], []
    for result, random, labels in seeds.values():
        kl.append(result["kl"])
        if even:
            way.append(result["kl"] - random["kl"])
        else:
            way.append(share_of_way(result["kl"], random["kl"], labels["kl"]))
    results = [result for result, _random, _labels in seeds.values()]
    return Entry(kl, way, {key: float(np.mean([result[key] for result in results])) for key in results[0]})
