"""Is a tree sound? What a check finds, in one plain sentence with its remedy."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class Finding:
    """One thing that was checked.

    Attributes:
        severity: "ok", "warn" or "bad".
        sentence: what was found, one plain sentence with its full stop.
        remedy: what to change, one sentence; empty where nothing is wrong.
        value: the number behind the sentence.
    """

    severity: Literal["ok", "warn", "bad"]
    sentence: str
    remedy: str
    value: float
