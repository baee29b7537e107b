"""k-means against the peers that are installed: interleaved in one run, same data, one float64 evaluator.

python scripts/bench_kmeans.py lloyd -o docs/results/speed.md    # or grid, seeding, rings; runs on other CPUs stay
python scripts/bench_kmeans.py lloyd --avx2 -o docs/results/speed.md      # with AVX2 alone, on a CPU that has more
python scripts/bench_kmeans.py --busy [--threads 2]     # ours alone, beside one busy process for each core
"""

import os
import statistics
import subprocess
import sys

from benchmarks.busy import busy_processes
from benchmarks.speed import AVX2_ALONE, PARTS, keep, markdown, run_part, units
from experiments.engine.provenance import provenance
from foundation.command import run_command
from foundation.errors import CurationError
from foundation.files import write_atomically
from foundation.options import Parser, number_type, page_type
from foundation.tables import text_table

# one fit in a process of its own: how OpenMP's threads wait is fixed when its runtime is loaded
FIT = """
import sys, time
import numpy as np
from curation.kmeans import kmeans
from foundation.threads import set_threads
rows, dim, k, iterations, threads = map(int, sys.argv[1:])
set_threads(threads)
x = np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float32)
kmeans(x[:2000], 10, max_iterations=2)
started = time.perf_counter()
kmeans(x, k, max_iterations=iterations)
print(time.perf_counter() - started)
"""
WAITING = {"passive (default)": {}, "active": {"OMP_WAIT_POLICY": "ACTIVE", "KMP_BLOCKTIME": "200"}}


def measure_busy(rows: int, dim: int, k: int, iterations: int, threads: int, repeats: int) -> str:
    """Seconds of a fit by how threads wait, on the machine as it is and beside a busy process for each core."""
    sizes = [str(number) for number in (rows, dim, k, iterations, threads)]
    seconds: dict[tuple[str, bool], list[float]] = {(name, busy): [] for name in WAITING for busy in (False, True)}
    for _ in range(repeats):
        for name, busy in seconds:
            command, environment = [sys.executable, "-c", FIT, *sizes], {**os.environ, **WAITING[name]}
            with busy_processes(busy * (os.cpu_count() or 1)):
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise CurationError(f"the fit failed: {(done.stderr.splitlines() or ['killed'])[-1]}")
            seconds[name, busy].append(float(done.stdout))
    lines = []
    for name in WAITING:
        alone, beside = (statistics.median(seconds[name, busy]) for busy in (False, True))
        lines.append([name, f"{alone:.2f} s", f"{beside:.2f} s", f"{beside / alone:.2f}"])
    return text_table(["threads wait", "as it is", "beside busy processes", "times slower"], lines)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("part", nargs="?", choices=list(PARTS), default="lloyd")
    parser.add_argument("--rows", type=number_type(int, ge=1), default=100_000)
    parser.add_argument("--dim", type=number_type(int, ge=1), default=256)
    parser.add_argument("-k", type=number_type(int, ge=1), default=1000)
    parser.add_argument("--iterations", type=number_type(int, ge=1), default=20)
    parser.add_argument("--repeats", type=number_type(int, ge=1), default=3, help="runs of everything, interleaved")
    parser.add_argument("--threads", type=number_type(int, ge=1, le=1024), default=2)
    parser.add_argument("--skip-slow", action="store_true", help="leave out greedy k-means++ of scikit-learn")
    parser.add_argument("--busy", action="store_true", help="ours beside one busy process for each core")
    parser.add_argument("--avx2", action="store_true", help="restrict all runtimes to AVX2")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="of lloyd: seconds of the processor (with --threads 1, on a machine that others use too); kept in no page",
    )
    parser.add_argument(
        "-o", "--output", type=page_type("# Speed of k-means"), help="markdown; figures are kept in a .json beside it"
    )
    arguments = parser.parse_args()
    if arguments.k > arguments.rows:
        parser.error(f"-k {arguments.k} is more than --rows {arguments.rows}")
    if arguments.busy:
        sizes = (arguments.rows, arguments.dim, arguments.k, arguments.iterations)
        print(measure_busy(*sizes, arguments.threads, arguments.repeats))
        return
    if arguments.avx2 and "NUMBA_CPU_FEATURES" not in os.environ:  # read as the runtimes are loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **AVX2_ALONE})
    sizes = {name: getattr(arguments, name) for name in ("rows", "dim", "k", "iterations")}
    run = {"part": arguments.part, "units": units(), "load": os.getloadavg()[0]}
    run["rows"] = run_part(
        arguments.part, arguments.threads, arguments.repeats, sizes, arguments.skip_slow, arguments.processor_time
    )
    run |= {"command": " ".join(["python", *sys.argv]), "source": provenance("cpu", arguments.threads)}
    print(markdown([run]))
    if arguments.output and not arguments.processor_time:
        page = markdown(keep(arguments.output.with_suffix(".json"), run))
        write_atomically(arguments.output, lambda stream: stream.write(page.encode()))


if __name__ == "__main__":
    run_command("bench_kmeans", main)
