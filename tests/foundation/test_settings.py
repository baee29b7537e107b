"""Settings: a misspelt key or a senseless number must be refused before hours are spent on it."""

import ast
import typing
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest

from foundation.errors import CurationError
from foundation.settings import (
    BelowOne,
    Choices,
    Count,
    NonNegative,
    Range,
    Share,
    check,
    describe,
    fill,
    read_settings,
    setting,
)


@dataclass(frozen=True)
class Head:
    layers: Count = 3
    width: Count = 5


@dataclass(frozen=True)
class Part:
    rate: NonNegative = 0.1
    head: Head = field(default_factory=lambda: Head(7, 8))


@dataclass(frozen=True)
class Whole:
    steps: Count
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.99)
    blocks: tuple[int, ...] = ()
    other: Head | None = None
    args: dict[str, Any] = field(default_factory=dict)
    part: Part = field(default_factory=Part)
    kind: Annotated[str, Choices("block", "random")] = "block"
    ks: list[Count] = setting((1, 2), "neighbours")
    limit: Annotated[int, Range(ge=1, lt=10)] | None = None
    flag: bool = False
    share: Share = 0.5

    def __post_init__(self) -> None:
        check(self)


def test_nested_content_becomes_the_dataclasses_that_python_would_make():
    given = {"steps": 1e3, "part": {"head": {"layers": 2}}, "other": {"width": 9}, "blocks": [1, 2], "args": None}
    wanted = Whole(1000, blocks=(1, 2), other=Head(3, 9), part=Part(head=Head(2, 8)))
    assert fill(Whole, given) == wanted
    assert type(fill(Whole, given).steps) is int
    assert fill(Whole, {"steps": 1, "ks": "4, 5", "betas": "0.1,0.2"}) == Whole(1, ks=[4, 5], betas=(0.1, 0.2))
    assert fill(Whole, {"steps": 1, "share": 1, "other": None, "limit": None}) == Whole(1, share=1.0)
    assert fill(Whole, {"steps": 1, "args": {"path": "${HOME}/x"}}).args == {"path": "${HOME}/x"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "run.steps is missing; add it to the settings"),
        ({"steps": 1, "pert": {}}, "run.pert is no setting; did you mean 'part'?"),
        ({"steps": 1, "part": {"head": {"layer": 1}}}, "run.part.head.layer is no setting; did you mean 'layers'?"),
        ({"steps": 1, "part": 3}, "setting run.part is 3; it needs key: value lines of its own"),
        ({"steps": 0}, "run.steps is 0; it must be at least 1"),
        ({"steps": "many"}, "setting run.steps is 'many'; it needs a whole number"),
        ({"steps": 1.5}, "setting run.steps: Value '1.5' of type 'float' could not be converted to Integer"),
        ({"steps": True}, "setting run.steps is True; it needs a whole number"),
        ({"steps": None}, "setting run.steps: Incompatible value 'None' for field of type 'int'"),
        ({"steps": "${oc.env:HOME}"}, "setting run.steps is '${oc.env:HOME}'; it needs a whole number"),
        ({"steps": 1, "flag": 1}, "setting run.flag is 1; it needs true or false"),
        ({"steps": 1, "part": {"rate": float("nan")}}, "run.part.rate is nan; it must be a finite number"),
        ({"steps": 1, "part": {"rate": float("inf")}}, "run.part.rate is inf; it must be a finite number"),
        ({"steps": 1, "other": {"width": -2}}, "run.other.width is -2; it must be at least 1"),
        ({"steps": 1, "betas": [0.5]}, "run.betas is [0.5]; it needs 2 values"),
        ({"steps": 1, "betas": [0.5, 1]}, "run.betas is 1.0; it must be at least 0 and below 1"),
        ({"steps": 1, "ks": [3, 0]}, "run.ks is 0; it must be at least 1"),
        ({"steps": 1, "limit": 10}, "run.limit is 10; it must be at least 1 and below 10"),
        ({"steps": 1, "kind": "blok"}, "run.kind is 'blok'; it must be one of block, random"),
        ({"steps": 1, "share": 1.5}, "run.share is 1.5; it must be at least 0 and at most 1"),
    ],
)
def test_a_mistake_names_the_setting_its_value_and_what_is_allowed(given: dict, message: str):
    with pytest.raises(CurationError) as caught:
        fill(Whole, given, "run")
    assert str(caught.value) == message


def test_python_code_is_checked_as_files_are():
    for wrong, message in (({"limit": 0}, "limit is 0"), ({"share": float("nan")}, "finite"), ({"ks": [0]}, "ks is 0")):
        with pytest.raises(CurationError, match=message):
            Whole(1, **wrong)
    with pytest.raises(CurationError, match="steps is '3'"):
        Whole("3")  # type: ignore[arg-type]


