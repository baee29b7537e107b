"""The wheel: who installs it elsewhere must get every module, recipe, suite and template, and nothing else."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


# what is installed, one after the other, and commands then: exit code, and what they say
INSTALLED: dict[str, dict[str, tuple[int, str]]] = {
    "": {
        "curate --version": (0, "curate 0.1"),
        "curate plan --rows 1e6 --dim 64 --levels 1000 --gpus 1": (0, "level 1"),
        "python -m pretrain plan -r configs/pretrain/tiny_cpu.yaml steps=10": (0, "backbone"),
        "python -m text_lm plan -c configs/text_lm/recipe/demo.yaml": (0, "parameters"),
        "python -m eval datasets": (0, "imagenet-1k"),
        "python -m satellite --help": (0, "predict"),
        "python -m experiments experiment=simulated scale=demo dry_run=true": (0, "train raw seed 0"),
        "python -m pretrain train pictures -o run": (2, "pip install 'curated-ssl[train]'"),
        "python -m text_lm train tokens -o lm": (2, "pip install 'curated-ssl[text]'"),
        "python -m satellite train tiles.parquet -o map": (2, "pip install 'curated-ssl[satellite]'"),
        "python -m satellite tiles a.tif -o tiles.parquet": (2, "pip install 'curated-ssl[satellite]'"),
        "python -m experiments experiment=text scale=demo": (2, "pip install 'curated-ssl[language]'"),
    },
    "[demo,train]": {
        "curate demo -o demo --size 500": (0, "open demo/report.html"),
        "python -m pretrain train pictures -o run -r configs/pretrain/tiny_cpu.yaml steps=1 batch_size=4 probe.every=0":
            (0, "teacher in run/teacher"),
        "python -m eval knn model=run/teacher train=pictures test=pictures ks=1 -o results": (0, "accuracy k=1"),
    },
    "[text,satellite]": {
        "python -m text_lm tokenise texts.jsonl -o tokens": (0, "tokens of"),
        "python -m text_lm train tokens -o lm -c configs/text_lm/recipe/demo.yaml tokens=4096": (0, "lm/model"),
        "python -m satellite tiles no.tif -o tiles.parquet": (2, "no.tif does not exist"),
        "python -m satellite train no.parquet -o map": (2, "no.parquet does not exist"),
    },
}  # fmt: skip


@pytest.mark.slow
def test_an_empty_environment_has_what_was_asked_for_and_one_line_for_the_rest(wheel: Path, tmp_path: Path):
    """With dependencies: what the clone's environment has besides must not be missed."""
    spec = importlib.util.spec_from_file_location("install", ROOT / "scripts/install.py")
    assert spec is not None
    assert spec.loader is not None
    install = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(install)
    tool = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv/bin/python"
    words = [str(python), "-m", "pip", "install"] if tool is None else [tool, "pip", "install", "--python", str(python)]
    words += ["--quiet", "-c", str(ROOT / "constraints.txt")]
    rng = np.random.default_rng(0)
    for i in range(8):
        path = tmp_path / f"pictures/{i % 2}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    (tmp_path / "texts.jsonl").write_text("".join(f'{{"text": "{i} {"word " * 50}"}}\n' for i in range(40)))
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    for extras, commands in INSTALLED.items():
        environment = {**os.environ, **install._as_uv_reads_it()}
        done = subprocess.run([*words, f"{wheel}{extras}"], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        for command, (code, said) in commands.items():
            name, *rest = command.split()
            where = {"cwd": tmp_path, "env": clean, "capture_output": True, "text": True}
            done = subprocess.run([str(python.with_name(name)), *rest], **where)
            told = f"with {extras or 'no extra'}, {command}: {done.stdout}{done.stderr}"
            assert done.returncode == code, told
            assert said in done.stdout + done.stderr, told
            assert code == 0 or done.stderr.count("\n") == 1, told
