"""Comparison: a difference called where there is none, or missed where there is, is the product failing."""

import json
import shutil
from pathlib import Path

import pytest

from curation import CurationError
from experiments.engine.compare import (
    Row,
    load_runs,
    metric_rows,
    summarise,
)


def test_differences_are_paired_by_seed():
    rows = [Row("raw", seed, "accuracy", 10.0 * seed) for seed in range(5)]
    rows += [Row("curated", seed, "accuracy", 10.0 * seed + 1 + 0.01 * seed) for seed in (4, 3, 2, 1)]
    raw, curated = summarise(rows, {"accuracy": "higher"})
    assert (raw.verdict, raw.seeds, raw.pairs) == ("", 5, 0)
    assert curated.verdict == "better"
    assert (curated.seeds, curated.pairs) == (4, 4)
    assert curated.difference == pytest.approx(1.025)
    assert curated.mean == pytest.approx(26.025)


def write_run(root: Path, seeds: list[int], arms: tuple[str, ...] = ("raw", "oracle"), science: int = 1) -> Path:
    stages = []
    for arm in arms:
        for seed in seeds:
            folder = root / arm / f"seed{seed}" / "evaluate-x"
            folder.mkdir(parents=True)
            value = {"metrics": {"accuracy": seed + len(arm)}}
            (folder / "metrics.json").write_text(json.dumps(value))
            marker = {"name": "evaluate", "arm": arm, "seed": seed, "key": f"{arm}{seed}"}
            (folder / "stage.json").write_text(json.dumps(marker))
            stages.append(str(folder.relative_to(root)))
    config = {"name": "toy", "scale": {"name": "demo"}, "science": {"size": science}}
    (root / "run.json").write_text(json.dumps({"name": "toy", "command": "x", "config": config, "stages": stages}))
    return root


def test_run_folders_of_several_machines_are_one_experiment(tmp_path: Path):
    one, two = write_run(tmp_path / "a", [0, 1]), write_run(tmp_path / "b", [1, 2])
    _manifest, records = load_runs([one, two])
    rows = metric_rows(records)
    assert sorted((row.arm, row.seed) for row in rows) == [
        (arm, seed) for arm in ("oracle", "raw") for seed in range(3)
    ]
    for root, content in ((one, "a"), (two, "b")):  # the same settings, of a file that has changed
        marker = root / "raw/seed1/evaluate-x/stage.json"
        files = {"my.jsonl": {"bytes": 1, "checksum": content, "modified_ns": 1}}
        marker.write_text(json.dumps({**json.loads(marker.read_text()), "inputs": {"files": files}}))
    with pytest.raises(CurationError, match=r"b was made of another my\.jsonl than .*a; compare like with like"):
        load_runs([one, two])
    other = write_run(tmp_path / "c", [3], science=2)
    with pytest.raises(CurationError, match="holds another experiment"):
        load_runs([one, other])
    with pytest.raises(CurationError, match="does not exist"):
        load_runs([tmp_path / "nothing"])
    with pytest.raises(CurationError, match="at least one"):
        load_runs([])


def test_arms_that_were_measured_on_other_data_are_not_compared(tmp_path: Path):
    """The data of a suite are no input of a stage: they may change while others are finished."""
    root = write_run(tmp_path / "a", [0])
    for arm, content in (("raw", "x"), ("oracle", "y")):
        path = root / arm / "seed0/evaluate-x/metrics.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "measured": {"cifar": [content], "pets": ["z"]}}))
    with pytest.raises(CurationError, match=r"cifar changed between the evaluations .*raw.* and .*oracle"):
        metric_rows(load_runs([root])[1])


def test_values_that_are_no_numbers_and_double_results_are_errors(tmp_path: Path):
    root = write_run(tmp_path / "a", [0], ("raw",))
    double = load_runs([root])[1]
    with pytest.raises(CurationError, match="two evaluations of raw seed 0"):
        metric_rows([*double, *double])
    (root / "raw/seed0/evaluate-x/metrics.json").write_text('{"metrics": {"accuracy": NaN}}')
    with pytest.raises(CurationError, match="accuracy is nan"):
        metric_rows(load_runs([root])[1])
    shutil.rmtree(root / "raw")
    assert metric_rows(load_runs([root])[1]) == []
