"""YAML that others wrote: read as text of a sensible size, and refused where its aliases would grow without end."""

from pathlib import Path
from typing import Any

from foundation.errors import CurationError
from foundation.numbers import NOT_FINITE, is_plain_number
from foundation.paths import regular_file

MOST_BYTES, MOST_VALUES, DEEPEST = 4_000_000, 200_000, 100
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


# what PyYAML raises besides its own errors for values such as "!!bool maybe", "!!timestamp x" and "!!int ''"
BAD_VALUES = (ValueError, KeyError, IndexError, AttributeError, TypeError)


def read_yaml_text(path: str | Path, what: str = "settings") -> str:
    """The text of a YAML file that is safe to be parsed.

    Args:
        what: the file is, for messages.

    Raises:
        CurationError: not there, no regular file, not UTF-8, too large, not YAML, or its aliases refer to themselves or
            stand for more than `MOST_VALUES` values.
    """
    path = regular_file(path, f"name a file of {what}")
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise CurationError(f"{what} {path} has {size:,} bytes; no such file needs more than {MOST_BYTES:,}")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CurationError(f"{what} {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    check_yaml(text, f"{what} {path}")
    return text


def check_yaml(text: str, where: str) -> None:
    """Refuse YAML that cannot be parsed, or would grow without end when it is.

    Raises:
        CurationError: see `read_yaml_text`.
    """
    import yaml

    try:
        root = yaml.compose(text)
    except yaml.YAMLError as error:
        raise CurationError(f"{where} cannot be read: {' '.join(str(error).split())[:300]}") from error
    except RecursionError as error:
        raise CurationError(f"{where} has values within values, deeper than {DEEPEST}; make it flatter") from error
    if root is not None and _size(root, {}, 0, where) > MOST_VALUES:
        raise CurationError(f"{where} stands for more than {MOST_VALUES:,} values; leave out its aliases (*name)")


def _is_number(text: str) -> bool:
    return is_plain_number(text) or NOT_FINITE.fullmatch(text) is not None


def _size(node: Any, known: dict[int, int], depth: int, where: str) -> int:
    """How many values a node stands for, aliases written out."""
    import yaml

    if depth > DEEPEST:
        raise CurationError(f"{where} has values within values, deeper than {DEEPEST}; make it flatter")
    if id(node) in known:
        if known[id(node)] < 0:
            raise CurationError(f"{where} has an alias that holds itself; write it out")
        return known[id(node)]
    known[id(node)], total = -1, 1
    if node.tag in NUMBERS and node.value[:1] in {*"+-.0123456789"} and not _is_number(node.value):
        said = f"{where} says {node.value[:80]}"
        raise CurationError(f"{said}, which YAML reads as another number; write it plainly, or in quotes")
    if isinstance(node, yaml.MappingNode):
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise CurationError(f"{where} says {key.value[:80]!r} twice; the second would win; leave one")
                seen.add((key.tag, key.value))
        total += sum(_size(part, known, depth + 1, where) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_size(part, known, depth + 1, where) for part in node.value)
    known[id(node)] = total
    return total