def test_a_file_then_the_command_line(tmp_path: Path):
    (tmp_path / "shape.yaml").write_text("width: 4\n")
    (tmp_path / "run.yaml").write_text("model: shape.yaml\nsteps: 3\nrate: 1e-3\nhalf: ${steps}\n")
    found = read_settings(tmp_path / "run.yaml", ["steps=5", "a.b=[1,2]", "name="], files=("model",))
    assert found == {"model": {"width": 4}, "steps": 5, "rate": 1e-3, "half": 5, "a": {"b": [1, 2]}, "name": ""}
    assert read_settings(None, [f"model={tmp_path / 'shape.yaml'}"], files=("model",)) == {"model": {"width": 4}}
    assert read_settings() == {}


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        (None, "steps", "'steps' is no key=value"),
        (None, "=3", "'=3' is no key=value"),
        (None, "a={", "the value of a cannot be read"),
        (None, "a=${b}", "Interpolation key 'b' not found"),
        ("- 1", "a=1", "must hold key: value lines"),
        ("5", "a=1", "run.yaml must hold key: value lines"),
        ("a: [", "a=1", "run.yaml cannot be read"),
        ("model: none.yaml", "a=1", "none.yaml does not exist"),
        ("model: ${nope}", "a=1", "Interpolation key 'nope' not found"),
        ("a: \xff", "a=1", "run.yaml cannot be read"),
    ],
)
def test_files_and_overrides_that_cannot_be_read(tmp_path: Path, text: str | None, override: str, message: str):
    path = None
    if text is not None:
        path = tmp_path / "run.yaml"
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CurationError) as caught:
        read_settings(path, [override], files=("model",))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_help_says_what_is_allowed():
    assert "ks=1,2\n    neighbours (at least 1)" in describe(Whole)


def every_settings_class() -> list[type]:
    """Those that commands, recipes and experiments are filled into, and the dataclasses inside of them."""
    from eval.language import LanguageSettings
    from eval.ngram_task import NgramSettings
    from eval.settings import RunSettings
    from eval.tasks import TASKS
    from experiments.engine.experiment import Settings, open_domain
    from experiments.simulated.ablations import ToySettings
    from experiments.simulated.study_settings import Studies
    from experiments.text.ablations import Studies as TextStudies
    from pretrain.settings import PretrainSettings
    from satellite.settings import TrainSettings as SatelliteSettings
    from text_lm.settings import TrainSettings as TextSettings

    waiting: list[Any] = [PretrainSettings, TextSettings, SatelliteSettings, RunSettings, LanguageSettings, Settings]
    waiting += [*TASKS.values(), NgramSettings, Studies, TextStudies, ToySettings]
    for name in ("simulated", "text", "web_images", "visual_domains", "satellite"):
        domain = open_domain(name)
        waiting += [domain.pool_settings, domain.train_settings, domain.evaluate_settings]
    found: dict[type, None] = {}
    while waiting:
        kind = waiting.pop()
        if is_dataclass(kind) and kind not in found:
            found[kind] = None
            waiting += [
                part for hint in typing.get_type_hints(kind).values() for part in (hint, *typing.get_args(hint))
            ]
    return list(found)


def test_every_whole_number_that_a_user_may_set_has_its_range():
    free = {"ignore", "seeds"}  # the value of a pixel; checked with the arms
    for kind in every_settings_class():
        hints = typing.get_type_hints(kind, include_extras=True)
        bare = {entry.name for entry in fields(kind) if hints[entry.name] in (int, list[int], tuple[int, ...])} - free
        assert not bare, f"{kind.__module__}.{kind.__name__} takes any number for {sorted(bare)}"


def test_every_seed_of_settings_has_the_range_of_seeds():
    """A seed that one library refuses, hours into a run, is refused before."""
    root, known = Path(__file__).parents[2], 0
    rooms = ("curation", "eval", "experiments", "foundation", "pretrain", "satellite", "text_lm", "training")
    for path in (path for room in rooms for path in (root / room).rglob("*.py")):
        text = path.read_text()
        if "foundation.settings import" not in text:
            continue
        for kind in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)):
            fields = [node for node in kind.body if isinstance(node, ast.AnnAssign)]
            for entry in fields:
                name = ast.unparse(entry.target)
                if name in ("seed", "seeds") and any(" = " in ast.unparse(other) for other in fields):
                    hint = ast.unparse(entry.annotation)
                    assert hint in ("Seed", "list[Seed]"), f"{path.relative_to(root)}: {kind.name}.{name}: {hint}"
                    known += 1
    assert known >= 5


@pytest.mark.parametrize(
    "value", ["!!bool maybe", "!!timestamp x", "!!int ''", "!!float abc", "!!python/name:os.system"]
)
def test_a_value_that_yaml_cannot_build_is_one_line(tmp_path: Path, value: str):
    (tmp_path / "s.yaml").write_text(f"steps: {value}\n")
    with pytest.raises(CurationError, match="cannot be read"):
        read_settings(tmp_path / "s.yaml")
    with pytest.raises(CurationError, match="cannot be read"):
        read_settings(None, [f"steps={value}"])
