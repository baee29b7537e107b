"""The studies of known densities: results as they finish, metrics.json and metrics.csv, then the written report."""

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from experiments.engine.provenance import provenance
from experiments.engine.results import Task, run_tasks
from experiments.engine.stages import Stage, StageRun
from experiments.simulated.ablations import ToySettings, ablation_tasks
from experiments.simulated.data import TOYS
from experiments.simulated.report import write_report
from experiments.simulated.study_settings import Studies
from experiments.simulated.table import table_tasks
from experiments.simulated.theory import theory_tasks
from foundation.errors import CurationError
from foundation.files import save_json, write_atomically
from foundation.intervals import student_interval
from foundation.settings import fill, nearest_name


def parse_studies(config: dict[str, Any]) -> tuple[Studies, dict[str, ToySettings]]:
    """Dataclasses of ``science.studies`` of a resolved config, and the settings of every toy.

    Raises:
        CurationError: an unknown or missing key, or an unknown toy.
    """
    studies = fill(Studies, config["science"]["studies"], "science.studies")
    section = studies.ablations
    toys = {
        name: fill(ToySettings, values, f"science.studies.ablations.toys.{name}")
        for name, values in section.toys.items()
    }
    for name in [*section.names, *toys]:
        if name not in TOYS or name not in toys:
            hint = nearest_name(name, set(TOYS) & set(toys))
            raise CurationError(f"science.studies.ablations has no toy {name!r}; {hint}")
    return studies, toys


def all_tasks(studies: Studies, toys: dict[str, ToySettings], seeds: list[int], device: str = "cpu") -> list[Task]:
    """Every result of the studies, quick ones first."""
    return [
        *table_tasks(studies.table, seeds, device),
        *theory_tasks(studies.theory, seeds),
        *ablation_tasks(studies.ablations, toys, seeds, device),
    ]


def metric_rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each (study, row, measure): mean, half width of the 95 % interval, number of seeds."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for record in records:
        for measure, value in record["result"].items():
            if not isinstance(value, list):
                values.setdefault((record["study"], record["row"], measure), []).append(float(value))
    rows = []
    for (study, row, measure), found in values.items():
        mean, half = student_interval(found)
        known = None if np.isnan(half) else half
        rows.append(
            {"study": study, "row": row, "measure": measure, "mean": mean, "interval_95": known, "seeds": len(found)}
        )
    return rows


def save_metrics(records: list[dict[str, Any]], folder: Path, settings: dict[str, Any]) -> None:
    """Write ``metrics.json`` (means and intervals, config, commits) and ``metrics.csv`` (one line a value)."""
    commits = sorted({record["provenance"]["commit"] for record in records})
    save_json(folder / "metrics.json", {"config": settings, "commits": commits, "metrics": metric_rows(records)})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["study", "row", "seed", "measure", "value"])
    for record in records:
        for measure, value in record["result"].items():
            if not isinstance(value, list):
                writer.writerow([record["study"], record["row"], record["seed"], measure, value])
    write_atomically(folder / "metrics.csv", lambda stream: stream.write(text.getvalue().encode()))


def studies_stage(config: dict[str, Any]) -> Stage:
    """The studies as one stage: results as they finish, ``metrics.json`` and ``metrics.csv``, then the written report.

    The report goes to ``output.report`` as well, where the project keeps its results.
    """
    studies, toys = parse_studies(config)
    seeds = [int(seed) for seed in config["seeds"]]

    def action(run: StageRun) -> None:
        source = provenance(run.speed["device"], run.speed["threads"])
        # single results are kept beside the stages: they outlive a change of the others
        results = run.folder.parents[1] / "results"
        tasks = all_tasks(studies, toys, seeds, run.speed["device"])
        records = run_tasks(tasks, results, source, progress=run.progress)
        save_metrics(records, run.folder, {"seeds": seeds, **config["science"]["studies"]})
        command = f"python scripts/run_experiment.py experiment=simulated scale={config['scale']['name']}"
        for folder in dict.fromkeys([run.folder, Path(config["output"]["report"])]):
            write_report(records, studies, toys, seeds, folder, command)

    decides = {"seeds": seeds, **asdict(studies)}  # what stands in no file, too
    decides["ablations"]["toys"] = {name: asdict(toy) for name, toy in toys.items()}
    return Stage("studies", action, {"seeds": seeds, **config["science"]["studies"]}, decides=decides)
