"""Prove on this machine's GPU what the code claims: tests, k-means, embedding, pretraining, language model, experiment.

make gpu                                    # sets up, then this within 40 minutes; again: goes on where it was
make gpu STEPS=kmeans,pretrain MINUTES=20
python scripts/gpu_check.py --device cpu --tiny -o /tmp/gpu.md    # the same code without a GPU, a minute
"""

import shlex
import signal
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gpu.check import Options, check
from foundation.command import run_command
from foundation.options import Parser, number_type, page_type, path_type

ROOT = Path(__file__).parents[1]


def main() -> int:
    parser = Parser(__doc__)
    parser.add_argument(
        "-o",
        "--output",
        type=page_type("# On a GPU"),
        help="markdown [docs/results/gpu.md; tiny: runs/gpu-tiny/gpu.md]",
    )
    parser.add_argument(
        "--work", type=path_type(), help="large files and results of parts [runs/gpu; tiny: runs/gpu-tiny]"
    )
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--tiny", action="store_true", help="sizes at which a laptop needs seconds")
    parser.add_argument("--steps", default="", help="some of tests,kmeans,embed,pretrain,lm,images; all by default")
    parser.add_argument("--minutes", type=number_type(float, gt=0), default=40.0, help="in which all must end")
    parser.add_argument(
        "--since", type=number_type(float, ge=0), default=0.0, help="when they began, in seconds of the epoch; 0: now"
    )
    parser.add_argument("--fresh", action="store_true", help="measure finished parts again")
    parser.add_argument("--no-install", dest="install", action="store_false", help="fetch no packages of peers")
    parser.add_argument("--data", type=Path, help="labelled pictures for the experiment, instead of generated ones")
    given = vars(parser.parse_args())
    work = given["work"] or ROOT / ("runs/gpu-tiny" if given["tiny"] else "runs/gpu")
    output = given["output"] or (work / "gpu.md" if given["tiny"] else ROOT / "docs/results/gpu.md")
    words = [word for word in sys.argv[1:] if not word.startswith("--since=")]
    command = shlex.join(["python", "scripts/gpu_check.py", *words])
    options = Options(**{**given, "work": work, "output": output, "command": command})
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end the running part too
    return check(options, partial(print, flush=True))


if __name__ == "__main__":
    run_command("gpu_check", main)
