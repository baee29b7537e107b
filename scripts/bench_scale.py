"""Whole jobs with time and peak memory, and growth with n and k: writes a page, its figures as JSON, and a plot.

python scripts/bench_scale.py -o docs/results/scale.md
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.scale_report import growth_figure, measure, scale_markdown
from experiments.engine.provenance import provenance
from foundation.command import run_command
from foundation.files import save_json, write_atomically
from foundation.options import Parser, number_type, page_type


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--rows", type=number_type(int, ge=1000), default=1_000_000, help="of the memory map")
    parser.add_argument("--threads", type=number_type(int, ge=1, le=1024), default=2)
    parser.add_argument("--no-growth", action="store_true", help="the jobs alone")
    parser.add_argument(
        "-o", "--output", type=page_type("# Whole jobs"), required=True, help="markdown; JSON and images/ go beside it"
    )
    arguments = parser.parse_args()
    source = provenance("cpu", arguments.threads)
    found = measure(arguments.rows, arguments.threads, not arguments.no_growth)
    command = " ".join(["python", *sys.argv])
    page = scale_markdown(found, command, source)
    write_atomically(arguments.output, lambda stream: stream.write(page.encode()))
    save_json(arguments.output.with_suffix(".json"), {"command": command, "source": source, **found})
    if found["growth"]:
        growth_figure(found["growth"], arguments.output.parent / "images" / "growth.png")


if __name__ == "__main__":
    run_command("bench_scale", main)
