"""Run an experiment of configs/experiment: computes what is not on disk yet, then writes its report.

    python scripts/run_experiment.py experiment=simulated scale=demo
    python scripts/run_experiment.py experiment=simulated scale=lab seeds=[0,1,2] speed.threads=4
    python scripts/run_experiment.py --cfg        # print the whole config and stop

Stop it at any time: the same command goes on where it was.
"""

import importlib
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from curation.errors import CurationError
from experiments.settings import compose


def main(arguments: list[str]) -> int:
    if "-h" in arguments or "--help" in arguments:
        print(__doc__)
        return 0
    try:
        config = compose([argument for argument in arguments if argument != "--cfg"])
        if "--cfg" in arguments:
            import yaml

            print(yaml.safe_dump(config, sort_keys=False), end="")
            return 0
        experiment = importlib.import_module(f"experiments.{config['name']}.run")
        report = experiment.run(config, shlex.join(["python", "scripts/run_experiment.py", *arguments]))
    except CurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one was", file=sys.stderr)
        return 130
    print(f"report: {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
