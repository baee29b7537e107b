"""Settings: plain dataclasses at the inside, YAML and ``key=value`` at the edge, and one way from there to here.

A dataclass says what its fields are and what they may hold; a mistake names the setting, its value and what is allowed:

    @dataclass(frozen=True)
    class Settings:
        steps: Count = 1000
        warmup: NonNegative = 0.1
        kind: Annotated[str, Choices("block", "random")] = "block"

        def __post_init__(self) -> None:
            check(self)
"""

import difflib
import io
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from foundation.errors import CurationError
from foundation.numbers import read_number
from foundation.yaml_files import BAD_VALUES, check_yaml, read_yaml_text

T = TypeVar("T")
_HERE = Path(__file__).parent
CONFIGS = _HERE / "configs" if (_HERE / "configs").exists() else _HERE.parent / "configs"  # of a wheel, of a clone
# what whole numbers and numbers may be at all: beyond, arrays and float32 overflow
LARGEST_INT, LARGEST, SMALLEST = 10**15, 1e30, 1e-30
LARGEST_SEED = 2**32 - 1  # numpy's old generators, Lightning and scikit-learn take no more
NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True)
class Range:
    """What a number may be; infinity and NaN never are allowed.

    Attributes:
        ge, gt: bounds from below, itself allowed or not.
        le, lt: bounds from above.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __str__(self) -> str:
        words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
        return " and ".join(
            f"{word} {getattr(self, name):.10g}" for name, word in words.items() if getattr(self, name) is not None
        )

    def allows(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )


class Choices:
    """The names that a text may be."""

    def __init__(self, *names: str):
        self.names = names

    def __str__(self) -> str:
        return f"one of {', '.join(self.names)}"

    def allows(self, value: Any) -> bool:
        return value in self.names


def wrong_number(value: int | float, allowed: Range) -> str | None:
    """What a number must be instead; None: it is as it should be."""
    if not allowed.allows(value):
        return str(allowed) or "a finite number"
    return _beyond(value)


def require_number(value: Any, allowed: Range, name: str) -> None:
    """Refuse a number out of its range; None is no number and allowed.

    Raises:
        CurationError: names it, its value, and what is allowed.
    """
    wrong = None if value is None else wrong_number(value, allowed)
    if wrong:
        raise CurationError(f"{name} is {short(value)}; it must be {wrong}")


def _beyond(value: int | float) -> str | None:
    """What a number must be that no array or float32 can hold."""
    if isinstance(value, int):
        return None if abs(value) <= LARGEST_INT else f"a whole number of at most {LARGEST_INT:g}"
    if not math.isfinite(value):
        return "a finite number"
    fits = value == 0 or SMALLEST <= abs(value) <= LARGEST
    return None if fits else f"0, or between {SMALLEST:g} and {LARGEST:g} in size, as float32 holds it"


def short(value: Any, most: int = 80) -> str:
    """The repr of a value, cut where it is long, on one line."""
    large = isinstance(value, int) and abs(value) >= 1e18  # may have thousands of digits, which Python refuses to print
    text = f"about {'-' * (value < 0)}1e{int(math.log10(abs(value)))}" if large else " ".join(repr(value).split())
    return text if len(text) <= most else text[:most] + "..."


Count = Annotated[int, Range(ge=1)]
CountOrZero = Annotated[int, Range(ge=0)]
Positive = Annotated[float, Range(gt=0)]
NonNegative = Annotated[float, Range(ge=0)]
Share = Annotated[float, Range(ge=0, le=1)]
Weight = Annotated[float, Range(ge=0, le=1e6)]  # of one term of a loss: beyond it the others vanish in rounding
Temperature = Annotated[float, Range(gt=0, le=1000)]  # of a softmax: beyond it all are alike
PartOfOne = Annotated[float, Range(gt=0, le=1)]  # a share that may not be nothing
BelowOne = Annotated[float, Range(ge=0, lt=1)]  # a momentum, a decay
Seed = Annotated[int, Range(ge=0, le=LARGEST_SEED)]
Workers = Annotated[int, Range(ge=0, le=1024)]  # processes
Pixels = Annotated[int, Range(ge=1, le=16_384)]  # side of an input


def setting(default: Any, comment: str) -> Any:
    """A field with a default and a comment, which is its line in the help of a command."""
    if isinstance(default, tuple):  # a list's default: a list itself may not be one
        return field(default_factory=lambda: list(default), metadata={"help": comment})
    return field(default=default, metadata={"help": comment})


def describe(kind: type) -> str:
    """The fields of a settings class: name, default, comment, what is allowed."""
    lines = []
    for entry in fields(kind):
        rules = " and ".join(dict.fromkeys(str(rule) for rule in _rules(_hints(kind)[entry.name])))
        lines.append(f"{entry.name}={_shown(entry)}\n    {entry.metadata.get('help', '')}{rules and f' ({rules})'}")
    return "\n".join(lines)


def setting_names(kind: Any, name: str = "") -> set[str]:
    """Dotted names of the fields of a settings class and of the classes inside of it, below ``name``."""
    found: set[str] = set()
    for key, hint in _hints(kind).items():
        found.add(_dotted(name, key))
        if is_dataclass(_plain(hint)):
            found |= setting_names(_plain(hint), _dotted(name, key))
    return found


def nearest_name(name: str, known: Iterable[str]) -> str:
    """'did you mean ...?' or the list of what there is (of a tree: its sections)."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    shown = known if len(known) <= 12 else [item for item in known if "." not in item]
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(shown)}"


