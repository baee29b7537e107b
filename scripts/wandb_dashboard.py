"""Make the W&B dashboard that compares the arms of an experiment; needs a key, and `wandb sync` of offline runs before.

python scripts/wandb_dashboard.py experiment=simulated scale=lab tracking.entity=my-team
python scripts/wandb_dashboard.py experiment=simulated scale=lab picture=dashboard.png   # without a server
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments.dashboard import draw, publish
from experiments.experiment import open_domain, parse
from experiments.settings import compose
from foundation.errors import CurationError


def main(arguments: list[str]) -> int:
    if "-h" in arguments or "--help" in arguments:
        print(__doc__)
        return 0
    pictures = [item.removeprefix("picture=") for item in arguments if item.startswith("picture=")]
    try:
        settings = parse(compose([item for item in arguments if not item.startswith("picture=")]))
        if pictures:
            draw(Path(settings.output.runs), Path(pictures[-1]))
            print(f"picture: {pictures[-1]}")
        else:
            print(f"dashboard: {publish(settings, open_domain(settings.name))}")
    except CurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
