"""Sentences of written-up results, the same for every experiment."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.engine.arms import BASE_ARM, METHOD_ARM, ORACLE
from experiments.engine.compare import Summary
from experiments.engine.provenance import commits_of


def with_interval(mean: float, half: float, digits: int = 3) -> str:
    """Mean ± half width of its interval; the mean alone where there is one value."""
    return f"{mean:.{digits}f}" if np.isnan(half) else f"{mean:.{digits}f} ± {half:.{digits}f}"


def difference(item: Summary, digits: int = 3) -> str:
    """Paired difference to the base arm with its interval and verdict."""
    if not item.verdict:
        return "-"
    return f"{item.difference:+.{digits}f} [{item.low:+.{digits}f}, {item.high:+.{digits}f}], {item.verdict}"


def origin(command: str, made: Sequence[dict[str, Any]], note: str = "") -> str:
    """How the numbers came about: command, commits, devices, versions, from the provenance of each stage."""
    versions = {", ".join(f"{name} {version}" for name, version in item["versions"].items()) for item in made}
    return (
        f"- command: `{command}`{note and f', {note}'}\n"
        f"- commit of the code: {commits_of(made)}\n"
        f"- device: {', '.join(sorted({item['device'] for item in made}))}\n"
        f"- versions: {'; '.join(sorted(versions))}\n"
    )


def headline(cells: dict[tuple[str, str], Summary], metric: str, what: str) -> str:
    """One sentence: the verdict on the method by the headline metric, in the words of `foundation.intervals`."""
    if (METHOD_ARM, metric) not in cells or (BASE_ARM, metric) not in cells:
        return f"The arms {BASE_ARM} and {METHOD_ARM} are not both here: no verdict."
    mine, raw = cells[METHOD_ARM, metric], cells[BASE_ARM, metric]
    return (
        f"**{mine.verdict.capitalize()}**: {METHOD_ARM} against {BASE_ARM}, {what} {raw.mean:.3f} -> {mine.mean:.3f}, "
        f"{difference(mine)} ({mine.pairs} paired seeds)."
    )


def other_arms(cells: dict[tuple[str, str], Summary], metric: str) -> str:
    """How far the true labels would go by the headline metric, and what the other arms do."""
    text = f"True labels ({ORACLE}): {difference(cells[ORACLE, metric])}. " if (ORACLE, metric) in cells else ""
    told = (BASE_ARM, METHOD_ARM, ORACLE)
    others = [f"{arm} {difference(item)}" for (arm, name), item in cells.items() if name == metric and arm not in told]
    return text + (f"Others: {'; '.join(others)}.\n" if others else "\n")
