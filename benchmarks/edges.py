"""Long listings, large pages, busy machines: what a user waits for at the edges.

python -m benchmarks.edges listing labels report kmeans pretrain -o docs/results/edges.md

Inputs are made under --work first (--make: that alone) and stay there. A figure that is measured takes the place of its
old one on the page, each with its own commit; those of other parts, and of pretrain of other --shapes, stay. Without -o
they are printed alone. Every figure is of a process of its own; one for listing, labels and report takes --threads
threads.
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.busy import busy_processes
from benchmarks.prepare import SIDE, png_of
from benchmarks.scale import write_mixture
from curation import ClusterTree, HierarchicalKMeans
from curation.trees.subset import Subset
from experiments.engine.provenance import commits_of, provenance
from foundation.command import run_command
from foundation.errors import CurationError
from foundation.files import load_json, save_json, write_atomically
from foundation.options import Parser, number_type, page_type, path_type
from foundation.tables import markdown_table

TITLE = "# Long listings, large pages, busy machines"
FILES, FOLDERS = 200_000, 200
LABELLED = 300_000
ROWS, LEVELS, DIM, DRAWN = 1_000_000, [10_000, 1000, 100], 64, 100_000
CONCEPTS = 1000
LIMITS = {"listing": 15.0, "labels": 1.0, "report": 15.0}  # seconds
COMPILE = ["scripts/compile_kernels.py"]  # once in the life of an installation, and no part of what is timed
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
KMEANS = "scripts/bench_kmeans.py --busy --rows 50000 --dim 128 -k 500 --iterations 10 --repeats 3 --threads 2"
PRETRAIN = "scripts/bench_pretrain.py side=64 speed.log_every=2"
SHAPES = {
    "transformer, batch 8": "rows=64 steps=20 batch_size=8",
    "transformer, batch 32": "rows=64 steps=20 batch_size=32",
    "small convolutional network, batch 64": "recipe=configs/pretrain/conv_cpu.yaml rows=256 steps=20 batch_size=64",
    "small convolutional network, batch 128": "recipe=configs/pretrain/conv_cpu.yaml rows=256 steps=20 batch_size=128",
}
PAGE = f"`curate report` of a tree of {ROWS:,} rows ({', '.join(f'{k:,}' for k in LEVELS)} clusters, {DIM} dimensions)"
WHAT = {
    "listing": {"open_pool": f"`open_pool` of a folder of {FILES:,} files in {FOLDERS} folders"},
    "labels": {"read_labels": f"`read_labels` of a parquet pool of {LABELLED:,} rows, {CONCEPTS:,} labels"},
    "report": {
        "first": f"{PAGE}, a subset of {DRAWN:,}, pool of texts, {CONCEPTS:,} labels, for the first time, `--no-check`",
        "--no-check": "the same, for the second time, `--no-check`",
        "with its check": "the same with its check of the tree",
    },
}
# part -> title, what was run, what tells its rows apart, what follows from it
BUSY = {
    "kmeans": (
        "k-means beside one busy process for each core",
        f"`python {KMEANS}`: seconds of a fit, median; the busy processes are endless Python loops.",
        "threads wait",
        "Threads that sleep while they wait are the default (`OMP_WAIT_POLICY=PASSIVE`, `KMP_BLOCKTIME=0`, set where "
        "the packages are imported, unless the environment says otherwise).",
    ),
    "pretrain": (
        "Pretraining beside one busy process for each core",
        f"`python {PRETRAIN} ...`, in turns, images per second, median of a run; of two runs the mean.",
        "",
        "A step of fewer than 2e9 operations takes one thread: it is many short parallel parts, each of which waits "
        "for a thread that another process has put aside. The choice depends on the run alone (its network and "
        "micro-batch) and not on the load, so that a resumed run ends with the same bytes; what `OMP_NUM_THREADS` "
        "says stays. Threads of a larger step sleep while they wait, as in every command of this project; "
        "`OMP_WAIT_POLICY=ACTIVE` makes them spin, which is up to a third faster on a free machine, ten times slower "
        "beside others.",
    ),
}
LISTING = """
import sys, time
from curation.pools.pool import open_pool
started = time.perf_counter()
assert len(open_pool(sys.argv[1])) == int(sys.argv[2])
print(time.perf_counter() - started)
"""
LABELS = """
import sys, time
from curation.pools.labels import read_labels
from curation.pools.pool import open_pool
pool = open_pool(sys.argv[1])
started = time.perf_counter()
assert len(read_labels("label", pool).codes) == int(sys.argv[2])
print(time.perf_counter() - started)
"""


def make_listing(folder: Path) -> None:
    """`FILES` pictures in `FOLDERS` folders."""
    picture = png_of(bytes(SIDE * (1 + 3 * SIDE)))
    for number in range(FOLDERS):
        (folder / f"{number:03}").mkdir(parents=True)
        for item in range(FILES // FOLDERS):
            (folder / f"{number:03}/{item:04}.png").write_bytes(picture)


def write_texts(path: Path, rows: int) -> None:
    """Texts of ten words, each with one of `CONCEPTS` labels."""
    import pyarrow as pa
    from pyarrow import parquet

    labels = np.random.default_rng(0).integers(CONCEPTS, size=rows)
    texts = [f"row {row} tells of concept {label} in ten words or so" for row, label in enumerate(labels.tolist())]
    parquet.write_table(pa.table({"text": texts, "label": [f"c{label}" for label in labels.tolist()]}), path)


def make_report(folder: Path) -> None:
    """A tree of `ROWS` rows with a subset, and the pool of texts."""
    write_texts(folder / "pool.parquet", ROWS)
    (folder / "embeddings").mkdir()
    write_mixture(folder / "embeddings/x.npy", ROWS, DIM)
    fit = HierarchicalKMeans(LEVELS, n_resamples=0, max_iterations=1, fit_rows=ROWS // 20, seed=0)
    fit.fit(str(folder / "embeddings/x.npy"), folder / "tree")
    tree = ClusterTree.load(folder / "tree")
    Subset.from_rows(tree.sample(DRAWN, seed=0), tree).save(folder / "subset")


MAKE: dict[str, Callable[[Path], None]] = {
    "listing": make_listing,
    "labels": lambda folder: write_texts(folder / "pool.parquet", LABELLED),
    "report": make_report,
}


def run_python(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
    """Seconds and output of a Python process."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)[:200]} failed: {(done.stderr.splitlines() or ['killed'])[-1]}")
    return time.perf_counter() - started, done.stdout


