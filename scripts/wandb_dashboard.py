"""Make the W&B dashboard that compares the arms of an experiment; needs a key, and `wandb sync` of offline runs before.

python scripts/wandb_dashboard.py experiment=simulated scale=lab tracking.entity=my-team
python scripts/wandb_dashboard.py experiment=simulated scale=lab picture=dashboard.png   # without a server
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments.engine.experiment import open_domain, parse
from experiments.engine.settings import compose
from experiments.pages.dashboard import draw, publish
from foundation.command import run_command


def main(arguments: list[str]) -> None:
    if "-h" in arguments or "--help" in arguments:
        print(__doc__)
        return
    pictures = [item.removeprefix("picture=") for item in arguments if item.startswith("picture=")]
    settings = parse(compose([item for item in arguments if not item.startswith("picture=")]))
    if pictures:
        draw(Path(settings.output.runs), Path(pictures[-1]))
        print(f"picture: {pictures[-1]}")
    else:
        print(f"dashboard: {publish(settings, open_domain(settings.name))}")


if __name__ == "__main__":
    run_command("wandb_dashboard", partial(main, sys.argv[1:]))
