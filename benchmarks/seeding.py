"""Seeding within groups against greedy k-means++ of scikit-learn: inertia after the same iterations, and time by k.

python -m benchmarks.seeding --rows 20000 --dim 64 -k 1000 --centroids-of-a-group 100
"""

import argparse
import statistics
import time

import numpy as np

from benchmarks.speed import long_tailed_mixture, mean_squared_distance
from curation.kmeans import grouped_seeding, kmeans, seeding
from foundation.command import run_command
from foundation.options import number_type

ITERATIONS = 20


def inertias(x: np.ndarray, k: int, seeds: int) -> dict[str, list[float]]:
    """Mean squared distance after ``ITERATIONS`` iterations of our k-means from each start, for each seed."""
    from sklearn.cluster import KMeans, kmeans_plusplus

    def fitted(start: np.ndarray) -> float:
        fit = KMeans(k, init=start, n_init=1, max_iter=ITERATIONS, tol=0, algorithm="lloyd").fit(x)
        return mean_squared_distance(x, fit.cluster_centers_)

    def ours(seed: int, work: float) -> float:
        seeding.GROUPED_WORK = work
        return mean_squared_distance(x, kmeans(x, k, seed=seed, max_iterations=ITERATIONS).centroids)

    return {
        "scikit-learn, greedy on all rows": [fitted(kmeans_plusplus(x, k, random_state=s)[0]) for s in range(seeds)],
        "ours, greedy on 16 rows for each": [ours(s, np.inf) for s in range(seeds)],
        "ours, within groups": [ours(s, 0.0) for s in range(seeds)],
    }


def seconds(k: int, dim: int, work: float) -> float:
    """Processor time of our seeding of k centroids on 16 k rows (a start without iterations)."""
    seeding.GROUPED_WORK = work
    x = long_tailed_mixture(seeding.SUBSAMPLE * k, dim, seed=k)
    started = time.process_time()
    kmeans(x, k, max_iterations=1)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=number_type(int, ge=1), default=20_000)
    parser.add_argument("--dim", type=number_type(int, ge=1), default=64)
    parser.add_argument("-k", type=number_type(int, ge=1), default=1000)
    parser.add_argument("--seeds", type=number_type(int, ge=0), default=3)
    parser.add_argument("--centroids-of-a-group", type=number_type(int, ge=1), default=grouped_seeding.OF_A_GROUP)
    parser.add_argument("--times", type=number_type(int, ge=1), nargs="*", default=[], help="k whose seeding is timed")
    options = parser.parse_args()
    grouped_seeding.OF_A_GROUP = options.centroids_of_a_group
    if options.times:
        seconds(64, options.dim, 0.0)  # compiles
    for k in options.times:
        at_once, grouped = seconds(k, options.dim, np.inf), seconds(k, options.dim, 0.0)
        print(f"k {k}: {at_once:.1f} s at once, {grouped:.1f} s within groups, one iteration included", flush=True)
    if options.seeds:
        x = long_tailed_mixture(options.rows, options.dim)
        found = inertias(x, options.k, options.seeds)
        base = statistics.mean(found["scikit-learn, greedy on all rows"])
        for name, values in found.items():
            print(f"{name}: {statistics.mean(values):.6g}, {statistics.mean(values) / base - 1:+.2%}", flush=True)


if __name__ == "__main__":
    run_command("benchmarks.seeding", main)