def read_settings(
    path: str | Path | None = None, overrides: Sequence[str] | None = None, files: Sequence[str] = ()
) -> dict[str, Any]:
    """A nested dict from a YAML file, then ``key=value`` overrides such as ``crops.n_local=4``.

    Args:
        path: ``configs/...`` also names what this project brings along, where there is no such file.
        files: sections for which the name of another file may stand: beside the first file, or where one is when it is
            an override.

    Raises:
        CurationError: a file that is not there or holds no ``key: value`` lines, or an override that cannot be read,
            or a value "???".
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        given: Any = OmegaConf.create() if path is None else _with_files(_yaml(Path(path)), files, Path(path).parent)
        changes = _with_files(_overrides(overrides or []), files, Path())
        given, missing = OmegaConf.merge(given, changes), OmegaConf.missing_keys(changes)  # merging passes over "???"
        if missing := missing | OmegaConf.missing_keys(given):
            raise CurationError(f"{min(missing)} is missing; give it a value")
        return OmegaConf.to_container(given, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise CurationError(f"settings {path or 'on the command line'}: {_first_line(error)}") from error


def fill(kind: type[T], values: Mapping[str, Any], name: str = "") -> T:
    """An instance of a settings class from a plain (nested) mapping; names, types and ranges are checked.

    A list may be given as text with commas (``ks=10,20``), a whole number as 1e6.

    Args:
        name: of the section that the mapping comes from, for messages.

    Raises:
        CurationError: an unknown setting (the nearest is named), a missing one, a value of another type, or one that
            its class does not allow.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    content = _prepared(kind, values, name)
    schema = OmegaConf.structured(kind)
    _open_parts(schema, kind, content)
    try:
        plain = OmegaConf.to_container(OmegaConf.merge(schema, content))  # "${HOME}" of a shell line stays as it is
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or getattr(error, "key", None) or ""
        raise CurationError(f"setting {_dotted(name, str(key))}: {_first_line(error)}") from error
    return _built(kind, plain, name)  # type: ignore[no-any-return]


def check(settings: Any, name: str = "") -> None:
    """Refuse a dataclass with a value that its annotations do not allow.

    Raises:
        CurationError: names the setting, its value and what is allowed.
    """
    for key, hint in _hints(type(settings)).items():  # type: ignore[arg-type]
        _check(hint, getattr(settings, key), _dotted(name, key))


