"""k-means against the peers that are installed: interleaved in one run, same data, one float64 evaluator.

python scripts/bench_kmeans.py --rows 100000 --dim 256 -k 1000 -o docs/results/speed.md
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.speed import markdown, run_benchmark
from experiments.engine.provenance import provenance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("-k", type=int, default=1000)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="runs of everything, interleaved")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-slow", action="store_true", help="leave out greedy k-means++ of scikit-learn")
    parser.add_argument("-o", "--output", type=Path, help="markdown; figures go to a .json beside it")
    arguments = parser.parse_args()
    settings = {key: value for key, value in vars(arguments).items() if key != "output"}
    results = run_benchmark(**settings)
    source = provenance("cpu", arguments.threads)
    command = " ".join(["python", *sys.argv])
    text = markdown(results, command, source)
    print(text)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text)
        arguments.output.with_suffix(".json").write_text(
            json.dumps({"command": command, "source": source, "results": results}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
