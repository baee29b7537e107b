"""Whole jobs of curation, each in a process of its own, with time and peak memory: what a user waits for.

python -m benchmarks.scale rings
python -m benchmarks.scale memmap --rows 1000000 --dim 384 --levels 10000 1000 100 --resamples 0 10 10
python -m benchmarks.scale sampling --rows 10000000 --clusters 100000
"""

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from curation import ClusterTree, HierarchicalKMeans
from curation.group import joined
from curation.plan import calibrate, plan
from curation.trees.balance import kl_to_uniform
from curation.trees.tree import Level
from experiments.simulated.data import rings
from foundation.command import run_command
from foundation.options import Parser, number_type
from foundation.threads import set_threads


def write_mixture(path: Path, rows: int, dim: int, n_concepts: int = 20_000, seed: int = 0) -> None:
    """(rows, dim) float16 ``.npy`` of unit vectors around directions with Zipf sizes, written block by block."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(n_concepts, dim)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    shares = 1 / np.arange(1, n_concepts + 1)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(rows, dim))
    for start in range(0, rows, 50_000):
        n = min(50_000, rows - start)
        labels = rng.choice(n_concepts, n, p=shares / shares.sum())
        block = directions[labels] + 0.8 * dim**-0.5 * rng.standard_normal((n, dim), dtype=np.float32)
        out[start : start + n] = block / np.linalg.norm(block, axis=1, keepdims=True)
    out.flush()


def run_rings(threads: int) -> dict[str, Any]:
    """Two levels of 1000 and 300, r_t 15 and 2, 10 resamplings on 29,700 points."""
    toy = rings(0)
    fit = HierarchicalKMeans([1000, 300], n_resamples=10, sample_sizes=[15, 2], progress=False)
    HierarchicalKMeans([40, 10], n_resamples=1, sample_sizes=[5, 2], progress=False).fit(toy.x[:2000])  # compile
    started, used = time.perf_counter(), time.process_time()
    tree = fit.fit(toy.x)
    taken = {"seconds": time.perf_counter() - started, "processor_seconds": time.process_time() - used}
    drawn = toy.concept_of[tree.sample(1000, seed=0)]
    return {**taken, "kl": kl_to_uniform(np.bincount(drawn, minlength=toy.n_concepts))}


def run_memmap(
    path: Path, levels: list[int], resamples: list[int], iterations: int, save_to: Path, fit_rows: int = 0
) -> dict[str, Any]:
    """Hierarchical k-means of a file; the plan's prediction, made before by a process alone, stands beside the time."""
    x = np.load(path, mmap_mode="r")
    settings: dict[str, Any] = {"n_resamples": resamples, "max_iterations": iterations, "fit_rows": fit_rows}
    expected = plan(len(x), x.shape[1], levels, calibrate(6.0), dtype="float16", **settings)
    with joined() as (group, _):
        fit = HierarchicalKMeans(levels, progress=False, **settings)
        fit.work_dir = save_to.with_name("work") if group.size > 1 else None
        group.barrier()
        started, used = time.perf_counter(), time.process_time()
        tree = fit.fit(str(path), save_to, group)
        taken = {"seconds": time.perf_counter() - started, "processor_seconds": time.process_time() - used}
    return {**taken, "planned_seconds": expected.seconds, "planned_memory": expected.memory} | {
        "inertia": [float(np.asarray(level.distance, np.float64).sum()) for level in tree.levels],
        "tree": tree.checksum,
    }


