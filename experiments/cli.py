"""The command ``python -m experiments``: arms x seeds x stages, then one comparison and its report.

    python -m experiments                                                 # which there are
    python -m experiments experiment=simulated scale=demo dry_run=true    # stages, cost, what is done
    python -m experiments experiment=simulated scale=demo seeds=[0,1,2] arms=[raw,hierarchical_resampled]
    python -m experiments experiment=web_images scale=lab launch=slurm launch.partition=gpu
    python -m experiments experiment=simulated --cfg job                  # print the whole config
    python -m experiments -m hydra/launcher=submitit_slurm experiment=simulated science.curation.size=1000,2000 \\
        'output.runs=runs/size-${science.curation.size}'                  # a sweep, a job each

Stop it at any time: the same command goes on where it was, skips what is finished and says why it runs the rest.
In a clone, ``python scripts/run_experiment.py`` is the same.
"""

import itertools
import shlex
import sys
from functools import partial

from experiments.engine.settings import compose
from experiments.launch import run_experiment, sweep
from foundation.command import run_command
from foundation.errors import CurationError
from foundation.settings import CONFIGS


def experiments() -> dict[str, str]:
    """Name -> what it asks: the first sentence of its file."""
    found = {}
    for path in sorted((CONFIGS / "experiment").glob("*.yaml")):
        lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines()[1:])
        about = " ".join(line.removeprefix("# ") for line in lines)
        found[path.stem] = about.partition(". ")[0].rstrip(".")
    return found


def listing() -> str:
    """What the command says without arguments: the experiments, and how one is planned and started."""
    names = [f"  {name:<16} {about}" for name, about in experiments().items()]
    one = "python -m experiments experiment=NAME scale=demo"
    return "\n".join(
        ["Experiments:", *names, f"Plan one:   {one} dry_run=true", f"Start it:   {one}", "More:       --help"]
    )


def run(arguments: list[str]) -> int:
    """Exit code of the command with these arguments."""
    if "-h" in arguments or "--help" in arguments:
        print(__doc__)
        return 0
    if not any(argument.lstrip("+").startswith("experiment=") for argument in arguments):
        if arguments:
            raise CurationError(f"no experiment is named; add experiment=NAME, one of {', '.join(experiments())}")
        print(listing())
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


def main() -> None:
    """The command; see `foundation.command.run_command` for how it ends."""
    run_command("run_experiment", partial(run, sys.argv[1:]))
