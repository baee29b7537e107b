"""From a config to a finished comparison: dry run, local run, and what jobs on a cluster share with it."""

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curation.group import Group, joined, place
from curation.plan import PROFILES, Hardware, calibrate
from experiments.engine.experiment import Experiment, Speed, build
from experiments.engine.processes import announce, dismiss, follow
from experiments.engine.stages import MARKER, Stage, in_order, load_marker, locked, run_stages, state_of
from experiments.run_folder import begin_stage, finish_experiment, write_manifest
from experiments.slurm import device_of, planned_jobs, require_used, resources_of, sbatch_options, submit
from foundation.errors import CurationError, one_line
from foundation.paths import new_place
from foundation.settings import CONFIGS, fill, nearest_name

LOCATIONS = ("local", "slurm")
UNKNOWN = "not known before a first run"


def hardware_of(speed: Speed) -> Hardware:
    """The machine that estimates are for.

    Raises:
        CurationError: an unknown profile.
    """
    if speed.hardware == "measure":
        return calibrate(1.0)
    if speed.hardware not in PROFILES:
        raise CurationError(f"speed.hardware: {nearest_name(speed.hardware, ['measure', *PROFILES])}")
    profile = PROFILES[speed.hardware]
    return Hardware(**{**vars(profile), "n_devices": speed.n_devices})


def measured_seconds(stage: Stage, root: Path, device: str) -> float | None:
    """Mean seconds that this stage took here with any seed, on this kind of device; None where it has not run so."""
    seconds = []
    seeds = "" if stage.seed is None else "seed*/"
    for path in (root / (stage.arm or "shared")).glob(f"{seeds}{stage.name}-*/{MARKER}"):
        try:
            cost = load_marker(path.parent)["cost"]
            if cost["key"] == stage.cost_key and _kind(cost["device"]) == _kind(device):
                seconds.append(float(cost["seconds"]))
        except (CurationError, KeyError, TypeError, ValueError, AttributeError):  # an older or edited record
            continue
    return sum(seconds) / len(seconds) if seconds else None


def _kind(device: str) -> str:
    return device.partition(":")[0]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def planned_seconds(experiment: Experiment, stage: Stage) -> tuple[float | None, str]:
    """Seconds of a stage where they are known, and where they come from or why they are not.

    A rate of a processor says nothing of a GPU, so it is no estimate for a job that asks for one.
    """
    device = device_of(experiment.settings, stage.name)
    measured = measured_seconds(stage, experiment.root, device)
    if measured is not None:
        return measured, "as it took here"
    hardware, settings = experiment.hardware, experiment.settings
    if hardware is None or stage.estimate.seconds is None:
        return None, UNKNOWN
    kinds = [name == "cpu" for name in (_kind(device), hardware.name)]
    # a run here may be asked what it would cost elsewhere, by the name of that GPU
    elsewhere = kinds[0] and settings.launch.where == "local" and settings.speed.hardware in PROFILES
    if kinds[0] != kinds[1] and not elsewhere:
        return None, "not measured on a processor" if kinds[0] else "not measured on a GPU"
    return stage.estimate.seconds, f"estimated for {hardware.name}"


def by_arm(experiment: Experiment) -> list[Stage]:
    """Stages as they are shown: what arms share, then each arm, then what reads them all."""
    stages = in_order(experiment.stages)
    shared = {before for stage in stages if stage.arm for before in stage.upstream if not before.arm}
    place = {"": len(experiment.settings.arms)} | {arm: i for i, arm in enumerate(experiment.settings.arms)}
    return sorted(stages, key=lambda stage: -1 if stage in shared else place[stage.arm])