def run_sampling(rows: int, clusters: int, size: int) -> dict[str, Any]:
    """Balanced samples of a tree with three levels and Zipf cluster sizes."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, clusters + 1)
    lowest = rng.choice(clusters, rows, p=shares / shares.sum())
    lowest[:clusters] = np.arange(clusters)
    assignments = [lowest, np.arange(clusters) % (clusters // 100), np.arange(clusters // 100) % (clusters // 1000)]
    levels = []
    for assignment in assignments:
        k, n = int(assignment.max()) + 1, len(assignment)
        distance = rng.random(n, dtype=np.float32)
        levels.append(Level(np.zeros((k, 1), np.float32), assignment.astype(np.int64), distance, None, None, {}))
    tree = ClusterTree(levels, {"metric": "l2"}, None)
    found: dict[str, Any] = {}
    for name in ("random", "closest", "random, again"):  # the first call sorts the rows by cluster, later ones do not
        started = time.perf_counter()
        drawn = tree.sample(size, strategy=name.split(",")[0], seed=0)
        found[name] = time.perf_counter() - started
        found["rows"] = len(drawn)
    return found


def in_own_process(arguments: list[str]) -> dict[str, Any]:
    """What ``python -m benchmarks.scale <arguments>`` found, with its peak resident memory in bytes."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.scale", *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"the job {' '.join(arguments)} failed with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def in_processes(n: int, rows: int, dim: int, arguments: list[str]) -> dict[str, Any]:
    """`in_own_process` of the job memmap by ``n`` processes of one thread; the memory is that of the largest."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as server:
        path = Path(folder) / "x.npy"
        make_mixture(path, rows, dim)
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        server.close()
        place = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [
            sys.executable,
            "-m",
            "benchmarks.scale",
            "memmap",
            *arguments,
            "--threads",
            "1",
            "--file",
            str(path),
        ]
        running = [
            subprocess.Popen(
                [*command, "--save", f"{folder}/tree"],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(n)
        ]
        found = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"the job {' '.join(arguments)} failed in one of {n} processes")
    results = [json.loads(text.splitlines()[-1]) for text in found]
    return {**results[0], "peak_rss": max(result["peak_rss"] for result in results)}


def make_mixture(path: Path, rows: int, dim: int) -> None:
    """`write_mixture` in a process of its own: its memory is not the job's."""
    code = "import sys; from pathlib import Path; from benchmarks.scale import write_mixture; "
    code += "write_mixture(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))"
    subprocess.run([sys.executable, "-c", code, str(path), str(rows), str(dim)], check=True)


def main() -> None:
    """One job; prints JSON with its result and the peak resident memory of this process."""

    parser = Parser(__doc__)
    parser.add_argument("job", choices=["rings", "memmap", "sampling"])
    parser.add_argument("--rows", type=number_type(int, ge=1), default=1_000_000)
    parser.add_argument("--dim", type=number_type(int, ge=1), default=384)
    parser.add_argument("--levels", type=number_type(int, ge=1), nargs="+", default=[10_000, 1000, 100])
    parser.add_argument("--resamples", type=number_type(int, ge=0), nargs="+", default=[0, 10, 10])
    parser.add_argument("--iterations", type=number_type(int, ge=1), default=50)
    parser.add_argument("--fit-rows", type=number_type(int, ge=0), default=0)
    parser.add_argument("--clusters", type=number_type(int, ge=1), default=100_000)
    parser.add_argument("--size", type=number_type(int, ge=1), default=1_000_000)
    parser.add_argument("--threads", type=number_type(int, ge=1, le=1024), default=2)
    parser.add_argument("--file", type=Path, help="of memmap: read this .npy instead of making one")
    parser.add_argument("--save", type=Path, help="of memmap: where the tree goes; nowhere if not given")
    arguments = parser.parse_args()
    set_threads(arguments.threads)
    if arguments.job == "rings":
        found = run_rings(arguments.threads)
    elif arguments.job == "sampling":
        found = run_sampling(arguments.rows, arguments.clusters, arguments.size)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = arguments.file
            if path is None:
                path = Path(folder) / "x.npy"
                make_mixture(path, arguments.rows, arguments.dim)
            tree = arguments.save or Path(folder) / "tree"
            found = run_memmap(
                path, arguments.levels, arguments.resamples, arguments.iterations, tree, arguments.fit_rows
            )
    found["peak_rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(found))


if __name__ == "__main__":
    run_command("benchmarks.scale", main)
