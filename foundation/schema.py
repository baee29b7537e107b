"""What a JSON file must hold, said as a dataclass: missing keys, wrong types and numbers out of range are one line.

    @dataclass
    class Shard:
        file: str
        rows: Count
        checksum: str | None = None      # a field with a default may be missing

    check_content(Shard, json.loads(text), "embeddings.json")

Keys that the dataclass does not name are allowed: later versions and other writers may add some.
"""

import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any

from foundation.errors import CurationError
from foundation.settings import NAMES, Choices, Range, short, wrong_number

KINDS = {**NAMES, dict: "an object", list: "a list"}


def check_content(hint: Any, content: Any, where: str, remedy: str = "make it again") -> None:
    """Refuse JSON that is not what a type or a dataclass says.

    Args:
        hint: a dataclass, or a type: ``dict[str, Count]``, ``list[float]``, ``Annotated[str, Choices("a", "b")]``.
        where: the file, for messages.

    Raises:
        CurationError: names the file, the key, its value and what must be there.
    """
    wrong = _wrong(hint, content, "")
    if wrong:
        raise CurationError(f"{where} {wrong}; {remedy}")


def _wrong(hint: Any, value: Any, name: str) -> str | None:
    """What is wrong, to come after the name of the file; None: nothing."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return None
    if origin is Annotated:
        found = _wrong(inside[0], value, name)
        rules = [rule for rule in inside[1:] if isinstance(rule, Range | Choices)]
        return found or next((_needs(name, value, str(rule)) for rule in rules if not rule.allows(value)), None)
    if origin in (typing.Union, types.UnionType):
        each = [_wrong(part, value, name) for part in inside]
        return None if None in each else each[0]
    if hint is types.NoneType:
        return None if value is None else _needs(name, value, "null")
    if is_dataclass(hint):
        return _wrong_fields(hint, value, name)
    kind = origin or hint
    if kind is float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return _needs(name, value, "a number")
    elif not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        return _needs(name, value, KINDS.get(kind, kind.__name__))
    if kind in (int, float) and (wrong := wrong_number(value, Range())):
        return _needs(name, value, wrong)
    if kind is list and inside:
        return next((bad for i, v in enumerate(value) if (bad := _wrong(inside[0], v, f"{name}[{i}]"))), None)
    if kind is dict and inside:
        return next((bad for k, v in value.items() if (bad := _wrong(inside[1], v, _dotted(name, k)))), None)
    return None


def _wrong_fields(kind: Any, value: Any, name: str) -> str | None:
    if not isinstance(value, dict):
        return _needs(name, value, "an object")
    hints = typing.get_type_hints(kind, include_extras=True)
    for entry in fields(kind):
        if entry.name not in value:
            if entry.default is MISSING and entry.default_factory is MISSING:
                return f"has no {_dotted(name, entry.name)!r}"
            continue
        bad = _wrong(hints[entry.name], value[entry.name], _dotted(name, entry.name))
        if bad:
            return bad
    return None


def _dotted(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _needs(name: str, value: Any, what: str) -> str:
    return f"has {name or 'content'} = {short(value)}; it must be {what}"
