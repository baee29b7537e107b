"""Sentences of written-up results, the same for every experiment."""

from collections.abc import Sequence
from typing import Any

import numpy as np

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


def headline(cells: dict[tuple[str, str], Summary], metric: str, base: str, ours: str, oracle: str, what: str) -> str:
    """Who wins by the headline metric, how far the true labels would go, and what the other arms do."""
    if (ours, metric) not in cells or (base, metric) not in cells:
        return f"The arms {base} and {ours} are not both here: no verdict.\n"
    mine, raw = cells[ours, metric], cells[base, metric]
    word = {"better": "**Curated wins**", "worse": "**Curated loses**"}.get(mine.verdict, "**Not told apart**")
    text = (
        f"{word}: {ours} against {base}, {what} {raw.mean:.3f} -> {mine.mean:.3f}, {difference(mine)} "
        f"({mine.pairs} paired seeds). "
    )
    if (oracle, metric) in cells:
        text += f"True labels ({oracle}): {difference(cells[oracle, metric])}. "
    told = (base, ours, oracle)
    others = [f"{arm} {difference(item)}" for (arm, name), item in cells.items() if name == metric and arm not in told]
    return text + (f"Others: {'; '.join(others)}.\n" if others else "\n")
