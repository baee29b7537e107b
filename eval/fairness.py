"""Fairness: accuracy of every group (region, household income) and the gap between the best and the worst."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from foundation.errors import CurationError
from foundation.intervals import Interval, bootstrap, weighted_mean


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracy by group.

    Attributes:
        groups: accuracy of each, with interval and size.
        overall: over all rows.
        worst, best: names of the groups.
        gap: accuracy of the best group minus that of the worst; its interval resamples which groups those are.
        relative_drop: gap / best: the share of the best group's accuracy that the worst one does not get.
    """

    groups: dict[str, Interval]
    overall: Interval
    worst: str
    best: str
    gap: Interval
    relative_drop: float


def accuracy_by_group(correct: Any, groups: Any, min_rows: int = 1, **options: Any) -> GroupAccuracy:
    """Accuracy of each group and the gap.

    Args:
        correct: (n,) whether each test row was right; also any score in [0, 1].
        groups: (n,) name of each row's group; None or "" leaves the row out of the groups (not of the overall).
        min_rows: smaller groups are not reported: their figure would be noise, and so would be the gap.
        options: of `foundation.intervals.bootstrap`.

    Raises:
        CurationError: lengths differ, or fewer than two groups have ``min_rows`` rows.
    """
    x = np.asarray(correct, dtype=np.float64)
    names = np.array(["" if group is None else str(group) for group in groups])
    if x.ndim != 1 or len(x) != len(names):
        raise CurationError(f"{x.shape} results for {len(names)} groups; give one group per test row")
    if not np.isfinite(x).all():
        raise CurationError(f"result {int((~np.isfinite(x)).argmax())} is not finite")
    found, sizes = np.unique(names[names != ""], return_counts=True)
    kept = [str(name) for name, size in zip(found, sizes, strict=True) if size >= min_rows]
    if len(kept) < 2:
        raise CurationError(
            f"{len(kept)} groups have {min_rows} rows or more; a gap needs two. Groups: "
            f"{', '.join(f'{name} ({size})' for name, size in zip(found[:10], sizes, strict=False)) or 'none'}"
        )
    accuracy = {}
    for name in kept:
        rows = x[names == name]
        accuracy[name] = bootstrap(weighted_mean(rows), len(rows), **options)
    member: Bool[np.ndarray, "groups n"] = np.array([names == name for name in kept])

    def gap(counts: Int[np.ndarray, "r n"]) -> Float[np.ndarray, "r"]:
        with np.errstate(invalid="ignore"):  # a resample that lost a group counts for nothing
            share = (counts @ (member * x).T) / (counts @ member.T)
        return share.max(1) - share.min(1)

    worst = min(kept, key=lambda name: accuracy[name].value)
    best = max(kept, key=lambda name: accuracy[name].value)
    spread = bootstrap(gap, len(x), **options)
    top = accuracy[best].value
    return GroupAccuracy(
        accuracy,
        bootstrap(weighted_mean(x), len(x), **options),
        worst,
        best,
        spread,
        spread.value / top if top else 0.0,
    )
