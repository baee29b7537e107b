"""What a run folder holds besides its stages: the manifest, the metrics, and the report."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.engine.arms import BASE_ARM
from experiments.engine.compare import MANIFEST, load_runs, metric_rows, save_comparison, summarise
from experiments.engine.experiment import Experiment, open_domain
from experiments.engine.provenance import provenance
from experiments.engine.stages import Stage, in_order
from experiments.engine.tracking import open_tracker, track_comparison
from experiments.pages.report import verdict, write_report
from foundation.devices import open_device
from foundation.errors import CurationError
from foundation.files import require_own, save_json
from foundation.threads import set_threads

RESULTS = {
    "metrics.json": '"summary"',
    "metrics.csv": "arm,seed,metric,value",
    "report.html": "The whole configuration",
}


def begin_stage(experiment: Experiment, config: dict[str, Any], progress: bool = True) -> dict[str, Any]:
    """Options of `run_stage` for this process; sets its threads.

    Raises:
        CurationError: ``speed.device`` is not there.
    """
    settings = experiment.settings
    try:
        open_device(settings.speed.device)
    except CurationError as error:  # now, not when the first stage has run that needs none
        raise CurationError(
            f"speed.device is {settings.speed.device!r}, which is not there on this machine or in this job; set "
            "speed.device=cpu, or ask for a GPU (launch.stages.STAGE.gpus_per_node=1)"
        ) from error
    set_threads(settings.speed.threads)
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
) -> tuple[Path, str]:
    """Compare what is finished: metrics.json, metrics.csv, report.html; and tell W&B.

    Returns:
        The report, and the sentence at its top.
    """
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
    return report, verdict(domain, summaries)[1]


def compare_folders(roots: list[Path], output: Path) -> Path:
    """One report of run folders of several machines; they must hold the same experiment.

    Raises:
        CurationError: they do not, one is no run folder, or a file of somebody else lies in the place of a result.
    """
    for name, mark in RESULTS.items():
        require_own(output / name, mark, None)
    manifest, records = load_runs(roots)
    domain = open_domain(manifest["name"])
    summaries = summarise(metric_rows(records), {metric.name: metric.better for metric in domain.metrics})
    about = {"experiment": manifest["name"], "base": BASE_ARM, "folders": [str(root) for root in roots]}
    save_comparison(output, metric_rows(records), summaries, about)
    return write_report(output / "report.html", domain, manifest, records, summaries, [])
