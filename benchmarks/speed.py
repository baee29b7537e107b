"""Speed of k-means beside its peers: Lloyd from a given start, a grid of sizes, seeding, the toy of rings.

Every part names the units of the CPU that it ran on; a page keeps the runs of other kinds of CPU.
"""

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from curation import HierarchicalKMeans
from curation.kmeans.frame import Frame
from curation.kmeans.lloyd import fit_centroids
from curation.kmeans.seeding import seed_centroids
from curation.kmeans.settings import KMeansSettings
from curation.kmeans.tiles import MATRICES, PAIRS, has_feature
from curation.store.embeddings import open_embeddings
from experiments.engine.provenance import commits_of
from experiments.simulated.data import rings
from foundation.files import save_json
from foundation.tables import markdown_table
from foundation.threads import set_threads

# what each runtime reads as it is loaded; a part that torch or faiss decides by itself may still use more
AVX2_ALONE = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+64bit,+cmov,+cx8,+cx16,+fxsr,+mmx,+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+avx,+avx2,"
    "+fma,+f16c,+bmi,+bmi2,+popcnt,+lzcnt,+movbe,+xsave",
    "OPENBLAS_CORETYPE": "Haswell",
    "FAISS_OPT_LEVEL": "avx2",
    "FAISS_SIMD_LEVEL": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
GRID = [(dim, k) for dim in (64, 256, 768, 1536) for k in (100, 1000, 10_000)]
GRID_ROWS, GRID_ITERATIONS = 50_000, 3  # the first ones, in which nothing is skipped
PARTS = {
    "lloyd": "Lloyd iterations from the same start",
    "grid": f"Grid: {GRID_ITERATIONS} Lloyd iterations of {GRID_ROWS:,} rows from the same start",
    "seeding": "Seeding, then the same Lloyd iterations",
    "rings": "Toy of rings: 29,700 points in the plane, levels 1000 and 300, resampled 15 times and twice",
}
REFERENCES = {"seeding": "scikit-learn greedy k-means++"}  # else faiss


def units() -> str:
    """The units of the CPU that products run on here."""
    if os.environ.get("NUMBA_CPU_FEATURES") == AVX2_ALONE["NUMBA_CPU_FEATURES"]:
        return "restricted to AVX2"
    if MATRICES:
        return "amx_bf16"
    if PAIRS:
        return "avx512_bf16, no AMX"
    return next((name for name in ("avx512f", "avx2") if has_feature(name)), "no AVX2") + " without fast bfloat16"


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


def _timed(work: Callable[[], np.ndarray], clock: Callable[[], float] = time.perf_counter) -> tuple[float, np.ndarray]:
    started = clock()
    found = work()
    return clock() - started, found


Work = Callable[[], np.ndarray]


