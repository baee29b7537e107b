"""The KL table: how far the final centroids of each clustering are from uniform on the paper's 2-D mixture."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from curation import HierarchicalKMeans
from curation.kmeans import kmeans
from curation.trees.balance import kde_kl_to_uniform
from experiments.engine.results import Task
from experiments.simulated.data import mixture
from foundation.settings import Count, CountOrZero, Positive, check

DBSCAN_EPS, DBSCAN_MIN_SAMPLES = 0.1, 5


@dataclass(frozen=True)
class TableSettings:
    """Section ``science.studies.table`` of the config; names as there."""

    three_levels: list[Count]
    two_levels: list[Count]
    sample_size: CountOrZero
    n_resamples: CountOrZero
    max_iterations: Count
    bandwidth: Positive
    grid_step: Positive
    peers: bool

    def __post_init__(self) -> None:
        check(self)


def row_titles(settings: TableSettings) -> dict[str, str]:
    """Row -> how the report names it, in the order of the paper."""
    two, three = (", ".join(map(str, levels)) for levels in (settings.two_levels, settings.three_levels))
    k = settings.three_levels[-1]
    titles = {
        "raw": "raw points",
        "kmeans": f"k-means, {k}",
        "two_levels": f"hierarchical, {two}",
        "three_levels": f"hierarchical, {three}",
        "resampled": f"hierarchical, {three}, resampling (r={settings.sample_size}, m={settings.n_resamples})",
        "floor": f"floor: {k} uniform random points",
    }
    peers = {
        "dbscan": f"DBSCAN, cluster means (eps {DBSCAN_EPS}, min_samples {DBSCAN_MIN_SAMPLES})",
        "agglomerative": f"agglomerative (Ward), {k}",
    }
    return titles | peers if settings.peers else titles


def _tree(levels: Sequence[int], n_resamples: int, settings: TableSettings, seed: int, device: str) -> np.ndarray:
    tree = HierarchicalKMeans(
        list(levels),
        n_resamples=n_resamples,
        sample_sizes=settings.sample_size,
        max_iterations=settings.max_iterations,
        seed=seed,
        device=device,
        progress=False,
    ).fit(mixture(seed))
    return tree.levels[-1].centroids


def _agglomerative(seed: int, k: int) -> np.ndarray:
    from sklearn.cluster import AgglomerativeClustering

    x = mixture(seed)
    labels = AgglomerativeClustering(k).fit_predict(x)
    return np.stack([x[labels == cluster].mean(axis=0) for cluster in range(k)])


def _dbscan(seed: int) -> np.ndarray:
    from sklearn.cluster import DBSCAN

    x = mixture(seed)
    labels = DBSCAN(eps=DBSCAN_EPS, min_samples=DBSCAN_MIN_SAMPLES).fit_predict(x)
    return np.stack([x[labels == cluster].mean(axis=0) for cluster in range(labels.max() + 1)])


def final_points(row: str, seed: int, settings: TableSettings, device: str = "cpu") -> Float[np.ndarray, "k 2"]:
    """(k, 2) points whose density the row is about: the centroids of its last level."""
    k, m, three = settings.three_levels[-1], settings.n_resamples, settings.three_levels
    makers: dict[str, Callable[[], np.ndarray]] = {
        "raw": lambda: mixture(seed),
        "kmeans": lambda: (
            kmeans(mixture(seed), k, seed=seed, max_iterations=settings.max_iterations, device=device).centroids
        ),
        "two_levels": lambda: _tree(settings.two_levels, 0, settings, seed, device),
        "three_levels": lambda: _tree(three, 0, settings, seed, device),
        "resampled": lambda: _tree(three, m, settings, seed, device),
        "floor": lambda: np.random.default_rng([seed, 6]).uniform(-3, 3, (k, 2)),
        "dbscan": lambda: _dbscan(seed),
        "agglomerative": lambda: _agglomerative(seed, k),
    }
    return makers[row]()


def table_tasks(settings: TableSettings, seeds: Sequence[int], device: str = "cpu") -> list[Task]:
    """One task for each (row, seed); its result has ``kl`` in nats and, but for the raw points, ``points``."""

    def compute(row: str, seed: int) -> dict[str, Any]:
        points = final_points(row, seed, settings, device)
        kl = kde_kl_to_uniform(points, bandwidth=settings.bandwidth, step=settings.grid_step)
        kept = [] if row == "raw" else np.round(points, 5).tolist()
        return {"kl": kl, "n_points": len(points), "points": kept}

    decisive = {key: value for key, value in asdict(settings).items() if key != "peers"}
    return [
        Task("table", row, seed, decisive, lambda row=row, seed=seed: compute(row, seed))  # type: ignore[misc]
        for row in row_titles(settings)
        for seed in seeds
    ]
