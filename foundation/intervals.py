"""Confidence intervals and what may be said of a difference: bootstrap over test rows, Student's t over seeds.

Every statistic here is a function of how often each test row was drawn, so a resample is a row of counts and many
resamples are one matrix product. (Efron & Tibshirani 1993, chapters 13 and 16.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from foundation.errors import CurationError

COUNTS_PER_BLOCK = 1 << 24
N_BOOTSTRAP = 10_000
NO_DIFFERENCE, TOO_FEW = "no significant difference", "too few seeds to tell"
Statistic = Callable[[Int[np.ndarray, "r n"]], Float[np.ndarray, "r"]]


@dataclass(frozen=True)
class Interval:
    """A value with its interval.

    Attributes:
        value: on the test set itself.
        low, high: percentile bootstrap; NaN where the statistic cannot be resampled (one row, or no finite draw).
        n: test rows (or groups of rows) that were resampled.
    """

    value: float
    low: float
    high: float
    n: int


def bootstrap(
    statistic: Statistic,
    n: int,
    groups: Any = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of a statistic of n test rows.

    Args:
        statistic: from counts (resamples, n), how often each row was drawn, to values (resamples,).
        groups: (n,) integers: rows of one group (one photographer, one patient) are drawn together.
        n_resamples: draws.
        level: of confidence.

    Raises:
        CurationError: no rows, a level outside (0, 1), or no resamples.
    """
    if n < 1:
        raise CurationError("there is no test row to bootstrap")
    if not 0 < level < 1 or n_resamples < 1:
        raise CurationError(f"level {level} must lie between 0 and 1, and n_resamples {n_resamples} be at least 1")
    value = float(statistic(np.ones((1, n), dtype=np.int64))[0])
    member = np.arange(n)
    if groups is not None:
        if len(groups) != n:
            raise CurationError(f"{len(groups)} groups for {n} rows; give one per row")
        member = np.unique(np.asarray(groups), return_inverse=True)[1]
    n_units = int(member.max()) + 1
    if n_units == 1:
        return Interval(value, float("nan"), float("nan"), 1)
    generator = np.random.default_rng(seed)
    block = max(1, COUNTS_PER_BLOCK // max(n, n_units))
    draws = []
    for first in range(0, n_resamples, block):
        size = min(block, n_resamples - first)
        drawn = generator.integers(n_units, size=(size, n_units)) + n_units * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n_units).reshape(size, n_units)
        draws.append(statistic(counts[:, member] if groups is not None else counts))
    found = np.concatenate(draws)
    found = found[np.isfinite(found)]  # a resample may have lost a whole class
    if not len(found):
        return Interval(value, float("nan"), float("nan"), n_units)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), n_units)


def weighted_mean(values: Any) -> Statistic:
    """The mean of one value per row, as a statistic of counts."""
    x = np.asarray(values, dtype=np.float64)
    return lambda counts: counts @ x / counts.sum(1)


def pooled_mean(values: Any, weights: Any, parts: Any) -> Statistic:
    """The mean over parts of the weighted mean of their rows; NaN for a draw that has lost a part.

    Args:
        values, weights: (n,) such as bits per byte and bytes: their weighted mean is all bits over all bytes.
        parts: (n,) integers, such as the domain of each row.
    """
    x, w = np.asarray(values, np.float64), np.asarray(weights, np.float64)
    mass = np.equal.outer(np.asarray(parts), np.unique(parts)) * w[:, None]  # (n, parts)

    def statistic(counts: Int[np.ndarray, "r n"]) -> Float[np.ndarray, "r"]:
        drawn = counts @ mass
        means = (counts @ (mass * x[:, None])) / np.where(drawn > 0, drawn, np.nan)
        return means.mean(1)  # type: ignore[no-any-return]

    return statistic


def mean_interval(values: Any, groups: Any = None, **options: Any) -> Interval:
    """Mean of one value per test row (correct or not, average precision of a query) with its interval.

    Raises:
        CurationError: not one-dimensional, or not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1:
        raise CurationError(f"values have shape {x.shape}; the bootstrap needs one per test row")
    if not np.isfinite(x).all():
        raise CurationError(f"value {int((~np.isfinite(x)).argmax())} is not finite")
    return bootstrap(weighted_mean(x), len(x), groups, **options)


def paired_interval(values: Any, base: Any, groups: Any = None, **options: Any) -> Interval:
    """Mean of ``values - base`` on the same test rows: pairing takes the difficulty of a row out of the comparison.

    Raises:
        CurationError: different numbers of rows.
    """
    a, b = np.asarray(values, dtype=np.float64), np.asarray(base, dtype=np.float64)
    if a.shape != b.shape:
        raise CurationError(f"paired values have shapes {a.shape} and {b.shape}; both models need the same test rows")
    return mean_interval(a - b, groups, **options)


def student_interval(values: Any) -> tuple[float, float]:
    """Mean and half width of its 95 % confidence interval (Student's t); the half width of one value is NaN."""
    from scipy.stats import t

    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return float(x.mean()), float("nan")
    return float(x.mean()), float(t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))


def paired_student_interval(values: Any, base: Any) -> tuple[float, float]:
    """Mean of ``values - base`` and half width of its 95 % interval; both hold the same seeds in the same order."""
    return student_interval([value - other for value, other in zip(values, base, strict=True)])


def judge_difference(differences: Float[np.ndarray, "n"], better: str) -> tuple[float, float, float, str]:
    """Mean, 95 % bootstrap interval and verdict of differences that are paired by seed.

    With few seeds a percentile interval is too narrow: five differences of one sign always exclude zero. So a
    difference counts only where the bootstrap interval and that of Student's t both exclude zero.

    Args:
        better: "higher" or "lower".

    Returns:
        The verdict is better, worse, `NO_DIFFERENCE`, or below three seeds `TOO_FEW`.
    """
    x = np.asarray(differences, np.float64)
    if len(x) == 0:
        return float("nan"), float("nan"), float("nan"), TOO_FEW
    mean, half = student_interval(x)
    found = bootstrap(weighted_mean(x), len(x), n_resamples=N_BOOTSTRAP)
    low, high = (mean, mean) if len(x) == 1 else (found.low, found.high)
    if len(x) < 3:
        return mean, low, high, TOO_FEW
    if not ((low > 0 or high < 0) and abs(mean) > half):
        return mean, low, high, NO_DIFFERENCE
    return mean, low, high, "better" if (mean > 0) == (better == "higher") else "worse"
