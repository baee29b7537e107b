"""Speed of k-means beside its peers: Lloyd from a given start, seeding, and the inertia that each reaches."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from curation.embeddings import open_embeddings
from curation.kmeans import kmeans
from curation.kmeans.frame import Frame
from curation.kmeans.lloyd import fit_centroids
from curation.kmeans.seeding import seed_centroids
from curation.kmeans.settings import KMeansSettings
from experiments.engine.provenance import commits_of
from foundation.tables import markdown_table


def long_tailed_mixture(n: int, dim: int, n_concepts: int = 2000, noise: float = 0.06, seed: int = 0) -> np.ndarray:
    """(n, dim) float32 unit vectors around ``n_concepts`` directions with Zipf sizes."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(n_concepts, dim))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    weights = 1 / np.arange(1, n_concepts + 1)
    labels = rng.choice(n_concepts, n, p=weights / weights.sum())
    rows = directions[labels] + noise * rng.normal(size=(n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def mean_squared_distance(x: np.ndarray, centroids: np.ndarray) -> float:
    """The one evaluator: float64, block by block."""
    points = torch.from_numpy(np.asarray(centroids)).double()
    norms, total = points.square().sum(dim=1), 0.0
    for block in torch.from_numpy(x).split(4096):
        rows = block.double()
        squared = rows.square().sum(dim=1)[:, None] - 2 * rows @ points.T + norms
        total += float(squared.min(dim=1).values.clamp(min=0).sum())
    return total / len(x)


def _faiss_lloyd(x: np.ndarray, start: np.ndarray, iterations: int) -> np.ndarray:
    import faiss

    k, dim = start.shape
    trained = faiss.Kmeans(dim, k, niter=iterations, max_points_per_centroid=len(x), min_points_per_centroid=1)
    trained.train(x, init_centroids=start)
    return np.asarray(trained.centroids)


def _scikit_lloyd(x: np.ndarray, start: np.ndarray, iterations: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    return (
        KMeans(len(start), init=start, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd").fit(x).cluster_centers_
    )


def _our_lloyd(x: np.ndarray, start: np.ndarray, iterations: int, precision: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    source = open_embeddings(x)
    settings = KMeansSettings(max_iterations=iterations, precision=precision)
    return fit_centroids(source, len(start), rng, settings, initial=start)[0]


def _scikit_seeding(x: np.ndarray, k: int, seed: int) -> np.ndarray:
    from sklearn.cluster import kmeans_plusplus

    return kmeans_plusplus(x, k, random_state=seed)[0]


def _our_seeding(x: np.ndarray, k: int, seed: int, strategy: str) -> np.ndarray:
    return seed_centroids(open_embeddings(x), k, Frame(), np.random.default_rng(seed), strategy).numpy()


def _timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def run_benchmark(
    rows: int, dim: int, k: int, iterations: int, repeats: int, threads: int, skip_slow: bool
) -> dict[str, list[dict[str, Any]]]:
    """Lloyd and seeding of everyone, interleaved ``repeats`` times after one warm-up on little data.

    Returns:
        "lloyd" and "seeding": name, seconds of every run, mean squared distance after ``iterations``.
    """
    import faiss

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    x = long_tailed_mixture(rows, dim)
    start = x[np.sort(np.random.default_rng(1).choice(rows, k, replace=False))]
    lloyd: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
        "ours, auto precision": lambda x, start, n: _our_lloyd(x, start, n, "auto"),
        "ours, float32 products": lambda x, start, n: _our_lloyd(x, start, n, "float32"),
        "faiss.Kmeans": _faiss_lloyd,
        "scikit-learn KMeans": _scikit_lloyd,
    }
    seeding: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
        "ours, auto": lambda x, k, seed: _our_seeding(x, k, seed, "auto"),
        "ours, greedy k-means++": lambda x, k, seed: _our_seeding(x, k, seed, "kmeans++"),
        "ours, k-means||": lambda x, k, seed: _our_seeding(x, k, seed, "kmeans||"),
        "random rows": lambda x, k, seed: _our_seeding(x, k, seed, "random"),
    }
    if not skip_slow:
        seeding["scikit-learn greedy k-means++"] = _scikit_seeding
    for work in lloyd.values():  # compiled code and thread pools come up before the clock runs
        work(x[: 4 * k], start, 1)
    for seed_work in seeding.values():
        seed_work(x[: 40 * 32], 32, 0)
    kmeans(x[: 4 * k], min(64, k), max_iterations=1)
    found: dict[str, dict[str, dict[str, Any]]] = {"lloyd": {}, "seeding": {}}
    with tqdm(total=repeats * (len(lloyd) + len(seeding)), desc="benchmark", unit="run") as bar:
        for repeat in range(repeats):
            for name, work in lloyd.items():
                seconds, centroids = _timed(lambda work=work: work(x, start, iterations))  # type: ignore[misc]
                row = found["lloyd"].setdefault(name, {"name": name, "seconds": [], "mean_squared_distance": []})
                row["seconds"].append(seconds)
                row["mean_squared_distance"].append(mean_squared_distance(x, centroids))
                bar.update()
            for name, seed_work in seeding.items():
                seconds, seeds = _timed(lambda w=seed_work, r=repeat: w(x, k, r))  # type: ignore[misc]
                row = found["seeding"].setdefault(name, {"name": name, "seconds": [], "mean_squared_distance": []})
                row["seconds"].append(seconds)
                after = _our_lloyd(x, seeds, iterations, "auto")
                row["mean_squared_distance"].append(mean_squared_distance(x, after))
                bar.update()
    return {part: list(rows_.values()) for part, rows_ in found.items()}


def markdown(results: dict[str, list[dict[str, Any]]], command: str, source: dict[str, Any]) -> str:
    """The results as a page; ratios are medians of the ratios run by run."""
    references = {"lloyd": "faiss.Kmeans", "seeding": "scikit-learn greedy k-means++"}
    titles = {"lloyd": "Lloyd iterations from the same start", "seeding": "Seeding, then the same Lloyd iterations"}
    lines = ["# Speed of k-means", "", f"`{command}`", ""]
    lines += [f"Commit {commits_of([source])}, {source['device']}.", f"Versions: {source['versions']}.", ""]
    lines += ["Runs of all rows are interleaved; the mean squared distance comes from one float64 evaluator.", ""]
    for part, rows in results.items():
        reference = next((row for row in rows if row["name"] == references[part]), rows[-1])
        lines += [f"## {titles[part]}", ""]
        cells = []
        for row in rows:
            ratio = np.median(np.array(reference["seconds"]) / np.array(row["seconds"]))
            times = row["seconds"]
            seconds = f"{np.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"
            cells.append([row["name"], seconds, f"{ratio:.1f}", f"{np.mean(row['mean_squared_distance']):.5f}"])
        faster = f"times faster than {reference['name']}"
        lines.append(markdown_table(["", "seconds: median (min to max)", faster, "mean squared distance"], cells))
    return "\n".join(lines)
