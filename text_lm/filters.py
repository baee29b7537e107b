"""Filters of passages, each a name and a function, with counts of what goes in and out.

The rules of C4, Gopher and FineWeb come from `datatrove` and languages from `py3langid` (the extra ``text-filters``);
only the plain bounds on length are our own.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from foundation.errors import CurationError
from foundation.numbers import is_digits

DATATROVE = {
    "gopher_repetition": "GopherRepetitionFilter",
    "gopher_quality": "GopherQualityFilter",
    "c4": "C4QualityFilter",
    "fineweb": "FineWebQualityFilter",
}


@dataclass(frozen=True)
class TextFilter:
    """A filter.

    Attributes:
        name: how counts call it.
        reason: the reason to drop a text, or None to keep it.
    """

    name: str
    reason: Callable[[str], str | None]


@dataclass
class FilterCount:
    """What a filter saw and let through, in texts and characters, and why it dropped the rest."""

    name: str
    texts_in: int = 0
    texts_out: int = 0
    characters_in: int = 0
    characters_out: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def apply(self, item: TextFilter, text: str) -> bool:
        """Whether the filter keeps the text; counted."""
        reason = item.reason(text)
        self.texts_in += 1
        self.characters_in += len(text)
        if reason is None:
            self.texts_out += 1
            self.characters_out += len(text)
        else:
            self.reasons[reason] += 1
        return reason is None


def open_filter(name: str) -> TextFilter:
    """A filter by its name.

    Args:
        name: ``length:LOW-HIGH`` (characters, both ends included; HIGH may be empty), ``words:LOW-HIGH``,
            ``language:en,de`` (the most probable language is one of these; ISO 639-1), or one of datatrove's
            ``gopher_repetition``, ``gopher_quality``, ``c4``, ``fineweb``.

    Raises:
        CurationError: an unknown name, bounds that are none, or the package is not installed.
    """
    require_filter(name)
    kind, _, rest = name.partition(":")
    if kind in ("length", "words"):
        low, high = _bounds(name, rest)
        return TextFilter(name, lambda text: _outside(len(text if kind == "length" else text.split()), low, high))
    if kind == "language":
        return TextFilter(name, _language(name, [code.strip() for code in rest.split(",") if code.strip()]))
    return TextFilter(name, _datatrove(name))


def require_filter(name: str) -> None:
    """Refuse a name that `open_filter` does not know; its package need not be there.

    Raises:
        CurationError: an unknown name, or bounds that are none.
    """
    kind, _, rest = name.partition(":")
    if kind in ("length", "words"):
        _bounds(name, rest)
    elif kind != "language" and name not in DATATROVE:
        raise CurationError(
            f"filter {name!r} is unknown; use length:LOW-HIGH, words:LOW-HIGH, language:CODES, {', '.join(DATATROVE)}"
        )


def open_filters(names: Sequence[str]) -> list[TextFilter]:
    """Filters by their names, in order."""
    return [open_filter(name) for name in names]


def _bounds(name: str, text: str) -> tuple[int, float]:
    low, dash, high = text.partition("-")
    if not dash or not is_digits(low) or not (is_digits(high) or not high) or len(text) > 30:
        raise CurationError(f"filter {name!r} needs bounds such as 200-2000 or 200-")
    bounds = int(low), float(high) if high else float("inf")
    if bounds[0] > bounds[1]:
        raise CurationError(f"filter {name!r} keeps nothing: {low} is above {high}")
    return bounds


def _outside(size: int, low: int, high: float) -> str | None:
    return "too short" if size < low else "too long" if size > high else None


def _language(name: str, codes: list[str]) -> Callable[[str], str | None]:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise CurationError(f"filter {name!r} needs py3langid; pip install 'curated-ssl[text-filters]'") from error
    identifier: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    labels = identifier.labels() if callable(identifier.labels) else identifier.labels
    unknown = [code for code in codes if code not in set(map(str, labels))]
    if unknown or not codes:
        raise CurationError(f"filter {name!r}: language {', '.join(unknown) or '(none)'} is not known; use ISO 639-1")

    def reason(text: str) -> str | None:
        found = str(identifier.classify(text)[0])
        return None if found in codes else found

    return reason


def _datatrove(name: str) -> Callable[[str], str | None]:
    try:
        import spacy  # noqa: F401  datatrove splits words with it
        from datatrove.data import Document
        from datatrove.pipeline import filters
    except ImportError as error:
        raise CurationError(
            f"filter {name!r} needs datatrove and spacy; pip install 'curated-ssl[text-filters]'"
        ) from error
    # C4 drops lines without a full stop from the text; passages are judged whole here, so that rule is left to FineWeb
    options: dict[str, Any] = {"filter_no_terminal_punct": False} if name == "c4" else {}
    rule = getattr(filters, DATATROVE[name])(**options)

    def reason(text: str) -> str | None:
        verdict = rule.filter(Document(text=text, id=""))
        keep, why = verdict if isinstance(verdict, tuple) else (verdict, "dropped")
        return None if keep else str(why)

    return reason
