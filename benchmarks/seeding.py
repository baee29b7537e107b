"""Seeding within groups beside greedy k-means++: inertia after the same iterations, growth with k, kill and resume.

python -m benchmarks.seeding -o docs/results/seeding.md

Takes some minutes on one core. Every figure is kept at once beside the page: the same command goes on after a kill.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed import long_tailed_mixture, mean_squared_distance
from curation.kmeans import grouped_seeding, seeding
from curation.kmeans.frame import Frame
from curation.kmeans.lloyd import fit_centroids
from curation.kmeans.settings import KMeansSettings
from curation.store.embeddings import open_embeddings
from experiments.engine.provenance import commits_of, provenance
from foundation.command import run_command
from foundation.files import load_json, save_json, write_atomically
from foundation.options import Parser, number_type, page_type
from foundation.tables import markdown_table

TITLE = "# Seeding of very many centroids"
ITERATIONS = 20
QUALITY = [  # rows, dimensions, concepts, k, centroids of a group, seeds
    (20_000, 64, 2000, 1000, 100, 3),
    (20_000, 64, 2000, 1000, 512, 3),
    (20_000, 16, 200, 1000, 100, 3),
]
DEFAULT = grouped_seeding.OF_A_GROUP
TIMES, AT_ONCE, DIM = (1000, 2000, 4000, 8000), 4000, 32
NOT_YET = "not measured yet; the command goes on with what is missing."
NAMES = {
    "scikit": "scikit-learn, greedy on all rows",
    "at_once": "ours, greedy on 16 rows for each",
    "groups": "ours, within groups",
    "no_swaps": "the same without swaps",
}


def starts_of(x: np.ndarray, k: int, seed: int, kind: str) -> np.ndarray:
    """Starting centroids of one kind of seeding."""
    if kind == "scikit":
        from sklearn.cluster import kmeans_plusplus

        return np.asarray(kmeans_plusplus(x, k, random_state=seed)[0])
    seeding.GROUPED_WORK = np.inf if kind == "at_once" else 0.0
    before = grouped_seeding.SWAPS
    grouped_seeding.SWAPS = 0 if kind == "no_swaps" else before
    try:
        found = seeding.seed_centroids(open_embeddings(x), k, Frame(), np.random.default_rng(seed))
    finally:
        grouped_seeding.SWAPS = before
    return found.numpy()


def inertia(x: np.ndarray, start: np.ndarray) -> float:
    """Mean squared distance after ``ITERATIONS`` iterations of our k-means."""
    settings = KMeansSettings(max_iterations=ITERATIONS)
    found = fit_centroids(open_embeddings(x), len(start), np.random.default_rng(0), settings, initial=start)[0]
    return mean_squared_distance(x, np.asarray(found))


def quality(rows: int, dim: int, concepts: int, k: int, of_a_group: int, seed: int, kind: str) -> dict[str, float]:
    """Inertia of one seed and kind, and the processor time of the seeding."""
    grouped_seeding.OF_A_GROUP = of_a_group
    x = long_tailed_mixture(rows, dim, concepts)
    started = time.process_time()
    start = starts_of(x, k, seed, kind)
    seconds = time.process_time() - started
    return {"inertia": inertia(x, start), "seconds": seconds}


def seconds_of(k: int, kind: str) -> dict[str, float]:
    """Processor time of seeding k centroids on 16 k rows, groups of the default size."""
    x = long_tailed_mixture(seeding.SUBSAMPLE * k, DIM, seed=k)
    started = time.process_time()
    starts_of(x, k, 0, kind)
    return {"seconds": time.process_time() - started}


CHILD = """
import sys
from pathlib import Path
import numpy as np
from benchmarks.seeding import long_tailed_mixture
from curation.store.embeddings import open_embeddings
from curation.kmeans import grouped_seeding, pieces, seeding
from curation.kmeans.frame import Frame
seeding.GROUPED_WORK, grouped_seeding.OF_A_GROUP, pieces.SECONDS = 0.0, 50, 0.2
x = long_tailed_mixture(48_000, 32, seed=1)
folder = Path(sys.argv[1])
print("begun", flush=True)
found = seeding.seed_centroids(open_embeddings(x), 3000, Frame(), np.random.default_rng(0), folder=folder / "kept")
np.save(folder / "found.npy", found.numpy())
"""


def kill_and_resume() -> dict[str, Any]:
    """Seeding killed with SIGKILL after half of the time that a whole one took, and gone on with."""

    def run(folder: Path, stop_after: float = 0.0) -> float:
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        child.stdout.readline()
        begun = time.perf_counter()
        if stop_after:
            time.sleep(stop_after)
            os.kill(child.pid, signal.SIGKILL)
        child.wait()
        return time.perf_counter() - begun

    with tempfile.TemporaryDirectory() as where:
        first, whole, broken = (Path(where) / name for name in ("first", "whole", "broken"))
        for folder in (first, whole, broken):
            folder.mkdir()
        run(first)  # compiles
        seconds = run(whole)
        killed = run(broken, seconds / 2)
        rest = run(broken)
        same = (whole / "found.npy").read_bytes() == (broken / "found.npy").read_bytes()
    return {"whole": seconds, "killed_after": killed, "rest": rest, "same": same}


def steps() -> dict[str, Any]:
    """Name of every figure -> what measures it."""
    found: dict[str, Any] = {}
    for case in QUALITY:
        *shape, n_seeds = case
        for seed in range(n_seeds):
            for kind in NAMES:
                name = "-".join(["quality", *map(str, shape), str(seed), kind])
                found[name] = partial(quality, *shape, seed, kind)  # type: ignore[call-arg,arg-type]
    for k in TIMES:
        for kind in ("at_once", "groups"):
            if kind == "groups" or k <= AT_ONCE:
                found[f"time-{k}-{kind}"] = partial(seconds_of, k, kind)
    return {**found, "kill": kill_and_resume}


def page(found: dict[str, Any], about: dict[str, Any]) -> str:
    """The page of what was measured."""
    lines = [TITLE, "", "`python -m benchmarks.seeding -o docs/results/seeding.md`", ""]
    lines += [f"Commit {commits_of([about])}, {about['device']}. Each figure comes from a run of its own.", ""]
    lines += ["## Inertia", ""]
    lines += [
        f"Mean squared distance after {ITERATIONS} iterations of our k-means from each start, one float64 evaluator; "
        "long-tailed mixtures of unit vectors (concepts of Zipf sizes). Mean over seeds, and the difference to "
        "scikit-learn's greedy k-means++ over all rows, which may be +1 % at most.",
        "",
    ]
    cells = []
    for *shape, n_seeds in QUALITY:
        rows, dim, concepts, k, of_a_group = shape
        means = {}
        for kind in NAMES:
            mine = [found["-".join(["quality", *map(str, shape), str(s), kind])]["inertia"] for s in range(n_seeds)]
            means[kind] = statistics.mean(mine)
        base = means["scikit"]
        groups = max(2, round(k / of_a_group))
        where = f"{rows:,} x {dim}, {concepts:,} concepts, k {k:,}, {groups} groups, {n_seeds} seeds"
        cells.append([where, f"{base:.5f}", *(f"{means[kind] / base - 1:+.2%}" for kind in list(NAMES)[1:])])
    lines.append(markdown_table(["", *NAMES.values()], cells).rstrip("\n"))
    lines += ["", "## Growth with k", ""]
    lines += [
        f"Processor seconds of seeding alone, 16 rows for each centroid, {DIM} dimensions, groups of "
        f"{DEFAULT} centroids; at once only up to {AT_ONCE:,}.",
        "",
    ]
    cells = []
    done = [k for k in TIMES if f"time-{k}-groups" in found]
    for k in done:
        at_once, grouped = found.get(f"time-{k}-at_once"), found[f"time-{k}-groups"]["seconds"]
        each = 1e6 * grouped / (k * np.log(k))
        cells.append(
            [f"{k:,}", "-" if at_once is None else f"{at_once['seconds']:.1f}", f"{grouped:.1f}", f"{each:.0f}"]
        )
    header = ["k", "at once, s", "within groups, s", "microseconds / (k ln k)"]
    lines.append(markdown_table(header, cells).rstrip("\n") if cells else NOT_YET)
    if len(done) > 2:
        slope = np.polyfit(np.log(done), np.log([found[f"time-{k}-groups"]["seconds"] for k in done]), 1)[0]
        lines += ["", f"Fitted exponent of k within groups: {slope:.2f}.", "", "![growth with k](images/seeding.png)"]
    else:
        lines += ["", "Too few sizes to say how it grows."]
    if len(done) < len(TIMES):
        missing = ", ".join(f"{k:,}" for k in TIMES if k not in done)
        lines += ["", f"k {missing}: {NOT_YET}"]
    lines += ["", "## Kill and resume", ""]
    if "kill" not in found:
        return "\n".join([*lines, NOT_YET]) + "\n"
    kill = found["kill"]
    lines += [
        f"3,000 centroids of 48,000 x 32 in 60 groups took {kill['whole']:.1f} s; killed with SIGKILL after "
        f"{kill['killed_after']:.1f} s, the same call took {kill['rest']:.1f} s more, and the centroids are "
        f"{'the same, byte for byte' if kill['same'] else 'NOT the same'}."
    ]
    return "\n".join(lines) + "\n"


def plot(found: dict[str, Any], path: Path) -> None:
    """Seconds over k, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for kind, title in (("at_once", "at once"), ("groups", "within groups")):
        ks = [k for k in TIMES if f"time-{k}-{kind}" in found]
        axes.plot(ks, [found[f"time-{k}-{kind}"]["seconds"] for k in ks], "o-", label=title)
    if start := found.get(f"time-{TIMES[0]}-groups"):
        first = start["seconds"] / (TIMES[0] * np.log(TIMES[0]))
        axes.plot(TIMES, [first * k * np.log(k) for k in TIMES], ":", color="grey", label="k log k")
    axes.set(xscale="log", yscale="log", xlabel="k", ylabel="processor seconds")
    axes.legend()
    write_atomically(path, lambda stream: figure.savefig(stream, format="png", dpi=120))


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("-o", "--output", type=page_type(TITLE, '"figures"'), default=Path("docs/results/seeding.md"))
    parser.add_argument("--seconds", type=number_type(float, gt=0), default=1e9, help="stop and go on another time")
    options = parser.parse_args()
    kept = options.output.with_suffix(".json")
    content = load_json(kept) if kept.exists() else {"about": provenance("cpu", 1), "figures": {}}
    found, deadline = content["figures"], time.monotonic() + options.seconds
    todo = [(name, measure) for name, measure in steps().items() if name not in found]
    if todo:
        seconds_of(200, "groups")  # compiles
    for name, measure in todo:
        if time.monotonic() > deadline:
            break
        grouped_seeding.OF_A_GROUP = DEFAULT
        found[name] = measure()
        save_json(kept, content)
        print(name, found[name], flush=True)
    if any(name.startswith("time-") for name in found):
        plot(found, options.output.parent / "images/seeding.png")
    write_atomically(options.output, lambda stream: stream.write(page(found, content["about"]).encode()))
    missing = len([name for name in steps() if name not in found])
    print(
        f"wrote {options.output}" + (f"; {missing} figures are missing: run the same command again" if missing else "")
    )


if __name__ == "__main__":
    run_command("benchmarks.seeding", main)
