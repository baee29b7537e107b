"""The whole experiment: what a user types, kills, changes, and shows to a colleague."""

import csv
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from warm import Server

from curation import CurationError, Subset
from experiments.cli import run
from experiments.engine.arms import CurationSettings, curate, subset_settings
from experiments.engine.experiment import build, open_domain
from experiments.engine.settings import CONFIGS, compose
from experiments.engine.stages import Stage, StageRun, in_order
from experiments.launch import plan_table, run_experiment
from experiments.run_folder import compare_folders
from experiments.simulated.training import _batch
from foundation.files import load_json

ROOT = Path(__file__).parents[2]
SMALL = [
    "experiment=simulated",
    "science.studies=null",
    "science.curation.levels=[120,40,20]",
    "science.curation.size=400",
    "science.curation.n_resamples=1",
    "science.curation.max_iterations=5",
    "science.curation.semdedup_clusters=10",
    "science.train.recipe.steps=20",
    "science.train.recipe.log_every=10",
    "tracking.wandb=off",
    "speed.threads=1",
]
ARMS = [
    "raw",
    "all",
    "flat",
    "hierarchical_1",
    "hierarchical_3",
    "hierarchical_resampled",
    "semdedup",
    "retrieval",
    "oracle",
]


def small(root: Path, *more: str) -> dict:
    return compose([*SMALL, f"output.runs={root}", *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run") / "all arms"
    assert (
        run_experiment(
            small(root, f"arms=[{','.join(ARMS)}]", "seeds=[0,1,2]"), "the command", lambda _line: None, False
        )
        == 0
    )
    return root


@pytest.mark.parametrize("scale", ["demo", "lab", "paper"])
@pytest.mark.parametrize("experiment", [path.stem for path in sorted((CONFIGS / "experiment").glob("*.yaml"))])
def test_every_experiment_builds_at_every_scale(experiment: str, scale: str):
    built = build(compose([f"experiment={experiment}", f"scale={scale}"]))
    assert {"raw", "hierarchical_resampled"} <= set(built.rows)
    names = [stage.identity for stage in in_order(built.stages)]
    assert len(set(names)) == len(names)


def test_a_setting_of_the_code_that_stands_in_no_file_is_overridden_by_its_name():
    """The same key in every experiment, whether its file names it or not; a recipe is chosen by its name."""
    for experiment, name in {"web_images": "collapse", "satellite": "collapse", "text": "z_loss"}.items():
        recipe = compose([f"experiment={experiment}", f"science.train.recipe.{name}=0.5"])["science"]["train"]["recipe"]
        assert recipe[name] == 0.5
    chosen = compose(["experiment=web_images", "scale=paper", "pretrain@science.train.recipe=conv_cpu"])
    assert chosen["science"]["train"]["recipe"]["backbone"]["name"] == "resnet18"
    with pytest.raises(CurationError, match=r"did you mean 'science\.train\.recipe\.collapse'"):
        compose(["experiment=web_images", "science.train.recipe.colapse=0.5"])


def test_two_arms_differ_by_their_subset_alone():
    built = build(compose(["experiment=simulated", "seeds=[0]", "science.studies=null"]))
    stages = in_order(built.stages)
    for name in ("train", "evaluate"):
        one, other = (stage for stage in stages if stage.name == name)
        assert one.settings == other.settings
        assert one.seed == other.seed


def test_settings_that_an_arm_does_not_use_leave_its_results_alone():
    methods = compose(["experiment=simulated"])["science"]["methods"]
    before, after = (
        subset_settings(ARMS, methods, CurationSettings(size=10, levels=[9, 5, 2], n_resamples=n)) for n in (1, 2)
    )
    assert [arm for arm in ARMS if before[arm] != after[arm]] == ["hierarchical_resampled"]
    assert before["hierarchical_1"]["levels"] == [2]
    assert before["flat"]["k"] == 9


def test_preparation_changes_the_arms_that_ask_for_it_and_no_key_of_the_others():
    methods = compose(["experiment=simulated"])["science"]["methods"]
    arms = [*ARMS, "raw_prepared"]
    found, all_of_them = (
        subset_settings(arms, methods, CurationSettings(size=10, levels=[9, 5, 2], prepare=prepare))
        for prepare in (False, True)
    )
    assert [arm for arm in arms if "prepare" in found[arm]] == ["raw_prepared"]
    assert all(spec["prepare"] for spec in all_of_them.values())
    assert {key: found["raw_prepared"][key] for key in found["raw"]} == found["raw"]


@pytest.mark.parametrize("arm", ["raw_prepared", "flat", "hierarchical_resampled", "semdedup", "oracle"])
def test_an_arm_on_the_prepared_pool_holds_no_row_that_repeats_another(tmp_path: Path, arm: str):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 16)).astype(np.float32)
    np.save(tmp_path / "embeddings.npy", np.concatenate([x, x[:150] + 1e-3, x[:50] - 1e-3]))
    np.save(tmp_path / "labels.npy", np.concatenate([np.arange(300), np.arange(150), np.arange(50)]) % 3)
    methods = compose(["experiment=simulated"])["science"]["methods"]
    settings = CurationSettings(size=280, levels=[30, 5], n_resamples=1, semdedup_clusters=3, prepare=True)
    spec = subset_settings([arm], methods, settings)[arm]
    folder = tmp_path / "curate"
    curate(StageRun(folder, spec, 0, [(Stage("prepare", curate), tmp_path)], {}, progress=False))
    rows = Subset.load(folder / "subset").rows()
    of = np.concatenate([np.arange(300), np.arange(150), np.arange(50)])[rows]
    assert len(np.unique(of)) == len(rows) == 280
    assert load_json(folder / "prepared" / "report.json")["dropped"] == {"embedding": 200}
    assert load_json(folder / "balance.json")["pool_rows"] == 500


