"""How balanced the subsets of each method are on many pools, without training: a page, its figures as JSON, a picture.

python scripts/bench_balance.py -o docs/results/balance.md [--seeds 100,101,102] [--cells a,b] [--methods a,b]

The pools lie in the folder that CURATED_SSL_DATA names. A run that was killed goes on where it was.
"""

import shlex
import sys
from itertools import pairwise
from pathlib import Path

import foundation  # noqa: F401 - before torch is loaded: it sets how threads wait

# isort: split
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.balance.benchmark import chosen, run_benchmark
from benchmarks.balance.methods import METHODS
from benchmarks.balance.pools import CELLS, USUAL
from foundation.command import run_command
from foundation.options import Parser, number_type, page_type


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "-o",
        "--output",
        type=page_type("# Balance without training"),
        required=True,
        help="markdown; JSON and images/ go beside it",
    )
    parser.add_argument("--seeds", default="100,101,102", help="of pools and methods")
    parser.add_argument("--cells", default="", help=f"some of {', '.join(CELLS)}; all but the weak without")
    parser.add_argument("--methods", default="", help=f"some of {', '.join(METHODS)}")
    parser.add_argument("--work", type=Path, default=Path("runs/balance"), help="embeddings and finished results")
    parser.add_argument("--threads", type=number_type(int, ge=1, le=1024), default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # where work is kept decides nothing, and is a path of this machine
    words = [word for before, word in pairwise(["", *sys.argv]) if "--work" not in (before, word.partition("=")[0])]
    command = shlex.join(["python", *words])
    usual = ",".join(name for name, method in METHODS.items() if not method.by_name)
    cells = chosen(options.cells or ",".join(USUAL), CELLS, "cell")
    methods = chosen(options.methods or usual, METHODS, "method")
    run_benchmark(options.output, options.work, cells, methods, options.seeds, command, options.threads)


if __name__ == "__main__":
    run_command("bench_balance", main)
