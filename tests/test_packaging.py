"""The wheel: who installs it elsewhere must get every module, recipe, suite and template, and nothing else."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build leaves folders behind."""
    pytest.importorskip("setuptools", minversion="77")
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in {package.split(".")[0] for package in SETUP["packages"]} | {"configs", "data"}:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    built = subprocess.run([sys.executable, "-c", code, str(out)], cwd=copy, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return next(out.glob("*.whl"))


def test_every_package_is_listed():
    rooms = {package.split(".")[0] for package in SETUP["packages"]}
    found = {".".join(path.parent.relative_to(ROOT).parts) for room in rooms for path in (ROOT / room).rglob("*.py")}
    assert found | set(SETUP["package-dir"]) == set(SETUP["packages"])


def test_the_wheel_holds_modules_recipes_suites_and_templates_and_nothing_else(wheel: Path):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {f"foundation/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    wanted.add("curation/data/openclipart.parquet")  # what `curate demo` curates
    for room in {package.split(".")[0] for package in SETUP["packages"]}:
        files = (path for path in (ROOT / room).rglob("*") if path.suffix in (".py", ".yaml", ".j2"))
        wanted |= {str(path.relative_to(ROOT)) for path in files}
    assert held == wanted


@pytest.mark.slow
def test_commands_of_an_installed_wheel_work_far_from_the_clone(wheel: Path, tmp_path: Path):
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    away = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(site)}, "capture_output": True, "text": True}
    for words, said in {
        "curation plan --rows 1e6 --dim 64 --levels 1000 --gpus 1": "level 1",
        "pretrain plan -r configs/pretrain/tiny_cpu.yaml steps=10": "backbone",
        "text_lm plan -c configs/text_lm/recipe/demo.yaml": "parameters",
        "eval datasets": "imagenet-1k",
        "eval suite imagenet": "no model is given",
        "satellite --help": "predict",
        "experiments experiment=text scale=demo --cfg job": "brown",
        "experiments experiment=simulated scale=demo dry_run=true": "train raw seed 0",
    }.items():
        done = subprocess.run([sys.executable, "-m", *words.split()], **away)
        assert said in done.stdout + done.stderr, f"{words}: {done.stdout}{done.stderr}"
    where = subprocess.run([sys.executable, "-c", "import curation; print(curation.__file__)"], **away)
    assert where.stdout.startswith(str(site))
    assert (site / "bin" / "curate").exists()
