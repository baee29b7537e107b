"""Scripts with a mistyped path or number: one line before any work, and nobody's file is lost."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from foundation.command import run_command
from foundation.files import save_json

ROOT = Path(__file__).parents[2]
MINE = b"a year of work"


def loaded(script: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / "scripts" / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.md", "mine.json", "mine.parquet", "own/height.tif", "own/train.parquet", "own/report.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(MINE)
    pq.write_table(pa.table({"text": ["a row", "another"]}), tmp_path / "rows.parquet")
    (tmp_path / "training").mkdir()
    save_json(tmp_path / "training/run.json", {"settings": {"steps": 1}, "pool": "x"})
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "pictures/a.png")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.png").write_bytes(b"\x89PNG no more")
    return tmp_path


CASES = [
    ("bench_kmeans.py", "-o .", "must end in .md"),
    ("bench_kmeans.py", "-o mine.md", "did not make it"),
    ("bench_kmeans.py", "-o mine.md/x.md", "is no folder"),
    ("bench_kmeans.py", "--rows=nan", "'nan' is no number"),
    ("bench_kmeans.py", "--rows=10 -k 20", "is more than --rows 10"),
    ("bench_preparation.py", "rows.parquet", "has no column of images"),
    ("calibrate_checks.py", "--work=mine.md", "is no folder"),
    ("bench_scale.py", "-o mine.md", "did not make it"),
    ("bench_balance.py", "-o mine.md", "did not make it"),
    ("gpu_check.py", "-o mine.md", "did not make it"),
    ("gpu_check.py", "--minutes=nan", "nan must be"),
    ("compare_runs.py", "training -o out", "has no 'name'; give the folder of a run of"),
    ("compare_runs.py", "training -o training", "is what is read"),
    ("compare_runs.py", "training -o own", "did not make it"),
    ("demo.py", "--output mine.md", "is no folder"),
    ("prepare/openclipart.py", "pictures --output mine.parquet", "did not make it"),
    ("prepare/openclipart.py", "broken --output out.parquet", "a.png cannot be read"),
    ("prepare/openclipart.py", "pictures --output", "expected one argument; see --help"),
    ("prepare/cifar10.py", "own", "did not make it"),
    ("prepare/lidar_to_canopy.py", "mine.md -o own", "did not make it"),
    ("prepare/lidar_to_canopy.py", "/dev/zero -o out", "is a device"),
]


@pytest.mark.parametrize(("script", "words", "said"), CASES, ids=[f"{script} {words}" for script, words, _ in CASES])
def test_a_mistake_is_one_line_and_every_file_stays(
    folder: Path,
    script: str,
    words: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    if "lidar" in script:
        pytest.importorskip("laspy")
    monkeypatch.setenv("HF_HOME", str(folder.parent / "hub"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(sys, "argv", [script, *words.split()])
    with pytest.raises(SystemExit) as stopped:
        run_command("x", loaded(script).main)
    err = capsys.readouterr().err
    last = err.splitlines()[-1]  # before it progress bars may stand
    assert (stopped.value.code, err.count(": error: "), ": error: " in last, said in last) == (2, 1, True, True), err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_clip_art_of_its_own_is_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["x", "pictures", "--output", "out.parquet"])
    for _ in range(2):
        loaded("prepare/openclipart.py").main()
    from curation import open_pool

    assert open_pool("out.parquet").column_names == ["image", "label", "group"]
