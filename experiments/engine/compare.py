"""Comparison of arms: a library function first, on run folders of one machine or of several."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.engine.arms import BASE_ARM
from experiments.engine.stages import MARKER, load_marker
from foundation.errors import CurationError
from foundation.files import load_json, save_json, write_atomically
from foundation.intervals import judge_difference, student_interval
from foundation.paths import inside

MANIFEST = "run.json"
# in the metrics of an evaluation whose data are no input of a stage: `eval.results.Results.data`
MEASURED = "measured"


@dataclass(frozen=True)
class Row:
    """One tidy value."""

    arm: str
    seed: int
    metric: str
    value: float


@dataclass(frozen=True)
class Summary:
    """One cell of the table: an arm and a metric.

    Attributes:
        mean, interval: over the seeds; half width of the 95 % interval of the mean (Student's t), NaN for one seed.
        difference: mean of (arm - base) over the seeds that both have; NaN for the base itself.
        low, high: 95 % interval of the difference, percentile bootstrap over seeds.
        verdict: better, worse, `NO_DIFFERENCE`, `TOO_FEW`, or "" for the base.
        seeds: of the mean; pairs: of the difference.
    """

    arm: str
    metric: str
    mean: float
    interval: float
    difference: float
    low: float
    high: float
    verdict: str
    seeds: int
    pairs: int


def summarise(rows: Sequence[Row], better: dict[str, str], base: str = BASE_ARM) -> list[Summary]:
    """One `Summary` for each arm and metric, arms and metrics in the order of ``rows`` and ``better``.

    Args:
        rows: tidy values; a seed pairs an arm with the base.
        better: metric -> "higher" or "lower"; metrics that are not here are left out.
        base: arm that the others are compared with.
    """
    values: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        values.setdefault((row.arm, row.metric), {})[row.seed] = row.value
    arms = list(dict.fromkeys(row.arm for row in rows))
    found = []
    for arm in arms:
        for metric, direction in better.items():
            mine = values.get((arm, metric), {})
            if not mine:
                continue
            mean, half = student_interval(list(mine.values()))
            theirs = values.get((base, metric), {})
            common = sorted(set(mine) & set(theirs)) if arm != base else []
            differences = np.array([mine[seed] - theirs[seed] for seed in common])
            difference, low, high, verdict = judge_difference(differences, direction)
            if arm == base:
                verdict = ""
            found.append(
                Summary(
                    arm,
                    metric,
                    mean,
                    half,
                    difference=difference,
                    low=low,
                    high=high,
                    verdict=verdict,
                    seeds=len(mine),
                    pairs=len(common),
                )
            )
    return found


@dataclass
class _Scale:
    name: str


@dataclass
class _Config:
    name: str
    scale: _Scale
    science: dict[str, Any]


@dataclass
class _Manifest:
    """What ``run.json`` of an experiment must hold; a training run has a file of this name too."""

    name: str
    command: str
    config: _Config
    stages: list[str]


@dataclass(frozen=True)
class StageRecord:
    """A finished stage of a run folder: its marker and where it lies."""

    name: str
    arm: str
    seed: int | None
    folder: Path
    marker: dict[str, Any]


def load_run(root: Path) -> tuple[dict[str, Any], list[StageRecord]]:
    """Manifest of a run folder (what was asked for last) and its finished stages.

    Raises:
        CurationError: it is no run folder.
    """
    path = Path(root) / MANIFEST
    manifest = load_json(path, _Manifest, "give the folder of a run of scripts/run_experiment.py")
    found = []
    for place in manifest["stages"]:
        folder = inside(root, place, str(path))
        if (folder / MARKER).exists():
            marker = load_marker(folder)
            found.append(StageRecord(marker["name"], marker["arm"], marker["seed"], folder, marker))
    return manifest, found


def load_runs(roots: Sequence[str | Path]) -> tuple[dict[str, Any], list[StageRecord]]:
    """Several run folders of one experiment as one; a stage that two of them hold counts once.

    Raises:
        CurationError: the folders hold different experiments: another name, other science or other input files.
    """
    if not roots:
        raise CurationError("compare needs at least one run folder")
    first, records = load_run(Path(roots[0]))
    seen = {record.marker["key"] for record in records}
    for root in roots[1:]:
        manifest, more = load_run(Path(root))
        for part in ("name", "science"):
            if manifest["config"][part] != first["config"][part]:
                raise CurationError(
                    f"{root} holds another experiment than {roots[0]}: its {part} differs; compare like with like"
                )
        mine, theirs = _input_files(records), _input_files(more)
        if changed := [name for name in mine.keys() & theirs.keys() if mine[name] != theirs[name]]:
            raise CurationError(f"{root} was made of another {changed[0]} than {roots[0]}; compare like with like")
        records += [record for record in more if record.marker["key"] not in seen]
        seen |= {record.marker["key"] for record in more}
    return first, records


def _input_files(records: Sequence[StageRecord]) -> dict[str, dict[str, Any]]:
    """Of each input file what does not depend on the machine: bytes and checksum, of folders the number of files."""
    files = [item for record in records for item in record.marker.get("inputs", {}).get("files", {}).items()]
    return {name: {key: said.get(key) for key in ("bytes", "checksum", "files")} for name, said in files}


def metric_rows(records: Sequence[StageRecord]) -> list[Row]:
    """Tidy values of all finished evaluations.

    Raises:
        CurationError: two evaluations of one arm and seed, a value that is no finite number, or data sets that changed
            between two evaluations.
    """
    rows: list[Row] = []
    measured: dict[str, tuple[Any, Path]] = {}
    seen: set[tuple[str, int]] = set()
    for record in records:
        if record.name != "evaluate":
            continue
        seed = record.seed or 0
        if (record.arm, seed) in seen:
            raise CurationError(f"two evaluations of {record.arm} seed {seed}: {record.folder} is the second")
        seen.add((record.arm, seed))
        content = load_json(record.folder / "metrics.json")
        for dataset, said in content.get(MEASURED, {}).items():
            known, first = measured.setdefault(dataset, (said, record.folder))
            if said != known:
                raise CurationError(
                    f"{dataset} changed between the evaluations {first} and {record.folder}; delete the older folder, "
                    "and call the experiment again"
                )
        for metric, value in content["metrics"].items():
            if not np.isfinite(value):
                raise CurationError(f"{record.folder}/metrics.json: {metric} is {value}; evaluate it again")
            rows.append(Row(record.arm, seed, metric, float(value)))
    return rows


def compare(roots: Sequence[str | Path], better: dict[str, str], base: str = BASE_ARM) -> list[Summary]:
    """Read run folders and lay their arms side by side; see `summarise`."""
    return summarise(metric_rows(load_runs(roots)[1]), better, base)


def save_comparison(folder: Path, rows: Sequence[Row], summaries: Sequence[Summary], about: dict[str, Any]) -> None:
    """``metrics.json`` (summary and values) and ``metrics.csv`` (one line a value) in ``folder``."""
    clean = json.loads(json.dumps([asdict(item) for item in summaries]), parse_constant=lambda _text: None)
    save_json(folder / "metrics.json", {**about, "summary": clean, "values": [asdict(row) for row in rows]})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "seed", "metric", "value"])
    writer.writerows([row.arm, row.seed, row.metric, row.value] for row in rows)
    write_atomically(folder / "metrics.csv", lambda stream: stream.write(text.getvalue().encode()))