def test_an_arm_of_some_labels_alone_holds_no_other_row(tmp_path: Path):
    np.save(tmp_path / "embeddings.npy", np.zeros((90, 4), np.float32))
    labels = np.arange(90) % 3
    np.save(tmp_path / "labels.npy", labels)
    settings = CurationSettings(size=25, levels=[5])
    arms = {"own": {"method": "random", "only": [1]}, "others": {"method": "random", "only": [0, 2]}}
    found = {}
    for arm, spec in subset_settings(list(arms), arms, settings).items():
        folder = tmp_path / arm
        curate(StageRun(folder, spec, 0, [(Stage("prepare", curate), tmp_path)], {}, progress=False))
        rows = Subset.load(folder / "subset").rows()
        assert len(np.unique(rows)) == 25
        found[arm] = set(labels[rows])
    assert found == {"own": {1}, "others": {0, 2}}
    with pytest.raises(CurationError, match="only is of the method random, not of flat"):
        subset_settings(["own"], {"own": {"method": "flat", "only": [1]}}, settings)
    wanted = subset_settings(["own"], arms, CurationSettings(size=31, levels=[5]))["own"]
    with pytest.raises(CurationError, match=r"the labels \[1\] have 30 rows"):
        curate(StageRun(tmp_path / "much", wanted, 0, [(Stage("prepare", curate), tmp_path)], {}, progress=False))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("arms=[raw,hierarchical_resample]", "no arm 'hierarchical_resample'; did you mean 'hierarchical_resampled'"),
        ("arms=[raw,hierarchical_4]", "wants 4 levels but science.curation.levels has 3"),
        ("arms=[raw,raw]", "different names"),
        ("seeds=[]", "seeds is"),
        ("seeds=[1,1]", "seeds is"),
        ("science.curation.size=999999", "arm raw wants 999,999 of the 12,000 rows"),
        ("science.pool.toy=rings", "it must be one of manifold, clutter"),
        ("launch.where=moon", "launch.where is 'moon'"),
        ("tracking.wandb=yes please", "tracking.wandb is"),
        ("speed.hardware=abacus", "known are"),
        ("speed=5", "speed is 5"),
        ("output.runs=/dev/null/x", "/dev/null is no folder"),
        ("++launch=[moon]", "there is no launch="),
    ],
)
def test_a_bad_setting_is_one_line_and_nothing_runs(tmp_path: Path, override: str, message: str):
    dry = ["dry_run=true"] if "speed" in override else []
    with pytest.raises(CurationError, match=message) as caught:
        run_experiment(small(tmp_path / "run", override, *dry), "", lambda _line: None, False)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("stage.json"))