@dataclass
class Figure:
    """A row of the page, as JSON.

    Attributes:
        found: seconds, or for the busy parts a pair: alone, and beside busy processes.
        load: of the machine, when the part began.
        source: `provenance`.
    """

    found: Any
    load: float
    source: dict[str, Any]


Parts = dict[str, dict[str, Figure]]


def read_shapes(given: list[str]) -> list[str]:
    """Names of `SHAPES`, of which numbers from 1 on are in their order; none: all.

    Raises:
        CurationError: there is no such shape.
    """
    numbered = {str(number): name for number, name in enumerate(SHAPES, 1)}
    chosen = [numbered.get(shape, shape) for shape in given] or list(SHAPES)
    for shape in chosen:
        if shape not in SHAPES:
            listed = "; ".join(f"{number} {name}" for number, name in numbered.items())
            raise CurationError(f"--shapes has {shape!r}; there are {listed}")
    return [name for name in SHAPES if name in chosen]


def measure(part: str, work: Path, threads: int, shapes: list[str]) -> Iterator[tuple[str, Any]]:
    """Rows of a part, each as soon as it is measured: what, and its `Figure.found`."""
    free = {name: value for name, value in os.environ.items() if name not in THREADS}
    if part == "kmeans":
        rows = [re.split(r"  +", line.strip()) for line in run_python(KMEANS.split(), free)[1].splitlines()[1:]]
        yield from ((name, [float(value.removesuffix(" s")) for value in values[:2]]) for name, *values in rows)
        return
    if part == "pretrain":
        for name in shapes:
            rates: list[list[float]] = [[], []]
            for busy in (0, 1, 0, 1):
                with busy_processes(busy * (os.cpu_count() or 1)):
                    said = run_python([*PRETRAIN.split(), *SHAPES[name].split()], free)[1]
                found = re.search(r"([\d.,]+) images/s", said)
                assert found is not None
                rates[busy].append(float(found[1].replace(",", "")))
            yield name, [statistics.median(values) for values in rates]
        return
    limited = {**os.environ, **{name: str(threads) for name in THREADS[:3]}, "HF_HOME": str(work / "hub")}
    folder = work / part
    if part == "listing":
        yield "open_pool", float(run_python(["-c", LISTING, str(folder), str(FILES)], limited)[1])
        return
    if part == "labels":
        code = ["-c", LABELS, str(folder / "pool.parquet"), str(LABELLED)]
        yield "read_labels", float(run_python(code, limited)[1])
        return
    run_python(COMPILE, limited)
    given = ["-m", "curation", "report", str(folder / "tree"), str(folder / "subset"), "--overwrite"]
    given += ["--pool", str(folder / "pool.parquet"), "--labels", "label", "--embeddings", str(folder / "embeddings")]
    given += ["-o", str(folder / "report.html")]
    shutil.rmtree(work / "hub", ignore_errors=True)  # the first page copies the pool there
    names = {"first": ["--no-check"], "--no-check": ["--no-check"], "with its check": []}
    yield from ((name, run_python([*given, *more], limited)[0]) for name, more in names.items())


