"""One way to write a number, for options, settings and files of settings alike.

Python, YAML and Hydra differ: YAML takes 010 for 8 and 1:30 for 90, Python the digits of every script.
"""

import re
from math import floor, log10
from typing import Any

PLAIN = re.compile(r"[-+]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?", re.IGNORECASE)
LEADING_ZERO = re.compile(r"[-+]?0[0-9_]")
NOT_FINITE = re.compile(r"[-+]?\.?(inf|infinity|nan)", re.IGNORECASE)


def is_digits(text: str) -> bool:
    """Whether a text is ASCII digits alone: of an index or a name, where zeros may come first."""
    return text.isascii() and text.isdecimal()


def is_plain_number(text: str) -> bool:
    """Whether a text is a number in ASCII digits, such as 12, -0.5, 1e6 or 1_000, and begins with no needless 0."""
    return PLAIN.fullmatch(text) is not None and LEADING_ZERO.match(text) is None


def read_number(text: Any, kind: type) -> Any:
    """The int or float of a text; what is no text stays as it is, and infinity and NaN are left to a range.

    Args:
        kind: int, which 1e6 also is, or float.

    Raises:
        ValueError: no plain number (`is_plain_number`), or of an int no whole one.
    """
    if not isinstance(text, str):
        return text
    text = text.strip()
    if kind is float and NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    if not is_plain_number(text) or len(text) > 1000:
        raise ValueError(f"{text[:80]!r} is no number")
    if kind is float:
        return float(text)
    if "e" not in text.lower() and "." not in text:
        return int(text)
    value = float(text)
    if not value.is_integer():
        raise ValueError(f"{text[:80]!r} is no whole number")
    return int(value)


def figure(value: float) -> str:
    """A number for a reader: three digits that count, all of its whole part: 0.00123, 12.3, 12,345."""
    places = 2 - floor(log10(abs(value))) if value else 0
    return f"{value:,.{min(max(places, 0), 12)}f}"