def test_one_seed_may_be_given_without_brackets():
    given, listed = (build(compose(["experiment=simulated", f"seeds={seed}"])) for seed in ("3", "[3]"))
    assert [stage.key for stage in in_order(given.stages)] == [stage.key for stage in in_order(listed.stages)]


def test_the_dry_run_prints_stages_costs_and_writes_nothing(tmp_path: Path, finished: Path):
    lines: list[str] = []
    run_experiment(small(tmp_path / "run", "seeds=[0]", "dry_run=true"), "", lines.append, False)
    assert not list(tmp_path.iterdir())
    for text in ("train raw seed 0", "not run yet", "still to run", "12.8 epochs of the 400 rows of raw"):
        assert text in lines[0], lines[0]
    table = plan_table(build(small(finished, "arms=[raw,oracle]", "seeds=[0,1,7]")))
    state = {line[:44].strip(): line for line in table.splitlines()}
    assert "finished before" in state["train oracle seed 1"]
    assert "*" in state["train raw seed 7"]  # estimated from the stages that ran here
    assert "not run yet" in state["train raw seed 7"]


def starred(root: Path, *more: str) -> dict[str, str]:
    """Stage -> its time in the dry run of seed 7, for the times that are of stages that ran."""
    lines = plan_table(build(small(root, "seeds=[7]", *more))).splitlines()
    stages = [line for line in lines if "seed 7" in line]
    assert len(stages) == 1 + 3 * 2
    return {line[:44].strip(): line[67:78].strip() for line in stages if "*" in line[67:78]}


def test_a_measured_time_is_of_the_same_stage_arm_settings_and_device(finished: Path):
    """Else seconds of a small network on a processor would become the GPU hours of a large one."""
    arms = "arms=[raw,oracle]"
    assert len(starred(finished, arms)) == 7
    seconds = [
        json.loads((folder / "stage.json").read_text())["cost"]["seconds"]
        for folder in finished.glob("oracle/seed*/curate-*")
    ]
    assert starred(finished, arms)["curate oracle seed 7"] == f"{sum(seconds) / len(seconds):.1f} s*"
    assert not starred(finished, arms, "speed.device=cuda")
    wider = starred(finished, arms, "science.train.recipe.width=64")
    assert list(wider) == ["prepare seed 7", "curate raw seed 7", "curate oracle seed 7"]
    assert list(starred(finished, arms, "science.curation.size=500")) == ["prepare seed 7"]


def test_every_arm_saw_the_same_budget_on_its_own_rows(finished: Path):
    sizes = {}
    for arm in ARMS:
        marker = json.loads(next((finished / arm / "seed0").glob("train-*/stage.json")).read_text())
        assert marker["cost"]["samples"] == 20 * 256
        subset = Subset.load(next((finished / arm / "seed0").glob("curate-*")) / "subset")
        sizes[arm] = len(subset)
    assert sizes.pop("all") == 12_000
    assert set(sizes.values()) == {400}