def plan_table(experiment: Experiment) -> str:
    """The dry run: every stage, whether it is done and why not, and what it will cost."""
    lines = [f"{'stage':<44}{'samples':>12}{'FLOP':>11}{'time':>11}  state"]
    total, root = 0.0, experiment.root
    unknown: Counter[str] = Counter()
    busy: dict[str, list[tuple[float | None, str]]] = {}
    for stage in by_arm(experiment):
        state, cost = state_of(stage, root), stage.estimate
        seconds, source = planned_seconds(experiment, stage)
        flops = f"{cost.flops:.2e}" if cost.flops else "-"
        samples = f"{cost.samples:,.0f}" if cost.samples else "-"
        if not state.finished:
            total += seconds or 0.0
            unknown.update([source] if seconds is None else [])
            busy.setdefault(stage.name, []).append((seconds, source))
        mark = "*" if source == "as it took here" else ""
        lines.append(f"{stage.identity:<44}{samples:>12}{flops:>11}{_time(seconds) + mark:>11}  {state.why}")
    rest = "".join(f", and {n} stages whose time is {why}" for why, n in unknown.items())
    machine = "the hardware" if experiment.hardware is None else experiment.hardware.name
    lines += ["", f"still to run: {_time(total)} one after another{rest}; * as it took here with these settings,"]
    lines.append(f"else estimated: operations / sustained rate of {machine}, a lower bound for small models on a CPU")
    if "not measured on a GPU" in unknown:
        lines.append(f"note: speed.hardware estimates for a GPU: {', '.join(PROFILES)}")
    if experiment.settings.launch.where == "slurm":
        lines += _kinds_of_jobs(experiment, {**busy, "compare": [(None, UNKNOWN)]})
        lines += _jobs(experiment)
    lines += [f"note: {line}" for line in experiment.warnings()]
    return "\n".join(lines)


def _kinds_of_jobs(experiment: Experiment, busy: dict[str, list[tuple[float | None, str]]]) -> list[str]:
    """One line for each kind of job that is still to run, with what it asks for and its hours; and one for all."""
    lines, launch = [], experiment.settings.launch
    for name, times in busy.items():
        wanted = resources_of(launch, name)
        nodes, tasks, gpus = wanted["nodes"], wanted["tasks_per_node"], wanted["gpus_per_node"]
        each = f"{nodes} node(s) x {tasks} task(s) x {gpus / max(tasks, 1):g} GPU(s)"
        each += f", {wanted['cpus_per_task']} CPU(s) a task, {wanted['mem_gb']} GB, {wanted['minutes']} min at most"
        hours = sum(seconds for seconds, _ in times if seconds is not None) / 3600
        sources = Counter(source for _, source in times)
        took = f"{hours:,.2f} h in all, {hours * nodes * (gpus or 1):,.2f} {'GPU' if gpus else 'node'} hours, "
        took = took if any(seconds is not None for seconds, _ in times) else "time "
        took += sources.popitem()[0] if len(sources) == 1 else ", ".join(f"{n} {why}" for why, n in sources.items())
        lines.append(f"{len(times)} job(s) {name}: {each}, on {device_of(experiment.settings, name)}, {took}")
    n_jobs = sum(len(times) for times in busy.values())
    return [*lines, f"{n_jobs} jobs, partition: {launch.partition or 'the default of the cluster'}"]


def _jobs(experiment: Experiment) -> list[str]:
    """One line for each job that would be submitted: its name, stage, arm and seed, and what sbatch is given."""
    launch, shown = experiment.settings.launch, {stage: i for i, stage in enumerate(by_arm(experiment))}
    lines = [f"would be submitted, names in place of the numbers of jobs; logs in {experiment.root / 'slurm'}:"]
    lines += [f"before each: {line}" for line in launch.setup]
    for job in sorted(planned_jobs(experiment), key=lambda job: shown.get(job.stage, len(shown))):  # type: ignore[arg-type]
        arm, seed = (job.stage.arm, job.stage.seed) if job.stage else ("", None)
        of = f"stage {job.kind}, arm {arm or '-'}, seed {'-' if seed is None else seed}"
        lines.append(f"{job.name}: {of}: sbatch {sbatch_options(launch, job)}")
    return lines


