"""Where a result came from: numbers that cannot be traced to the code, or kept when it changed, are worth nothing."""

import subprocess
import tomllib
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.page import write_page
from benchmarks.gpu.steps import all_parts
from experiments.engine import provenance
from experiments.engine.experiment import Domain, build, open_domain, parse, science_of
from experiments.engine.settings import compose
from experiments.engine.stages import in_order
from experiments.pages.markdown import origin
from foundation.settings import CONFIGS, fill, setting_names

ROOT = Path(__file__).parents[2]
EXPERIMENTS = [path.stem for path in sorted((CONFIGS / "experiment").glob("*.yaml"))]
DIRTY = {"commit": "abc-dirty", "changed": ["curation/trees/tree.py"], "device": "a CPU", "versions": {"numpy": "2"}}


def test_every_room_that_can_change_a_number_is_watched():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {package.split(".")[0] for package in packages} | {"configs"} == set(provenance.WATCHED)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("curation/trees/tree.py", "configs/pretrain/a.yaml", "docs/guide.md", "tests/test_tree.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    return tmp_path


def test_a_dirty_tree_names_the_files_that_decide_numbers_and_no_others(clone: Path):
    (clone / "docs/guide.md").write_text("2")
    (clone / "tests/test_tree.py").write_text("2")
    clean, changed = provenance.commit()
    assert (len(clean), changed) == (10, [])
    (clone / "configs/pretrain/a.yaml").write_text("2")
    (clone / "eval").mkdir()
    (clone / "eval/knn.py").write_text("new")
    commit, changed = provenance.commit()
    assert commit == f"{clean}-dirty"
    assert changed == ["configs/pretrain/a.yaml", "eval/"]
    assert provenance.provenance("cpu", 1)["changed"] == changed


def test_pages_from_a_dirty_tree_name_the_files():
    clean = {**DIRTY, "commit": "def", "changed": []}
    assert "abc-dirty, def with changes of curation/trees/tree.py\n" in origin("a command", [clean, DIRTY])
    assert "with changes" not in origin("a command", [clean])
    part = all_parts()[0]
    done = {"rows": [], "status": "done", "why": "", "notes": [], "seconds": 1.0, **DIRTY}
    machine: dict[str, Any] = {"versions": {}, "device": "cpu", "cores": 1}
    assert "abc-dirty with changes of curation/trees/tree.py" in write_page(
        {part.name: done}, [part], machine, "a command"
    )


def test_every_page_takes_its_commits_from_where_the_files_are_named():
    """The pages of all experiments and benchmarks; a commit by itself does not say what differed from it."""
    writers = [path for room in ("experiments", "benchmarks") for path in (ROOT / room).rglob("*.py")]
    naming = [path for path in writers if "ommit of the code" in path.read_text() or "ommit {" in path.read_text()]
    assert len(naming) >= 5
    assert all("commits_of(" in path.read_text() for path in naming)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_speed_is_no_part_of_any_key(name: str):
    def keys(*more: str) -> list[str]:
        return [stage.key for stage in in_order(build(compose([f"experiment={name}", "seeds=[0]", *more])).stages)]

    plain = keys()
    assert keys("speed.threads=7", "speed.n_devices=3", "speed.hardware=h100") == plain
    if "recipe.speed" in setting_names(domain_of(name)[0].train_settings):
        recipe = "science.train.recipe.speed"
        assert keys(f"{recipe}.checkpoint_every=7", f"{recipe}.log_every=3", f"{recipe}.n_workers=2") == plain


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_defaults_of_every_dataclass_are_part_of_the_key(name: str):
    """A field that the key does not know: its default changes in the code, and old results pass for new ones."""
    domain, science = domain_of(name)
    for section in ("pool", "train", "evaluate"):
        settings = fill(getattr(domain, f"{section}_settings"), getattr(science, section))
        if getattr(settings, "judge", "") == "labels":  # nothing is pretrained: its recipe decides nothing
            continue
        known = known_names(science_of(settings))
        # at their defaults these are left out, so that results of before there were such stay
        young = {"micro_batch_size"} | ({"judge"} if name == "satellite" else set())
        wanted = {key for key in leaves(settings) if key.rpartition(".")[2] not in young}
        lacking = {key.removeprefix("recipe.") for key in wanted} - {key.removeprefix("recipe.") for key in known}
        assert not lacking, f"science.{section}"


def domain_of(name: str) -> tuple[Domain, Any]:
    """Domain of an experiment, and its section ``science``."""
    settings = parse(compose([f"experiment={name}"]))
    return open_domain(settings.name), settings.science


def leaves(settings: Any, name: str = "") -> set[str]:
    """Dotted names of all fields that hold a value and no dataclass, those of speed left out."""
    found: set[str] = set()
    for key in setting_names(type(settings)):
        if "." in key or key == "speed":
            continue
        value, dotted = getattr(settings, key), f"{name}.{key}" if name else key
        found |= leaves(value, dotted) if is_dataclass(value) else {dotted}
    return found


def known_names(content: dict[str, Any], name: str = "") -> set[str]:
    found: set[str] = set()
    for key, value in content.items():
        dotted = f"{name}.{key}" if name else key
        found |= {dotted} | (known_names(value, dotted) if isinstance(value, dict) else set())
    return found
