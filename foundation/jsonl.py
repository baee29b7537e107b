"""Why a JSONL file cannot be read: libraries name a block or a byte, a user needs the line."""

import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from foundation.settings import short

Lines = Callable[[Path], AbstractContextManager[Iterable[bytes]]]


def _plain(path: Path) -> AbstractContextManager[Iterable[bytes]]:
    return open(path, "rb")


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The ``object_pairs_hook`` of `json.loads` that takes every key once: it would keep the last and say nothing.

    Raises:
        ValueError: names a key that is there twice.
    """
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {short(key)} is there twice; leave one")
        content[key] = value
    return content


def bad_line(files: Iterable[Path], open_lines: Lines = _plain) -> str | None:
    """What is wrong with the first line that is no JSON object, or whose types are not those before it.

    Args:
        open_lines: opens a file, for those that are packed.

    Returns:
        One line for a user; None: nothing that this sees.
    """
    kinds: dict[str, tuple[str, str]] = {}  # of a key: type and where it was first
    for file in files:
        try:
            with open_lines(file) as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip() and (wrong := _wrong(line, f"{file} line {number}", kinds)):
                        return wrong
        except (OSError, EOFError) as error:
            return f"{file} cannot be read ({' '.join(str(error).split())[:120]}); get it again"
    return None


def _wrong(line: bytes, where: str, kinds: dict[str, tuple[str, str]]) -> str | None:
    try:
        row = json.loads(line, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        return f"{where} is not JSON ({' '.join(str(error).split())[:120]}); mend or drop that line"
    if not isinstance(row, dict):
        return f"{where} is no JSON object but {short(row)}; write one object a line"
    for key, value in row.items():
        if value is None:
            continue
        kind = "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
        before, place = kinds.setdefault(key, (kind, where))
        if before != kind:
            return f"{where} has a {kind} as {short(key)} where {place} has a {before}; use one type"
    return None
