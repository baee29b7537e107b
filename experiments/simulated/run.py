"""The whole experiment: settings in, results as they finish, metrics.json and metrics.csv, then the report."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curation.errors import CurationError
from curation.files import save_json, write_atomically
from experiments.provenance import provenance
from experiments.results import Task, mean_interval, run_tasks
from experiments.settings import from_mapping, nearest_name
from experiments.simulated.ablations import AblationSettings, ToySettings, ablation_tasks
from experiments.simulated.data import TOYS
from experiments.simulated.table import TableSettings, table_tasks
from experiments.simulated.theory import TheorySettings, theory_tasks


@dataclass(frozen=True)
class Science:
    """Section ``science``: all that changes the numbers."""

    table: TableSettings
    theory: TheorySettings
    ablations: AblationSettings


@dataclass(frozen=True)
class Speed:
    """Section ``speed``: changes how long it takes, never the numbers."""

    threads: int = 2
    device: str = "cpu"
    fresh: bool = False


@dataclass(frozen=True)
class Output:
    """Section ``output``: folders of the results and of the report."""

    runs: str
    report: str


@dataclass(frozen=True)
class Settings:
    """The whole config; names as in ``configs/``."""

    name: str
    seeds: list[int]
    science: Science
    speed: Speed
    output: Output
    scale: dict[str, Any]


def parse_settings(config: dict[str, Any]) -> tuple[Settings, dict[str, ToySettings]]:
    """Dataclasses of a resolved config, and the settings of every toy.

    Raises:
        CurationError: an unknown or missing key, no seed, or an unknown toy.
    """
    settings = from_mapping(Settings, config)
    if not settings.seeds or min(settings.seeds) < 0 or len(set(settings.seeds)) < len(settings.seeds):
        raise CurationError(f"seeds is {settings.seeds}; give one or more different numbers from 0 up, as seeds=[0,1]")
    section = settings.science.ablations
    toys = {
        name: from_mapping(ToySettings, values, f"science.ablations.toys.{name}")
        for name, values in section.toys.items()
    }
    for name in [*section.names, *toys]:
        if name not in TOYS or name not in toys:
            raise CurationError(f"science.ablations has no toy {name!r}; {nearest_name(name, set(TOYS) & set(toys))}")
    return settings, toys


def all_tasks(settings: Settings, toys: dict[str, ToySettings]) -> list[Task]:
    """Every result of the experiment, quick ones first."""
    science, seeds, device = settings.science, settings.seeds, settings.speed.device
    return [
        *table_tasks(science.table, seeds, device),
        *theory_tasks(science.theory, seeds),
        *ablation_tasks(science.ablations, toys, seeds, device),
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
        mean, half = mean_interval(found)
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


def run(config: dict[str, Any], command: str) -> Path:
    """Compute what is missing, write metrics and report.

    Args:
        config: resolved config tree.
        command: how the run was started, for the report.

    Returns:
        The report.
    """
    import numba
    import torch

    from experiments.simulated.report import write_report

    settings, toys = parse_settings(config)
    torch.set_num_threads(settings.speed.threads)
    numba.set_num_threads(min(settings.speed.threads, numba.get_num_threads()))
    folder = Path(settings.output.runs)
    source = provenance(settings.speed.device, settings.speed.threads)
    records = run_tasks(all_tasks(settings, toys), folder / "results", source, settings.speed.fresh)
    save_metrics(records, folder, config)
    return write_report(records, settings, toys, Path(settings.output.report), command)