def test_metrics_json_and_csv_hold_the_same_values(finished: Path):
    metrics = json.loads((finished / "metrics.json").read_text())
    with open(finished / "metrics.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(metrics["values"]) == len(ARMS) * 3 * 8
    mine = [float(row["value"]) for row in rows if row["arm"] == "oracle" and row["metric"] == "error_macro"]
    summary = next(item for item in metrics["summary"] if item["arm"] == "oracle" and item["metric"] == "error_macro")
    assert summary["mean"] == pytest.approx(np.mean(mine))
    assert summary["pairs"] == 3
    assert metrics["command"] == "the command"


def test_the_report_opens_and_says_the_verdict(finished: Path, assert_opens):
    page = assert_opens(finished / "report.html")
    metrics = json.loads((finished / "metrics.json").read_text())
    method = next(
        item
        for item in metrics["summary"]
        if item["arm"] == "hierarchical_resampled" and item["metric"] == "error_macro"
    )
    assert f"{method['verdict'].capitalize()}." in page.find_element("css selector", ".verdict").text
    text = page.find_element("tag name", "body").text
    for arm in ARMS:
        assert arm in text
    assert "the command" in text
    assert "12.8 epochs of the 400 rows of raw" in text
    assert len(page.find_elements("css selector", ".cluster img")) == 27  # nine clusters of three levels
    assert len(page.find_elements("tag name", "svg")) == 4
    source = (finished / "report.html").read_text()
    assert "<script" not in source
    assert 'src="http' not in source


def test_no_significant_difference_is_said(finished: Path, tmp_path: Path):
    page = compare_folders([finished], tmp_path / "page").read_text()
    verdicts = {item["verdict"] for item in json.loads((tmp_path / "page/metrics.json").read_text())["summary"]}
    assert "no significant difference" in verdicts
    assert "no significant difference" in page


def test_a_rerun_skips_everything_and_ends_with_the_same_report(finished: Path):
    lines: list[str] = []
    config = small(finished, f"arms=[{','.join(ARMS)}]", "seeds=[0,1,2]")
    before = (finished / "metrics.json").read_bytes()
    assert run_experiment(config, "the command", lines.append, False) == 0
    assert sum("finished before" in line for line in lines) == 3 + len(ARMS) * 9 + 1
    assert (finished / "metrics.json").read_bytes() == before


def test_a_failed_arm_is_named_and_the_others_are_compared(tmp_path: Path):
    lines: list[str] = []
    config = small(tmp_path, "arms=[raw,oracle]", "seeds=[0]")
    build(config)  # the arm itself is fine
    broken = build(config)
    stage = next(item for item in broken.stages if item.arm == "oracle").upstream[1].upstream[1]
    stage.folder(tmp_path).mkdir(parents=True)
    (stage.folder(tmp_path) / "subset").write_text("in the way")  # as if the disk refused
    assert run_experiment(config, "", lines.append, False) == 1
    assert any(line.startswith("[5/7] curate oracle seed 0: failed, ") for line in lines), lines
    assert any("train oracle seed 0: skipped, curate oracle seed 0 failed" in line for line in lines)
    page = (tmp_path / "report.html").read_text()
    assert "train oracle seed 0: skipped" in page


def test_batches_are_a_function_of_seed_and_step():
    import torch

    x = torch.arange(100.0)[:, None]
    seen = torch.cat([_batch(x, step, 0, 30)[0] for step in range(10)]).flatten()
    assert torch.equal(torch.sort(seen[:100]).values, x.flatten())  # each epoch takes every row once
    assert torch.equal(torch.sort(seen[200:300]).values, x.flatten())
    assert not torch.equal(_batch(x, 0, 0, 30)[0], _batch(x, 0, 1, 30)[0])


def test_killed_in_training_it_resumes_to_the_same_numbers(tmp_path: Path, warm: Server):
    """Two processes are killed with no chance to clean up; the third ends as one that was left alone."""
    steps = ["science.train.recipe.steps=250", "science.train.recipe.log_every=10", "arms=[raw]", "seeds=[0]"]
    command = [ROOT / "scripts/run_experiment.py", *SMALL, *steps, f"output.runs={tmp_path / 'killed'}"]
    for _ in range(2):
        process = warm.start(*command, start_new_session=True)
        deadline, grown = time.time() + 120, 0
        while time.time() < deadline and grown < 3:
            time.sleep(0.01)
            curves = list((tmp_path / "killed").rglob("curve.jsonl"))
            now = curves[0].stat().st_mtime_ns if curves else 0
            grown += now != getattr(process, "last", 0)
            process.last = now  # type: ignore[attr-defined]
        assert process.poll() is None, process.communicate()[1][-2000:]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    last = warm.run(*command)
    assert last.returncode == 0, last.stderr
    assert "interrupted before; goes on" in last.stdout
    whole = warm.run(*command[:-1], f"output.runs={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    curves = [next((tmp_path / name).rglob("curve.jsonl")).read_text() for name in ("killed", "whole")]
    assert curves[0] == curves[1]
    assert (tmp_path / "killed/metrics.csv").read_bytes() == (tmp_path / "whole/metrics.csv").read_bytes()


def test_the_headline_of_every_domain_is_one_metric():
    for path in (CONFIGS / "experiment").glob("*.yaml"):
        domain = open_domain(compose([f"experiment={path.stem}"])["name"])
        assert sum(metric.headline for metric in domain.metrics) == 1
        assert {metric.better for metric in domain.metrics} <= {"higher", "lower"}


def test_without_an_experiment_none_is_started(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    """The first thing that one types must not write files and compute for an hour."""
    monkeypatch.chdir(tmp_path)
    assert run([]) == 0
    said = capsys.readouterr().out.splitlines()
    for path in (ROOT / "configs/experiment").glob("*.yaml"):
        (line,) = [line for line in said if line.startswith(f"  {path.stem} ")]
        assert len(line) > 40
        assert build(compose([f"experiment={path.stem}", "scale=demo"]))
    assert any("experiment=NAME scale=demo dry_run=true" in line for line in said)
    for words in (["scale=lab"], ["-m", "seeds=0,1"], ["--cfg", "job"]):
        with pytest.raises(CurationError, match=r"add experiment=NAME, one of satellite, .*simulated, text"):
            run(words)
    assert not list(tmp_path.iterdir())


def test_a_sweep_runs_an_experiment_for_each_value(tmp_path: Path, warm: Server):
    command = [ROOT / "scripts/run_experiment.py", "-m", *SMALL, "seeds=[0]", "arms=[raw]"]
    command += ["science.train.recipe.steps=20,40", f"output.runs={tmp_path}/steps-${{science.train.recipe.steps}}"]
    done = warm.run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    values = [(tmp_path / f"steps-{steps}" / "metrics.csv").read_text() for steps in (20, 40)]
    assert values[0] != values[1]


@pytest.mark.parametrize("word", ["science.nope=1,2", "science.curation.size=nan,5"])
def test_a_mistake_in_a_sweep_is_one_line(tmp_path: Path, warm: Server, word: str):
    more = ["dry_run=true", f"output.runs={tmp_path}/run", f"hydra.sweep.dir={tmp_path}"]
    done = warm.run(ROOT / "scripts/run_experiment.py", "-m", *SMALL, word, *more)
    assert done.returncode == 2
    assert done.stderr.startswith("run_experiment: error: ") or "\nrun_experiment: error: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("experiment", "default"), [("text", "weight_decay=0.1"), ("web_images", "loss.koleo=0.1")])
def test_the_key_of_a_training_knows_every_default_and_nothing_of_speed(experiment: str, default: str):
    """A run is not repeated for another interval of checkpoints, and not reused when a default has changed."""

    def key(*more: str) -> str:
        built = build(compose([f"experiment={experiment}", "seeds=[0]", "arms=[raw]", *more]))
        return next(stage.key for stage in in_order(built.stages) if stage.name == "train")

    section = "science.train.recipe"
    plain = key()
    assert key(f"{section}.speed.checkpoint_every=7") == plain
    assert key(f"{section}.{default}") == plain
    assert key(f"{section}.{default}5") != plain


@pytest.mark.parametrize("name", ["simulatd", "a\nb", "", "..os", 7])
def test_an_experiment_that_is_not_there_is_named(name: object):
    with pytest.raises(CurationError, match="there is no experiment"):
        open_domain(name)  # type: ignore[arg-type]
