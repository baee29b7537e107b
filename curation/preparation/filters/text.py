"""Texts that say nothing, told by counting characters: too short, few letters, or one character over and over."""

import re
from collections import Counter
from dataclasses import dataclass

from foundation.errors import CurationError


@dataclass(frozen=True)
class TextJunk:
    """Rules for texts; 0 leaves a rule out.

    Attributes:
        min_characters: white space at the ends left out; below it "short".
        min_letters: share of letters, of any script, among what is no white space; below it "few letters".
        max_repeat: share of the most frequent character; above it, or where one character comes 50 times in a row,
            "repeated".
    """

    min_characters: int = 20
    min_letters: float = 0.4
    max_repeat: float = 0.4

    def __post_init__(self) -> None:
        if self.min_characters < 0 or not 0 <= self.min_letters <= 1 or not 0 <= self.max_repeat <= 1:
            raise CurationError(
                f"min_characters {self.min_characters} must not be negative, and min_letters {self.min_letters:g} and "
                f"max_repeat {self.max_repeat:g} are shares, 0 to 1"
            )

    def reason(self, text: str) -> str | None:
        """Which rule a text breaks; None: none."""
        solid = "".join(text.split())
        if len(text.strip()) < self.min_characters or not solid:
            return "short"
        if self.max_repeat:
            most = Counter(solid).most_common(1)[0][1]
            if most > self.max_repeat * len(solid) or re.search(r"(.)\1{49}", solid):
                return "repeated"
        return "few letters" if sum(map(str.isalpha, solid)) < self.min_letters * len(solid) else None
