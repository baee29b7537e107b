"""Ablations on toys of known concepts: levels, resampling steps, r_t, and how the subset is drawn.

Every variant changes one switch of the base: all levels, m resamplings, the toy's r_t, members closest to the
centroid resampled, balanced sampling, random rows within a cluster.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from curation import ClusterTree, HierarchicalKMeans
from curation.trees.balance import kl_to_uniform
from experiments.engine.results import Task
from experiments.simulated.data import NOISE, TOYS, Toy
from foundation.settings import Count, CountOrZero, check


@dataclass(frozen=True)
class ToySettings:
    """One of ``science.studies.ablations.toys``: levels, r_t of each (0: half the mean cluster size), subset size."""

    levels: list[Count]
    sample_sizes: list[CountOrZero]
    target: Count

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class AblationSettings:
    """Section ``science.studies.ablations`` of the config; names as there."""

    n_resamples: CountOrZero
    max_iterations: Count
    names: list[str]
    n_seeds: Count
    toys: dict[str, Any]

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class TreeSpec:
    """What decides the tree of a variant."""

    levels: tuple[int, ...]
    sample_sizes: tuple[int, ...]
    n_resamples: int
    resample_strategy: str = "closest"


@dataclass(frozen=True)
class Variant:
    """One row of the ablation: the switch that it belongs to, its tree, and how the subset is drawn."""

    switch: str
    title: str
    tree: TreeSpec
    strategy: str = "random"
    method: str = "balanced"


def variants(toy: ToySettings, n_resamples: int) -> dict[str, Variant]:
    """Row -> variant; "base" stands under no switch. Levels are dropped from the finest up, the last one stays."""
    base = TreeSpec(tuple(toy.levels), tuple(toy.sample_sizes), n_resamples)
    rows = {
        "random_rows": Variant("", "no clustering: random rows", base, method="random"),
        "base": Variant("", "base", base),
    }
    for n in range(1, len(toy.levels)):
        # the lowest level left now clusters the rows: its r_t is half the mean cluster size again
        levels, sizes = base.levels[-n:], (0, *base.sample_sizes[len(base.levels) - n + 1 :])
        spec = replace(base, levels=levels, sample_sizes=sizes)
        rows[f"levels{n}"] = Variant("levels", f"{n} level{'s' * (n > 1)}: {', '.join(map(str, levels))}", spec)
    for m in sorted({0, 1, 3} - {n_resamples}):
        rows[f"steps{m}"] = Variant("resampling steps", f"m = {m}", replace(base, n_resamples=m))
    # with r_t = 1 a resampled set has k points, so that k-means only moves each centroid to its closest member
    for word, r in (("one", 1), ("two", 2)):
        spec = replace(base, sample_sizes=(r,) * len(base.levels))
        rows[f"r_{word}"] = Variant("r_t", f"r_t = {r} at every level", spec)
    random = replace(base, resample_strategy="random")
    rows["r_random"] = Variant("r_t", "r_t of the base, members at random", random)
    rows["closest"] = Variant("sampling", "balanced, closest first", base, strategy="closest")
    rows["furthest"] = Variant("sampling", "balanced, furthest first", base, strategy="furthest")
    rows["flat"] = Variant("sampling", "flat: level-1 clusters alone", base, method="flat")
    return rows


def subset_measures(toy: Toy, rows: np.ndarray) -> dict[str, float]:
    """KL to uniform over all concepts of the subset's rows that have one; shares of copies and background."""
    concepts = toy.concept_of[rows]
    counts = np.bincount(concepts[concepts != NOISE], minlength=toy.n_concepts)
    return {
        "kl": kl_to_uniform(counts, toy.n_concepts),
        "concepts": int((counts > 0).sum()),
        "noise_share": float((concepts == NOISE).mean()),
        "duplicate_share": float(toy.duplicate[rows].mean()),
    }


class _Trees:
    """The trees of one toy and seed: variants that differ in how they sample share one."""

    def __init__(self, max_iterations: int, device: str):
        self.max_iterations, self.device = max_iterations, device
        self.at: tuple[str, int] | None = None
        self.toy: Toy | None = None
        self.trees: dict[TreeSpec, ClusterTree] = {}

    def get(self, name: str, seed: int, spec: TreeSpec) -> tuple[Toy, ClusterTree]:
        if self.at != (name, seed) or self.toy is None:
            self.at, self.toy, self.trees = (name, seed), TOYS[name](seed), {}
        if spec not in self.trees:
            self.trees[spec] = HierarchicalKMeans(
                list(spec.levels),
                n_resamples=spec.n_resamples,
                sample_sizes=list(spec.sample_sizes),
                resample_strategy=spec.resample_strategy,
                max_iterations=self.max_iterations,
                seed=seed,
                device=self.device,
                progress=False,
            ).fit(self.toy.x)
        return self.toy, self.trees[spec]


def ablation_tasks(
    settings: AblationSettings, toys: dict[str, ToySettings], seeds: Sequence[int], device: str = "cpu"
) -> list[Task]:
    """One task for each (toy, seed, variant); tasks of one toy and seed stand together and share their trees."""
    trees = _Trees(settings.max_iterations, device)

    def compute(name: str, seed: int, variant: Variant) -> dict[str, Any]:
        if variant.method == "random":
            toy = TOYS[name](seed)
            rows = np.random.default_rng(seed).choice(len(toy.x), toys[name].target, replace=False)
        else:
            toy, tree = trees.get(name, seed, variant.tree)
            rows = tree.sample(toys[name].target, strategy=variant.strategy, method=variant.method, seed=seed)
        return subset_measures(toy, rows)

    tasks = []
    for name in settings.names:
        for seed in seeds[: settings.n_seeds]:
            for row, variant in variants(toys[name], settings.n_resamples).items():
                decisive = asdict(variant) | {"target": toys[name].target, "max_iterations": settings.max_iterations}
                decisive = {key: value for key, value in decisive.items() if key not in ("switch", "title")}
                make = lambda name=name, seed=seed, variant=variant: compute(name, seed, variant)  # noqa: E731
                tasks.append(Task(f"ablation_{name}", row, seed, decisive, make))
    return tasks