def page(parts: Parts) -> str:
    """What was measured, as a page."""
    lines = [TITLE, ""]
    lines += [f"`python -m benchmarks.edges {' '.join(parts)}`", ""]
    devices = {row.source["device"].partition(",")[0] for rows in parts.values() for row in rows.values()}
    lines += [f"{'; '.join(sorted(devices))}, {os.cpu_count()} cores.", ""]
    rows = []
    for part, what in WHAT.items():
        for name, row in parts.get(part, {}).items():
            late = " **too slow**" if row.found > LIMITS[part] else ""
            cells = [what.get(name, name), f"{row.found:.2f}{late}", f"{LIMITS[part]:.0f}"]
            rows.append(
                [*cells, row.source["device"].rpartition(", ")[2].removesuffix(" threads"), commits_of([row.source])]
            )
    if rows:
        lines += [markdown_table(["what", "seconds", "goal", "threads", "commit"], rows)]
    for part, (title, about, header, after) in BUSY.items():
        if part not in parts:
            continue
        rows = []
        for name, row in parts[part].items():
            alone, beside = row.found
            slower = beside / alone if part == "kmeans" else alone / beside
            unit = " s" if part == "kmeans" else " images/s"
            cells = [name, f"{alone:.2f}{unit}", f"{beside:.2f}{unit}", f"{slower:.2f}"]
            rows.append([*cells, f"{row.load:.1f}", commits_of([row.source])])
        lines += [f"## {title}", "", about, ""]
        head = ["as it is", "beside busy processes", "times slower", "load at the start", "commit"]
        lines += [markdown_table([header, *head], rows), after, ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("parts", nargs="+", choices=[*MAKE, *BUSY])
    parser.add_argument("-o", "--output", type=page_type(TITLE, '"found"'), help="markdown; figures go beside it")
    parser.add_argument("--work", type=path_type(), default=Path("runs/edges"), help="what is measured; may be deleted")
    parser.add_argument("--shapes", nargs="+", default=[], help="of pretrain: names or numbers from 1 on; default: all")
    parser.add_argument("--make", action="store_true", help="make the inputs and stop")
    parser.add_argument("--threads", type=number_type(int, ge=1, le=1024), default=1)
    options = parser.parse_args()
    shapes = read_shapes(options.shapes)
    if options.shapes and "pretrain" not in options.parts:
        raise CurationError("--shapes is of the part pretrain; name it, or leave --shapes out")
    for part in (part for part in MAKE if part in options.parts):
        if not (made := options.work / f"{part}.made").exists():
            shutil.rmtree(options.work / part, ignore_errors=True)
            (options.work / part).mkdir(parents=True)
            MAKE[part](options.work / part)
            made.touch()
    if options.make:
        return
    kept = options.output and options.output.with_suffix(".json")
    content = load_json(kept, dict[str, dict[str, Figure]], "move it away") if kept and kept.exists() else {}
    for part in options.parts:
        threads = (os.cpu_count() or 1) if part in BUSY else options.threads
        about = {"load": os.getloadavg()[0], "source": provenance("cpu", threads)}
        for name, found in measure(part, options.work.absolute(), threads, shapes):
            print(part, name, found, flush=True)
            content.setdefault(part, {})[name] = {"found": found, **about}
            if kept:
                save_json(kept, content)
    if options.output:
        parts = {part: {name: Figure(**row) for name, row in rows.items()} for part, rows in content.items()}
        write_atomically(options.output, lambda stream: stream.write(page(parts).encode()))
        print(f"wrote {options.output}")


if __name__ == "__main__":
    run_command("benchmarks.edges", main)
