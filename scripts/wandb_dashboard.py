"""Make the W&B dashboard that compares the arms of an experiment; needs a key, and `wandb sync` of offline runs before.

python scripts/wandb_dashboard.py experiment=simulated scale=lab tracking.entity=my-team
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments.dashboard import publish
from experiments.experiment import open_domain, parse
from experiments.settings import compose
from foundation.command import run_command


def main(arguments: list[str]) -> None:
    if "-h" in arguments or "--help" in arguments:
        print(__doc__)
        return
    settings = parse(compose(arguments))
    print(f"dashboard: {publish(settings, open_domain(settings.name))}")


if __name__ == "__main__":
    run_command("wandb_dashboard", partial(main, sys.argv[1:]))
