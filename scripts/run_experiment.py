"""Run an experiment of configs/experiment: ``python -m experiments``, from a clone and any folder; --help says more."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments.cli import main

if __name__ == "__main__":
    main()
