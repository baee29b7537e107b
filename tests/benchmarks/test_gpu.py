"""The check for GPUs must have run somewhere before it first meets one: here at tiny sizes on the CPU."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import check as module
from benchmarks.gpu import machine
from benchmarks.gpu.check import Options, check
from benchmarks.gpu.page import COLUMNS
from benchmarks.gpu.parts import STEPS, Part
from benchmarks.gpu.pictures import SHAPES, concept_picture
from benchmarks.gpu.steps import all_parts
from foundation.errors import CurationError

ROOT = Path(__file__).parents[2]


def options(folder: Path, **changes: Any) -> Options:
    given = {"output": folder / "gpu.md", "work": folder / "work", "device": "cpu", "tiny": True, "install": False}
    return Options(**{**given, **changes})  # type: ignore[arg-type]


def ran(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "gpu.json").read_text())["parts"]


def test_a_step_is_measured_kept_and_not_repeated(tmp_path: Path):
    said: list[str] = []
    assert check(options(tmp_path, steps="embed", command="the command"), said.append) == 0
    found = ran(tmp_path)
    assert list(found) == ["embed"]
    assert found["embed"]["status"] == "done"
    assert all(row["images_per_second"] > 0 for row in found["embed"]["rows"])
    page = (tmp_path / "gpu.md").read_text()
    assert "the command" in page
    assert "Tiny sizes" in page
    assert "45 % MFU" in page, "goals stand beside figures"
    assert page.count("not run yet") == len(all_parts()) - 1
    check(options(tmp_path, steps="embed"), said.append)
    assert said[-2] == "embed: finished before"
    assert ran(tmp_path) == found


def part(name: str, code: str) -> Part:
    return Part(name, "kmeans", name, code, least=0.0)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Parts whose process is a few lines of Python instead of ours."""
    scripts: dict[str, str] = {}
    monkeypatch.setattr(module, "all_parts", lambda: [part(name, "") for name in scripts])

    def command(name: str, _given: str) -> list[str]:
        head = f"import json, os, signal, sys, time\nnew = {str(tmp_path / 'work/parts' / name)!r} + '.new.json'\n"
        head += "found = json.load(open(new))\ndef keep(**more): json.dump({**found, **more}, open(new, 'w'))\n"
        return [sys.executable, "-c", head + scripts[name]]

    monkeypatch.setattr(module, "_command", command)
    return scripts


def test_what_is_cut_off_or_crashes_is_kept_and_the_rest_runs(
    tmp_path: Path, parts: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "LONGEST", 2.0)
    monkeypatch.setattr(module, "GRACE", 0.5)
    parts["slow"] = (
        "keep(rows=[{'what': 'first', 'seconds': 1.0}])\nsignal.signal(15, lambda *_: 0)\nwhile 1: time.sleep(9)"
    )
    parts["crash"] = "print('last words', flush=True); os.kill(os.getpid(), 9)"
    parts["good"] = "keep(status='done', rows=[{'what': 'b', 'seconds': 2.0}])"
    assert check(options(tmp_path), lambda _line: None) == 1
    found = ran(tmp_path)
    assert [found[name]["status"] for name in ("slow", "crash", "good")] == ["cut", "failed", "done"]
    assert found["slow"]["rows"] == [{"what": "first", "seconds": 1.0}]
    assert "last words" in found["crash"]["why"]
    parts["slow"] = "os._exit(1)"  # worse than before: what it had stays
    parts["good"] = "raise SystemExit('a finished part must not run again')"
    check(options(tmp_path), lambda _line: None)
    assert ran(tmp_path)["slow"]["rows"] == [{"what": "first", "seconds": 1.0}]
    assert ran(tmp_path)["good"]["status"] == "done"


def test_a_part_that_saves_its_state_goes_on_until_it_is_done(tmp_path: Path, parts: Any):
    parts["long"] = (
        f"path = {str(tmp_path / 'state')!r}\nn = len(open(path).read()) if os.path.exists(path) else 0\n"
        "open(path, 'a').write('x')\nkeep(status='done' if n == 2 else 'unfinished', rows=[{'what': str(n)}])"
    )
    assert check(options(tmp_path), lambda _line: None) == 0
    assert ran(tmp_path)["long"]["rows"] == [{"what": "2"}]


def test_no_part_is_begun_after_the_time(tmp_path: Path, parts: Any):
    parts["good"] = "keep(status='done')"
    said: list[str] = []
    check(options(tmp_path, since=1.0), said.append)
    assert "good: not begun, the time is up" in said
    assert "not run yet" in (tmp_path / "gpu.md").read_text()


@pytest.mark.parametrize(
    ("changes", "names", "message"),
    [
        ({"device": "cuda"}, [], r"no NVIDIA GPU can be used here .*--device cpu --tiny"),
        ({"device": "cuda"}, ["NVIDIA H100", "NVIDIA A100"], "GPUs of several kinds.*CUDA_VISIBLE_DEVICES"),
        ({"device": "tpu"}, [], "--device 'tpu' is unknown"),
        ({"steps": "kmeens"}, [], "step 'kmeens' is unknown; .*kmeans"),
        ({"minutes": float("nan")}, [], "--minutes nan must be above 0"),
        ({"data": Path("/nowhere")}, [], "--data /nowhere does not exist"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, changes: dict[str, Any], names: list[str], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(machine, "gpu_names", lambda: names)
    with pytest.raises(CurationError, match=message):
        check(options(tmp_path, **changes), lambda _line: None)
    assert not (tmp_path / "gpu.md").exists()


def test_every_part_has_an_action_and_a_step():
    for item in all_parts():
        module_name, _, function = item.action.partition(":")
        source = (ROOT / f"benchmarks/gpu/{module_name}.py").read_text()
        assert f"def {function}(" in source
        assert item.step in STEPS
    assert len({item.name for item in all_parts()}) == len(all_parts())


def test_generated_pictures_differ_within_a_concept_and_more_between():
    """Else the experiment's pool would be solved by colours, or not at all."""
    rng = np.random.default_rng(0)
    seen = np.stack([[np.asarray(concept_picture(c, 32, rng), float) for _ in range(6)] for c in range(8)])
    assert seen.std(axis=1).mean() > 10
    means = seen.mean(axis=(2, 3))  # mean colours must not tell the concept
    within, between = means.std(axis=1).mean(), means.mean(axis=1).std(axis=0).mean()
    assert between < 1.5 * within
    assert len(SHAPES) == 10


@pytest.mark.slow
def test_the_whole_check_runs_without_a_gpu(tmp_path: Path):
    command = [sys.executable, "scripts/gpu_check.py", "--device=cpu", "--tiny", "--no-install", "--minutes=20"]
    command += ["--work", str(tmp_path / "work"), "-o", str(tmp_path / "gpu.md")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = ran(tmp_path)
    assert set(found) == {item.name for item in all_parts()}
    skipped = {name for name, result in found.items() if result["status"] == "skipped"}
    assert skipped == {"kmeans-flash", "kmeans-blocks", "pretrain-l-compiled", "pretrain-s-compiled", "lm-compiled"}
    assert {result["status"] for name, result in found.items() if name not in skipped} == {"done"}
    assert all(set(row) <= set(COLUMNS) for result in found.values() for row in result["rows"])
    assert "failed" not in {row.get("verdict") for result in found.values() for row in result["rows"]}