def _interleaved(
    works: dict[str, Work],
    repeats: int,
    judge: Callable[[np.ndarray], float] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """Name, seconds of every run, and what ``judge`` says of each result."""
    rows: list[dict[str, Any]] = [{"name": name, "seconds": [], "mean_squared_distance": []} for name in works]
    with tqdm(total=repeats * len(works), desc="benchmark", unit="run") as bar:
        for _repeat in range(repeats):
            for row, work in zip(rows, works.values(), strict=True):
                seconds, found = _timed(work, clock)
                row["seconds"].append(seconds)
                if judge is not None:
                    row["mean_squared_distance"].append(judge(found))
                bar.update()
    return rows


def _start(x: np.ndarray, k: int) -> np.ndarray:
    return x[np.sort(np.random.default_rng(1).choice(len(x), k, replace=False))]


def _lloyd(
    rows: int, dim: int, k: int, iterations: int, repeats: int, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    x = long_tailed_mixture(rows, dim)
    start = _start(x, k)
    peers: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
        "ours, auto precision": lambda x, n: _our_lloyd(x, start, n, "auto"),
        "ours, float32 products": lambda x, n: _our_lloyd(x, start, n, "float32"),
        "faiss.Kmeans": lambda x, n: _faiss_lloyd(x, start, n),
        "scikit-learn KMeans": lambda x, n: _scikit_lloyd(x, start, n),
    }
    for work in peers.values():  # compiled code and thread pools come up before the clock runs
        work(x[: 4 * k], 3)
    works: dict[str, Work] = {name: partial(work, x, iterations) for name, work in peers.items()}
    return _interleaved(works, repeats, lambda centroids: mean_squared_distance(x, centroids), clock)


def _grid(repeats: int) -> list[dict[str, Any]]:
    """As "lloyd" for ours and faiss; ``size`` says d and k."""
    found: list[dict[str, Any]] = []
    for dim in sorted({dim for dim, _k in GRID}):
        x = long_tailed_mixture(GRID_ROWS, dim)
        for work in (partial(_our_lloyd, precision="auto"), _faiss_lloyd):
            work(x[:400], x[:100], 20)  # so many that some centroids stay, which is code of its own to compile
        for k in [k for other, k in GRID if other == dim]:
            start = _start(x, k)
            works: dict[str, Work] = {
                "ours, auto precision": partial(_our_lloyd, x, start, GRID_ITERATIONS, "auto"),
                "faiss.Kmeans": partial(_faiss_lloyd, x, start, GRID_ITERATIONS),
            }
            found += [{"size": f"d {dim}, k {k}", **row} for row in _interleaved(works, repeats)]
    return found


def _seeding(rows: int, dim: int, k: int, iterations: int, repeats: int, skip_slow: bool) -> list[dict[str, Any]]:
    x = long_tailed_mixture(rows, dim)
    names = {"auto": "auto", "greedy k-means++": "kmeans++", "k-means||": "kmeans||", "random rows": "random"}
    works: dict[str, Work] = {}
    for name, strategy in names.items():
        works[f"ours, {name}"] = partial(_our_seeding, x, k, 0, strategy)
        _our_seeding(x[: 40 * 32], 32, 0, strategy)
    if not skip_slow:
        works[REFERENCES["seeding"]] = lambda: _scikit_seeding(x, k, 0)
    return _interleaved(works, repeats, lambda c: mean_squared_distance(x, _our_lloyd(x, c, iterations, "auto")))


def _rings(repeats: int) -> list[dict[str, Any]]:
    x = rings(0).x

    def fit(rows: np.ndarray, levels: list[int]) -> np.ndarray:
        return HierarchicalKMeans(levels=levels, n_resamples=[15, 2], progress=False).fit(rows).levels[0].centroids

    fit(x[::20], [100, 30])
    return _interleaved({"ours": lambda: fit(x, [1000, 300])}, repeats)


def run_part(
    part: str, threads: int, repeats: int, sizes: dict[str, int], skip_slow: bool, processor_time: bool = False
) -> list[dict[str, Any]]:
    """One of `PARTS`: name, seconds of every run, mean squared distance after the iterations.

    Args:
        sizes: rows, dim, k, iterations, for "lloyd" and "seeding".
        processor_time: of "lloyd", seconds of the processor and not of the clock.
    """
    set_threads(threads)
    if part in ("lloyd", "grid"):
        import faiss

        faiss.omp_set_num_threads(threads)
    if part == "lloyd":
        return _lloyd(**sizes, repeats=repeats, clock=time.process_time if processor_time else time.perf_counter)
    if part == "seeding":
        return _seeding(**sizes, repeats=repeats, skip_slow=skip_slow)
    return _grid(repeats) if part == "grid" else _rings(repeats)


def keep(path: Path, run: dict[str, Any]) -> list[dict[str, Any]]:
    """Add a run to the file of all, in place of the one of this part on this kind of CPU; all runs."""
    runs = json.loads(path.read_text()).get("runs", []) if path.exists() else []
    key = run["part"], run["units"], run["source"]["device"]
    runs = [other for other in runs if (other["part"], other["units"], other["source"]["device"]) != key] + [run]
    save_json(path, {"runs": runs})
    return runs


def markdown(runs: list[dict[str, Any]]) -> str:
    """All runs as a page; ratios are medians of the ratios run by run."""
    lines = ["# Speed of k-means", ""]
    lines += [
        "Runs of a table are interleaved; the mean squared distance comes from one float64 evaluator. *Restricted to"
    ]
    lines += ["AVX2* is a newer CPU whose runtimes were told to use AVX2 alone, ours and the peers'.", ""]
    for part, title in PARTS.items():
        for run in (run for run in runs if run["part"] == part):
            source = run["source"]
            lines += [f"## {title}: {run['units']}", "", f"`{run['command']}`", ""]
            lines += [f"Commit {commits_of([source])}, {source['device']}, load {run['load']:.1f} at the start.", ""]
            lines += [f"Versions: {source['versions']}.", ""]
            lines += [_table(run["rows"], REFERENCES.get(part, "faiss.Kmeans")), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(rows: list[dict[str, Any]], reference: str) -> str:
    """One line for each row; times faster than the reference of the same size, where there is one."""
    cells = []
    for row in rows:
        times = row["seconds"]
        peer = next((r for r in rows if r["name"] == reference and r.get("size") == row.get("size")), None)
        ratio = "-" if peer is None else f"{np.median(np.array(peer['seconds']) / np.array(times)):.1f}"
        name = ", ".join(part for part in (row.get("size"), row["name"]) if part)
        error = f"{np.mean(row['mean_squared_distance']):.5f}" if row["mean_squared_distance"] else "-"
        cells.append([name, f"{np.median(times):.2f} ({min(times):.2f} to {max(times):.2f})", ratio, error])
    header = ["", "seconds: median (min to max)", f"times faster than {reference}", "mean squared distance"]
    return markdown_table(header, cells)
