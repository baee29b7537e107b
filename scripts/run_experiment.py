"""Run an experiment of configs/experiment: arms x seeds x stages, then one comparison and its report.

    python scripts/run_experiment.py experiment=simulated scale=demo dry_run=true    # stages, cost, what is done
    python scripts/run_experiment.py experiment=simulated scale=demo seeds=[0,1,2] arms=[raw,hierarchical_resampled]
    python scripts/run_experiment.py experiment=simulated scale=lab launch=slurm launch.partition=gpu
    python scripts/run_experiment.py experiment=simulated --cfg job                  # print the whole config
    python scripts/run_experiment.py -m hydra/launcher=submitit_slurm science.curation.size=1000,2000 \\
        'output.runs=runs/size-${science.curation.size}'                             # a sweep, a job each

Stop it at any time: the same command goes on where it was, skips what is finished and says why it runs the rest.
"""

import shlex
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments.launch import run_experiment, sweep
from experiments.settings import compose
from foundation.command import run_command


def main(arguments: list[str]) -> int:
    if "-h" in arguments or "--help" in arguments:
        print(__doc__)
        return 0
    if "-m" in arguments or "--multirun" in arguments:
        return sweep()
    overrides = [argument for argument in arguments if argument not in ("--cfg", "job")]
    config = compose(overrides)
    if "--cfg" in arguments:
        import yaml

        print(yaml.safe_dump(config, sort_keys=False), end="")
        return 0
    return run_experiment(config, shlex.join(["python", "scripts/run_experiment.py", *arguments]))


if __name__ == "__main__":
    run_command("run_experiment", partial(main, sys.argv[1:]))
