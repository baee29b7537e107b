"""From a config to a finished comparison: dry run, local run, and what jobs on a cluster share with it."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curation.errors import CurationError
from curation.files import load_json, save_json
from curation.plan import PROFILES, Hardware, calibrate
from experiments.arms import BASE_ARM
from experiments.compare import MANIFEST, load_runs, metric_rows, save_comparison, summarise
from experiments.experiment import Experiment, Speed, build, open_domain
from experiments.provenance import provenance
from experiments.report import write_report
from experiments.settings import CONFIGS, nearest_name
from experiments.stages import MARKER, Stage, in_order, locked, run_stages, state_of
from experiments.tracking import open_tracker, track_comparison

LOCATIONS = ("local", "slurm")


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


def measured_seconds(stage: Stage, root: Path) -> float | None:
    """Seconds that finished stages of this name took here, in proportion to the samples; None where there are none."""
    rates = []
    for path in root.rglob(f"{stage.name}-*/{MARKER}"):
        cost = load_json(path)["cost"]
        if stage.estimate.samples and cost["samples"]:
            rates.append(cost["seconds"] / cost["samples"] * stage.estimate.samples)
        elif not stage.estimate.samples:
            rates.append(cost["seconds"])
    return sum(rates) / len(rates) if rates else None


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def plan_table(experiment: Experiment) -> str:
    """The dry run: every stage, whether it is done and why not, and what it will cost."""
    lines = [f"{'stage':<44}{'samples':>12}{'FLOP':>11}{'time':>11}  state"]
    total, unknown, root = 0.0, 0, experiment.root
    for stage in in_order(experiment.stages):
        state, cost = state_of(stage, root), stage.estimate
        measured = measured_seconds(stage, root)
        seconds = measured if measured is not None else cost.seconds
        flops = f"{cost.flops:.2e}" if cost.flops else "-"
        samples = f"{cost.samples:,.0f}" if cost.samples else "-"
        if not state.finished:
            total, unknown = total + (seconds or 0.0), unknown + (seconds is None)
        mark = "" if measured is None else "*"
        lines.append(f"{stage.identity:<44}{samples:>12}{flops:>11}{_time(seconds) + mark:>11}  {state.why}")
    rest = f", and {unknown} stages whose time is not known before they have run once" if unknown else ""
    lines += ["", f"still to run: {_time(total)} one after another{rest}; * from stages that finished here,"]
    lines.append("else operations / sustained rate of the hardware: a lower bound for small models on a CPU")
    lines += [f"note: {line}" for line in experiment.warnings()]
    return "\n".join(lines)


def begin_stage(experiment: Experiment, config: dict[str, Any], progress: bool = True) -> dict[str, Any]:
    """Options of `run_stage` for this process; sets its threads."""
    import numba
    import torch

    settings = experiment.settings
    torch.set_num_threads(settings.speed.threads)
    numba.set_num_threads(min(settings.speed.threads, numba.get_num_threads()))
    track: Callable[[Stage, Path], Any] = lambda stage, folder: open_tracker(  # noqa: E731
        settings.tracking, experiment.root, settings.name, settings.scale["name"], stage, folder
    )
    return {
        "speed": config["speed"],
        "provenance": provenance(settings.speed.device, settings.speed.threads),
        "progress": progress,
        "track": track,
    }


def write_manifest(experiment: Experiment, config: dict[str, Any], command: str) -> None:
    """``run.json``: what was asked for, by which command, and where its stages lie."""
    places = [str(stage.folder(experiment.root).relative_to(experiment.root)) for stage in in_order(experiment.stages)]
    about = {"name": experiment.settings.name, "command": command, "asked": time.time()}
    save_json(experiment.root / MANIFEST, {**about, "config": config, "stages": places})


def finish_experiment(
    experiment: Experiment, config: dict[str, Any], command: str, failures: dict[str, str] | None = None
) -> Path:
    """Compare what is finished: metrics.json, metrics.csv, report.html; and tell W&B."""
    root, domain, settings = experiment.root, experiment.domain, experiment.settings
    write_manifest(experiment, config, command)
    manifest, records = load_runs([root])
    rows = metric_rows(records)
    better = {metric.name: metric.better for metric in domain.metrics}
    summaries = summarise(rows, better)
    notes = experiment.warnings()
    notes += [f"{name}: {why}" for name, why in (failures or {}).items()]
    about = {"experiment": settings.name, "scale": settings.scale["name"], "base": BASE_ARM, "command": command}
    about |= {"commits": sorted({record.marker["provenance"]["commit"] for record in records}), "config": config}
    save_comparison(root, rows, summaries, about)
    report = write_report(root / "report.html", domain, manifest, records, summaries, notes)
    table = [vars(item) for item in summaries]
    track_comparison(settings.tracking, root, settings.name, settings.scale["name"], table, report)
    return report


def compare_folders(roots: list[Path], output: Path) -> Path:
    """One report of run folders of several machines; they must hold the same experiment."""
    manifest, records = load_runs(roots)
    domain = open_domain(manifest["name"])
    summaries = summarise(metric_rows(records), {metric.name: metric.better for metric in domain.metrics})
    about = {"experiment": manifest["name"], "base": BASE_ARM, "folders": [str(root) for root in roots]}
    save_comparison(output, metric_rows(records), summaries, about)
    return write_report(output / "report.html", domain, manifest, records, summaries, [])


def run_experiment(
    config: dict[str, Any], command: str, say: Callable[[str], None] = print, progress: bool = True
) -> int:
    """Do what the config says: dry run, local run, or submission.

    Args:
        config: resolved config; see `experiments.settings.compose`.
        command: how it was started, for the report.

    Returns:
        Exit code: 0, or 1 where a stage failed.

    Raises:
        CurationError: a bad setting, or another process is at this run folder; nothing was run.
    """
    where = config.get("launch", {}).get("where")
    if where not in LOCATIONS:
        raise CurationError(f"launch.where is {where!r}; use one of {', '.join(LOCATIONS)}")
    if config.get("dry_run"):
        speed = Speed(**config["speed"])
        say(plan_table(build(config, hardware_of(speed))))
        return 0
    experiment = build(config)
    root = experiment.root
    with locked(root, "an experiment"):
        if experiment.settings.speed.fresh:
            for stage in in_order(experiment.stages):
                shutil.rmtree(stage.folder(root), ignore_errors=True)
        for line in experiment.warnings():
            say(f"note: {line}")
        write_manifest(experiment, config, command)
        if where == "slurm":
            from experiments.slurm import submit

            jobs = submit(experiment, {**config, "output": _absolute(config["output"])}, command)
            for name, job in jobs.items():
                say(f"job {job}: {name}")
            say(f"logs: {root / 'slurm'}; the last job writes {root / 'report.html'}")
            return 0
        outcome = run_stages(experiment.stages, root, say, **begin_stage(experiment, config, progress))
        failures = {name: f"failed, {why}" for name, why in outcome.failed.items()}
        failures |= {name: f"skipped, {why}" for name, why in outcome.skipped.items()}
        report = finish_experiment(experiment, config, command, failures)
    say(f"{len(outcome.done)} stages run, {len(outcome.finished_before)} finished before, {len(outcome.failed)} failed")
    say(f"report: {report}")
    return 1 if outcome.failed else 0


def _absolute(output: dict[str, Any]) -> dict[str, Any]:
    return {name: str(Path(value).absolute()) for name, value in output.items()}


def sweep() -> int:
    """Hydra's own multirun of the command line (`-m`), with any of its launchers; each job runs a whole experiment."""
    import shlex
    import sys

    import hydra
    from omegaconf import DictConfig, OmegaConf

    command = shlex.join(["python", "scripts/run_experiment.py", *sys.argv[1:]])

    def job(config: DictConfig) -> int:
        plain = OmegaConf.to_container(config, resolve=True)
        assert isinstance(plain, dict)
        return run_experiment({str(key): value for key, value in plain.items()}, command, progress=False)

    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(job)()
    return 0
