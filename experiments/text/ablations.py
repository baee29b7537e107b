"""What makes a subset of passages flat over domains: clusters, levels, resampling, order of members, copies.

No training: the measure is the KL to uniform of the subset's domains, which the method never sees.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from curation import ClusterTree, HierarchicalKMeans
from curation.trees.balance import kl_to_uniform
from experiments.engine.results import Task
from foundation.files import checksum
from foundation.settings import Count, CountOrZero, check


@dataclass(frozen=True)
class Studies:
    """Section ``science.studies``.

    Attributes:
        levels: of the base, finest first; without resampling, members at random, each once.
        other_levels: variants of them.
        n_resamples: steps of the variant with resampling, at half the mean cluster size.
        max_copies: of the variant whose passages may repeat.
    """

    levels: list[Count]
    other_levels: list[list[Count]]
    n_resamples: CountOrZero
    max_copies: Count

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Variant:
    """One row: a tree, and how the subset is drawn from it."""

    switch: str
    title: str
    levels: tuple[int, ...]
    n_resamples: int = 0
    strategy: str = "random"
    method: str = "balanced"
    max_copies: int = 1


def variants(studies: Studies) -> dict[str, Variant]:
    """Row -> variant; each differs from "base" by one switch."""
    base = Variant("", f"base: levels {_shown(studies.levels)}", tuple(studies.levels))
    found = {"base": base, "random": replace(base, title="no clusters: random passages", method="random")}
    for levels in studies.other_levels:
        title = f"levels {_shown(levels)}"
        found[f"levels_{'_'.join(map(str, levels))}"] = replace(base, switch="clusters", title=title, levels=(*levels,))
    steps = f"{studies.n_resamples} resampling steps"
    found["resampled"] = replace(base, switch="resampling", title=steps, n_resamples=studies.n_resamples)
    found["closest"] = replace(base, switch="members", title="closest to the centroid first", strategy="closest")
    copies = f"up to {studies.max_copies} copies of a passage"
    found["copies"] = replace(base, switch="copies", title=copies, max_copies=studies.max_copies)
    return found


def _shown(levels: Any) -> str:
    return ", ".join(map(str, levels))


def tasks(studies: Studies, prepared: dict[int, Path], size: int, max_iterations: int) -> Iterator[Task]:
    """One for each variant and seed; a tree is fitted once for the variants that share it.

    Args:
        prepared: seed -> folder of its stage `prepare`.
        size: passages of a subset.
    """
    trees: dict[tuple[int, tuple[int, ...], int], ClusterTree] = {}

    def compute(variant: Variant, seed: int, folder: Path) -> dict[str, Any]:
        key = (seed, variant.levels, variant.n_resamples)
        if key not in trees:
            x = np.load(folder / "embeddings.npy", allow_pickle=False)
            fit = HierarchicalKMeans(
                variant.levels,
                n_resamples=variant.n_resamples,
                max_iterations=max_iterations,
                seed=seed,
                progress=False,
            )
            trees.clear()  # variants of one tree follow each other
            trees[key] = fit.fit(x)
        rows = trees[key].sample(size, variant.strategy, variant.max_copies, seed, variant.method)
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        counts = np.bincount(labels[rows], minlength=int(labels.max()) + 1)
        return {"kl": kl_to_uniform(counts), "distinct": len(np.unique(rows)), "domains": int((counts > 0).sum())}

    ordered = sorted(variants(studies).items(), key=lambda item: (item[1].levels, item[1].n_resamples))
    for seed, folder in prepared.items():
        content = {"pool": checksum(folder / "rows.npy"), "size": size, "max_iterations": max_iterations}
        for row, variant in ordered:
            settings = {**content, **{k: v for k, v in vars(variant).items() if k not in ("title", "switch")}}
            yield Task(
                "text_balance",
                row,
                seed,
                settings,
                lambda variant=variant, seed=seed, folder=folder: compute(variant, seed, folder),  # type: ignore[misc]
            )