def run_experiment(
    config: dict[str, Any], command: str, say: Callable[[str], None] = print, progress: bool = True
) -> int:
    """Do what the config says: dry run, local run, or submission.

    Args:
        config: resolved config; see `experiments.engine.settings.compose`.
        command: how it was started, for the report.

    Returns:
        Exit code: 0, or 1 where a stage failed.

    Raises:
        CurationError: a bad setting, or another process is at this run folder; nothing was run.
    """
    launch = config.get("launch")
    where = launch.get("where") if isinstance(launch, dict) else launch
    if where not in LOCATIONS:
        raise CurationError(f"launch.where is {where!r}; use one of {', '.join(LOCATIONS)}")
    _require_room(config)
    if config.get("dry_run"):
        speed: Speed = fill(Speed, config.get("speed"), "speed")  # type: ignore[arg-type]
        planned = build(config, hardware_of(speed))
        missing = planned.missing()
        try:
            if where == "slurm":
                require_used(planned)
        except CurationError as error:
            missing.insert(0, str(error))
        for line in missing:  # first, for the table is long; and a plan is wanted where the data are not, too
            say(f"note: it cannot run here yet: {line}")
        say(plan_table(planned))
        return 0
    experiment = build(config)
    if where == "slurm" and place() is not None:
        raise CurationError("launch=slurm submits jobs itself; start it once, not by torchrun or srun")
    with joined(experiment.settings.speed.device) as (group, _device):
        if not group.first:
            follow(experiment.stages, group, root=experiment.root, **begin_stage(experiment, config, False))
            return 0
        code = _lead(experiment, config, command, say, progress, group)
        dismiss(group)
        return code


def _require_room(config: dict[str, Any]) -> None:
    """Refuse a run folder that cannot be one, before anything is planned for it."""
    output = config.get("output")
    runs = new_place(str(output.get("runs") if isinstance(output, dict) else output))
    there = next((part for part in (runs, *runs.parents) if part.exists()), runs)
    if not there.is_dir():
        raise CurationError(f"output.runs is {runs}, but {there} is no folder; name another")


def _lead(
    experiment: Experiment,
    config: dict[str, Any],
    command: str,
    say: Callable[[str], None],
    progress: bool,
    group: Group,
) -> int:
    """What the first process, or the only one, does."""
    root, where = experiment.root, config["launch"]["where"]
    experiment.require_ready()
    with locked(root, "an experiment"):
        if experiment.settings.speed.fresh:
            for stage in in_order(experiment.stages):
                shutil.rmtree(stage.folder(root), ignore_errors=True)
        for line in experiment.warnings():
            say(f"note: {line}")
        write_manifest(experiment, config, command)
        if where == "slurm":
            jobs = submit(experiment, {**config, "output": _absolute(config["output"])}, command)
            for name, job in jobs.items():
                say(f"job {job}: {name}")
            say(f"logs: {root / 'slurm'}; the last job writes {root / 'report.html'}")
            return 0
        outcome = run_stages(
            experiment.stages, root, say, begin=announce(group), **begin_stage(experiment, config, progress)
        )
        failures = {name: f"failed, {why}" for name, why in outcome.failed.items()}
        failures |= {name: f"skipped, {why}" for name, why in outcome.skipped.items()}
        report, verdict = finish_experiment(experiment, config, command, failures)
    say(f"{len(outcome.done)} stages run, {len(outcome.finished_before)} finished before, {len(outcome.failed)} failed")
    say(verdict)
    say(f"report: {report}")
    return 1 if outcome.failed else 0


def _absolute(output: dict[str, Any]) -> dict[str, Any]:
    return {name: str(Path(value).absolute()) for name, value in output.items()}


def sweep() -> int:
    """Hydra's own multirun of the command line (`-m`), with any of its launchers; each job runs a whole experiment.

    Returns:
        The largest exit code of the jobs in this process.

    Raises:
        CurationError: a setting that Hydra or a job refuses.
    """
    import shlex
    import sys

    import hydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    codes: list[int] = []
    command = shlex.join(["python", "scripts/run_experiment.py", *sys.argv[1:]])

    def job(config: DictConfig) -> int:
        plain = OmegaConf.to_container(config, resolve=True)
        assert isinstance(plain, dict)
        codes.append(run_experiment({str(key): value for key, value in plain.items()}, command, progress=False))
        return codes[-1]

    os.environ["HYDRA_FULL_ERROR"] = "1"  # else it prints pages, and ends the process with a code of its own
    try:
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise CurationError(one_line(error, None)) from error
    return max(codes, default=0)
