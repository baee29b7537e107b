"""One report of run folders of several machines that hold the same experiment.

python scripts/compare_runs.py runs/web_images /mnt/cluster/runs/web_images -o runs/together
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments.run_folder import compare_folders
from foundation.command import run_command
from foundation.options import Parser, path_type


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders: those with a run.json")
    parser.add_argument(
        "-o", "--output", type=path_type(), required=True, help="gets report.html, metrics.json, metrics.csv"
    )
    arguments = parser.parse_args()
    print(f"report: {compare_folders(arguments.folders, arguments.output)}")


if __name__ == "__main__":
    run_command("compare_runs", main)