def _dotted(name: str, key: str) -> str:
    return f"{name}.{key}" if name and key else name or key


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _yaml(path: Path) -> Any:
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if not path.exists() and path.parts[:1] == ("configs",):
        path = CONFIGS.joinpath(*path.parts[1:])  # what this project brings along, wherever the user stands
    text = read_yaml_text(path)
    try:
        content = OmegaConf.load(io.StringIO(text))
    except OSError:  # OmegaConf's of a lone number or date
        content = None
    except (OmegaConfBaseException, YAMLError, *BAD_VALUES) as error:
        raise CurationError(f"settings {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, DictConfig):
        raise CurationError(f"settings {path} must hold key: value lines")
    return content


def _overrides(arguments: Sequence[str]) -> Any:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    found: Any = OmegaConf.create()
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise CurationError(f"{argument!r} is no key=value")
        check_yaml(value, f"the value of {key}")
        try:
            # without a value it is empty text, not null
            part = OmegaConf.from_dotlist([argument if value else f"{key}=''"])
            found = OmegaConf.merge(found, part)
        except (OmegaConfBaseException, YAMLError, *BAD_VALUES) as error:
            raise CurationError(f"the value of {key} cannot be read: {value!r} ({_first_line(error)})") from error
    return found


def _with_files(given: Any, sections: Sequence[str], folder: Path) -> Any:
    for section in sections:
        if isinstance(given.get(section), str):
            given[section] = _yaml(folder / given[section])
    return given


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Field -> type, `Annotated` kept; of a dataclass without what is no field."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {entry.name: hints[entry.name] for entry in fields(kind)}


def _plain(hint: Any) -> Any:
    """The type without its annotations, and without None where it may be that."""
    if typing.get_origin(hint) is Annotated:
        return _plain(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [part for part in typing.get_args(hint) if part is not types.NoneType]
        return _plain(rest[0]) if len(rest) == 1 else hint
    return hint


def _rules(hint: Any) -> list[Range | Choices]:
    if typing.get_origin(hint) is Annotated:
        base, *rules = typing.get_args(hint)
        return [rule for rule in rules if isinstance(rule, Range | Choices)] + _rules(base)
    return [rule for part in typing.get_args(hint) for rule in _rules(part)]


def _item_hints(hint: Any, n: int) -> list[Any]:
    """Type of each of n items of a list or tuple."""
    inside = typing.get_args(hint) or (Any,)
    fixed = typing.get_origin(hint) is tuple and inside[-1] is not Ellipsis
    return list(inside) if fixed else [inside[0]] * n


def _prepared(hint: Any, value: Any, name: str) -> Any:
    """The value as OmegaConf takes it: names known, whole numbers as int, texts with commas as lists."""
    kind = _plain(hint)
    if is_dataclass(kind):
        if value is None and kind is not hint:
            return None
        if is_dataclass(value) and not isinstance(value, type):
            value = {key: getattr(value, key) for key in _hints(type(value))}
        if not isinstance(value, Mapping):
            raise CurationError(f"setting {name} is {value!r}; it needs key: value lines of its own")
        hints = _hints(kind)  # type: ignore[arg-type]
        for key in value:
            if key not in hints:
                raise CurationError(f"{_dotted(name, str(key))} is no setting; {nearest_name(str(key), hints)}")
        return {key: _prepared(hints[key], item, _dotted(name, str(key))) for key, item in value.items()}
    origin = typing.get_origin(kind) or kind
    if origin in (list, tuple):
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            value = [part.strip() for part in str(value).split(",") if part.strip()]
        if isinstance(value, list | tuple):
            inside = _item_hints(kind, len(value))
            if len(inside) != len(value):
                raise CurationError(f"{name} is {list(value)}; it needs {len(inside)} values")
            return [_prepared(part, item, name) for part, item in zip(inside, value, strict=True)]
    if origin is dict and value is None:
        return {}
    wrong = kind is bool and isinstance(value, int) and not isinstance(value, bool)
    if wrong or (kind in (int, float) and isinstance(value, bool)):
        raise CurationError(f"setting {name} is {value!r}; it needs {NAMES[kind]}")
    if kind in (int, float) and isinstance(value, str) and value != "???":
        try:
            return read_number(value, kind)  # type: ignore[arg-type]
        except ValueError as error:
            raise CurationError(f"setting {name} is {short(value)}; it needs {NAMES[kind]}") from error  # type: ignore[index]
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e9 is a float in YAML
    return value


def _open_parts(node: Any, kind: Any, content: Mapping[str, Any]) -> None:
    """Unlock a schema: OmegaConf locks what is made of a frozen dataclass, and so a part that is None by default."""
    from omegaconf import OmegaConf

    OmegaConf.set_readonly(node, False)
    for key, value in content.items():
        part = _plain(_hints(kind)[key])
        if is_dataclass(part) and isinstance(value, Mapping):
            if node._get_node(key)._is_none() or node._get_node(key)._is_missing():
                node[key] = part
            _open_parts(node[key], part, value)


def _built(hint: Any, value: Any, name: str) -> Any:
    """Dataclasses, tuples and lists of plain, typed content, checked from the inside to the outside."""
    kind = _plain(hint)
    if value == "???":
        raise CurationError(f"{name} is missing; add it to the settings")
    if is_dataclass(kind) and isinstance(value, Mapping):
        hints = _hints(kind)  # type: ignore[arg-type]
        return kind(**{key: _built(hints[key], item, _dotted(name, str(key))) for key, item in value.items()})  # type: ignore[operator]
    origin = typing.get_origin(kind) or kind
    if origin in (list, tuple) and isinstance(value, list):
        inside = _item_hints(kind, len(value))
        value = origin(_built(part, item, name) for part, item in zip(inside, value, strict=True))
    if kind in NAMES and value is not None and not isinstance(value, (int, float) if kind is float else kind):  # type: ignore[arg-type]
        raise CurationError(f"setting {name} is {value!r}; it needs {NAMES[kind]}")  # type: ignore[index]
    _check(hint, value, name)
    return value


def _check(hint: Any, value: Any, name: str) -> None:
    if typing.get_origin(hint) is Annotated:
        base, *rules = typing.get_args(hint)
        _check(base, value, name)
        for rule in rules:
            if isinstance(rule, Range | Choices) and not rule.allows(value):
                raise CurationError(f"{name} is {short(value)}; it must be {rule}")
        return
    if value is None or is_dataclass(value):  # a dataclass checks itself
        return
    kind = _plain(hint)
    if (typing.get_origin(kind) or kind) in (list, tuple) and isinstance(value, list | tuple):
        for part, item in zip(_item_hints(kind, len(value)), value, strict=False):
            _check(part, item, name)
    elif kind is not hint and kind is not Any:
        _check(next(part for part in typing.get_args(hint) if part is not types.NoneType), value, name)
    elif isinstance(value, int | float) and not isinstance(value, bool) and (wrong := _beyond(value)):
        raise CurationError(f"{name} is {short(value)}; it must be {wrong}")


def _shown(entry: "Field[Any]") -> str:
    value = entry.default_factory() if entry.default_factory is not MISSING else entry.default
    return ",".join(str(part) for part in value) if isinstance(value, list) else str(value)
