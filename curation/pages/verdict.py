"""Is the subset more even than random rows? Measures over one set of concepts, and the answer in a sentence."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int

from curation.pools.labels import Labels
from curation.soundness import Finding, by_communities
from curation.trees.balance import balance_row, kl_to_uniform
from curation.trees.sampling import balanced_targets
from curation.trees.subset import Subset
from curation.trees.tree import ClusterTree

DRAWS, LEAST_DRAWS, MOST_CELLS = 1_000, 10, 2_000_000  # random subsets of the same size; of many concepts fewer
RANGE = (2.5, 97.5)  # percentiles of the draws that are "within the range"
LARGEST_POOL = 10**9  # rows that numpy draws from without replacement
CHANCE, FEWER, NAMED = 2.5, 0.2, 3  # percentile of random draws, share less, and labels that are named
EVEN = 0.05  # KL in nats below which a pool counts as even
ALREADY = "random rows are nearly even already and would do as well"
MEASURES = [  # key, title, which is better, fewest decimals, shown in percent
    ("effective", "effective number of concepts", "higher", 1, False),
    ("kl", "KL to uniform (nats)", "lower", 3, False),
    ("entropy", "normalised entropy", "higher", 3, False),
    ("gini", "Gini", "lower", 3, False),
    ("rare_covered", "rarest tenth of concepts covered", "higher", 0, True),
    ("rare_kept", "rows of the rarest tenth taken", "higher", 0, True),
    ("concepts", "concepts in the subset", "higher", 0, False),
]
TONES = {"ok": "good", "warn": "look closer", "bad": "bad", "none": "cannot be told"}


def decimals_apart(values: list[float], least: int = 0, most: int = 6) -> int:
    """Fewest decimals with which each value is within 2 % of itself and values that differ by 1 % look different."""
    values = sorted(float(value) for value in values)
    pairs = [(a, b) for a, b in pairwise(values) if b - a > 0.01 * max(abs(a), abs(b))]
    for decimals in range(least, most):
        exact = all(abs(round(value, decimals) - value) <= 0.02 * abs(value) for value in values)
        if exact and all(f"{a:.{decimals}f}" != f"{b:.{decimals}f}" for a, b in pairs):
            return decimals
    return most


@dataclass
class Comparison:
    """Rows of every concept in the pool, in a subset, and in random subsets of the same size.

    Attributes:
        title: "labels", or "clusters of level 1".
        names: of the concepts, None for clusters.
        pool, distinct, subset: (k,) rows; ``distinct`` counts a copied row once.
        there: (k,) rows that the subset could be drawn from: those of the pool that preparation kept.
        randoms: (r, k) rows.
        unlabelled: rows without a concept in the pool and in the subset.
        copies: how often a row may be drawn.
    """

    title: str
    names: list[str] | None
    pool: Int[np.ndarray, "k"]
    subset: Int[np.ndarray, "k"]
    distinct: Int[np.ndarray, "k"]
    there: Int[np.ndarray, "k"]
    randoms: Int[np.ndarray, "r k"]
    unlabelled: tuple[int, int] = (0, 0)
    copies: int = 1

    def __post_init__(self) -> None:
        counted = self.randoms[self.randoms.sum(1) > 0]
        self.measurable = len(self.pool) > 1 and self.subset.sum() > 0 and 2 * len(counted) > len(self.randoms)
        if self.measurable:
            self.ours, self.whole = balance_row(self.subset, self.pool), balance_row(self.pool, self.pool)
            self.random_rows = [balance_row(counts, self.pool) for counts in counted]

    @property
    def k(self) -> int:
        return len(self.pool)

    def most_even(self) -> float:
        """KL of the most even subset of as many rows, in nats: what is rare in the pool stays rare in any."""
        size = np.array([self.subset.sum()])
        parent = np.zeros(self.k, np.int64)
        return kl_to_uniform(balanced_targets(parent, self.there * self.copies, size, np.random.default_rng(0)))

    def random(self, key: str) -> tuple[float, float, float]:
        """Mean of a measure over the random subsets, and the range of 95 % of them."""
        values = np.array([row[key] for row in self.random_rows])
        low, high = np.percentile(values, RANGE)
        return float(values.mean()), float(low), float(high)

    def against_random(self, key: str, better: str) -> str:
        _mean, low, high = self.random(key)
        if low <= self.ours[key] <= high:
            return "within the range"
        return "better" if (self.ours[key] > high) == (better == "higher") else "worse"

    def lines(self) -> list[dict[str, str]]:
        """The table of measures, as text."""
        if not self.measurable:
            return []
        found = []
        for key, title, better, least, percent in MEASURES:
            scale = 100 if percent else 1
            mean, low, high = (scale * value for value in self.random(key))
            pool, ours = scale * self.whole[key], scale * self.ours[key]
            decimals = decimals_apart([mean, ours], least, 4)

            def shown(value: float, decimals: int = decimals, percent: bool = percent) -> str:
                return f"{value:,.{decimals}f}{'%' if percent else ''}"

            found.append(
                {
                    "title": title,
                    "better": better,
                    "pool": shown(pool),
                    "random": f"{shown(mean)} ({shown(low)} to {shown(high)})",
                    "subset": shown(ours),
                    "verdict": self.against_random(key, better),
                }
            )
        return found


def random_counts(
    pool: Int[np.ndarray, "k"], size: int, copies: int = 1, seed: int = 0, beside: int = 0
) -> Int[np.ndarray, "r k"]:
    """Rows of every concept in random subsets of ``size`` rows: only how many of each are drawn, not which.

    Args:
        pool: (k,) rows of every concept in the pool.
        copies: how often a row may be drawn.
        beside: rows of the pool without a concept, which are drawn as well and not counted.

    Returns:
        (r, k) int64, r random subsets: `DRAWS`, fewer of many concepts.
    """
    draws = int(np.clip(MOST_CELLS // len(pool), LEAST_DRAWS, DRAWS))
    rng = np.random.default_rng([seed, 9])
    counts = np.append(pool, beside).astype(np.int64) * copies
    if counts.sum() < LARGEST_POOL:
        return rng.multivariate_hypergeometric(counts, size, draws)[:, :-1]
    return rng.multinomial(size, counts / counts.sum(), draws)[:, :-1]


def compare_labels(
    labels: Labels, rows: Int[np.ndarray, "m"], there: Int[np.ndarray, "n"], copies: int = 1, seed: int = 0
) -> Comparison:
    """Over labels of the pool, of which random subsets are drawn; rows without a label are left out and counted.

    Args:
        labels: of all pool rows.
        rows: pool rows of the subset, repeated where copied.
        there: pool rows that it could be drawn from.
        copies: how often a row may be drawn.
    """

    def count(codes: np.ndarray) -> np.ndarray:
        return np.bincount(codes[codes >= 0], minlength=len(labels.names))

    codes = labels.codes
    pool, unlabelled = count(codes), int((codes < 0).sum())
    drawn = random_counts(pool, len(rows), copies, seed, unlabelled)
    of_subset = int((codes[rows] < 0).sum())
    distinct = count(codes[np.unique(rows)])
    unknown = (unlabelled, of_subset)
    of_rows, of_there = count(codes[rows]), count(codes[there])
    known: dict[str, Any] = {"unlabelled": unknown, "copies": copies}
    return Comparison("labels", labels.names, pool, of_rows, distinct, of_there, drawn, **known)


def compare_clusters(
    tree: ClusterTree, level: int, rows: Int[np.ndarray, "m"], copies: int = 1, seed: int = 0
) -> Comparison:
    """Over the clusters of one level that have rows."""
    pool = tree.row_counts(level)
    there = pool > 0

    def count(chosen: np.ndarray) -> np.ndarray:
        clusters = tree.ancestors(np.asarray(tree.levels[0].assignment)[chosen], 0, level)
        return np.bincount(clusters, minlength=len(pool))[there]

    drawn = random_counts(pool[there], len(rows), copies, seed)
    name = f"clusters of level {level + 1}"
    own = pool[there]
    return Comparison(name, None, own, count(rows), count(np.unique(rows)), own, drawn, copies=copies)


@dataclass
class Verdict:
    """The answer at the top of a page.

    Attributes:
        tone: a key of `TONES`.
        by_labels: the labels were asked, so that no estimate of what they say is to be heard.
    """

    tone: str
    sentence: str
    by_labels: bool = False

    @property
    def word(self) -> str:
        return TONES[self.tone]

    def line(self) -> str:
        """What a terminal shows."""
        return f"{self.word.upper()}: {self.sentence}"


def remedy(tree: ClusterTree, subset: Subset) -> str:
    """What to try where a subset is no better than random rows."""
    if subset.metadata.get("method") in ("flat", "random"):
        return "draw a balanced one"
    if by_communities(tree):
        return (
            "try another embedding, for this one may not tell these concepts apart, or let labels of some rows choose "
            "a method (curate advise --labels)"
        )
    resampled = any(np.atleast_1d(tree.settings.get("n_resamples", 0)))
    steps = ["resample less"] if resampled else []
    steps += ["take fewer levels"] if tree.n_levels > 1 else []
    return " or ".join(steps) or "try another embedding or metric"


def verdict_by_labels(found: Comparison, tree: ClusterTree, subset: Subset) -> Verdict:
    """Compares KL of the subset with that of random rows, and of the most even rows that the pool allows."""
    if found.k == 1 and found.names:
        return Verdict("none", f"All labelled rows are {found.names[0]!r}: balance over one concept cannot be told.")
    if not found.measurable:
        return Verdict("none", "Too few of the rows drawn have a label: the labels cannot judge this subset.")
    ours, (mean, low, high) = found.ours["kl"], found.random("kl")
    best = found.most_even()
    shown = decimals_apart([ours, mean], 2, 4)
    numbers = f"(KL {ours:.{shown}f} against {mean:.{shown}f}; {best:.{shown}f} would be the most even)"
    if ours > high:
        return Verdict("bad", f"Worse than random rows on your labels {numbers}: {remedy(tree, subset)}.", True)
    if ours < low:
        way = f"{(mean - ours) / max(mean - best, mean - ours):.0%} of the way from random rows to the most even"
        way += f", but {ALREADY}" * (mean <= EVEN)
        told = " ".join([f"Better than random rows on your labels {numbers}: {way}.", *losers(found)])
        return Verdict("ok", told, True)
    after = ALREADY if mean <= EVEN else remedy(tree, subset)
    return Verdict("warn", f"No better than random rows on your labels {numbers}: {after}.", True)


def losers(found: Comparison) -> list[str]:
    """A sentence on the labels that are rare in the pool and even rarer in the subset: balance is a mean over all."""
    low, mean = np.percentile(found.randoms, CHANCE, axis=0), found.randoms.mean(axis=0)
    rare = found.pool * found.k < found.pool.sum()
    fewer = np.flatnonzero(rare & (found.subset < low) & (found.subset < (1 - FEWER) * mean))
    if not len(fewer):
        return []
    worst = fewer[np.argsort(found.subset[fewer] / mean[fewer], kind="stable")]
    names = [found.names[i] if found.names else str(i) for i in worst[:NAMED]]
    told = [f"{name!r} {found.subset[i]:,} ({mean[i]:,.0f})" for name, i in zip(names, worst, strict=False)]
    more = f" and {len(worst) - NAMED:,} more" if len(worst) > NAMED else ""
    return [f"But of these rare labels random rows hold more (in brackets): {', '.join(told)}{more}."]


def beside(verdict: Verdict, findings: list[Finding]) -> list[Finding]:
    """The findings that stand beside a verdict without speaking of the same thing."""
    return [finding for finding in findings if not (verdict.by_labels and finding.estimates_evenness)]


def verdict_by_findings(findings: list[Finding] | None) -> Verdict:
    """The worst finding; without any, that nothing is known."""
    if not findings:
        return Verdict(
            "none",
            "Without labels this page cannot tell whether the subset is better than random rows: "
            "give labels for a sample of rows, or look at the map and the galleries.",
        )
    worst = max(findings, key=lambda finding: ("ok", "warn", "bad").index(finding.severity))
    if worst.severity == "ok":
        passed = f"Nothing speaks against this tree: {len(findings)} checks passed; no labels were given."
        return Verdict("ok", " ".join([passed, *(finding.remedy for finding in findings if finding.remedy)]))
    return Verdict(worst.severity, f"{worst.sentence} {worst.remedy}".strip())


def notes(found: Comparison) -> list[str]:
    """What a reader must know before trusting the measures over labels."""
    lines = []
    pool, subset = found.unlabelled
    if pool:
        share = pool / (pool + found.pool.sum())
        lines.append(
            f"{pool:,} rows ({share:.1%}) have no label, {subset:,} of the subset's among them: "
            "they are left out of the measures over labels."
        )
    size = int(found.subset.sum())
    if 0 < size < found.k:
        lines.append(
            f"There are {found.k:,} labels but {size:,} labelled rows in the subset: KL cannot fall below "
            f"{np.log(found.k / size):.3f}, and some labels stay without a row."
        )
    return lines


def headline(found: Comparison) -> str:
    """How uneven the pool is, and how diverse the subset."""
    noun = "labels" if found.names is not None else found.title
    counts = np.sort(found.pool)[::-1]
    top = max(1, round(found.k / 10))
    share = f"{counts[:top].sum() / counts.sum():.0%} of the pool"
    first = (
        f"The largest of the {found.k:,} {noun} holds {share}."
        if top == 1
        else f"The most frequent tenth of the {found.k:,} {noun} holds {share}."
    )
    if not found.measurable:
        return first
    values = [found.ours["effective"], found.random("effective")[0], found.whole["effective"]]
    decimals = decimals_apart(values, 0, 4)
    ours, random, pool = (f"{value:,.{decimals}f}" for value in values)
    return (
        f"{first} The subset is as diverse as {ours} equally frequent ones; "
        f"a random subset of the same size as {random}, the whole pool as {pool}."
    )


def share_rows(found: Comparison, most: int = 1_500) -> list[dict[str, Any]]:
    """Pool, random and subset share of each label, the most frequent first; of many the ends of that order."""
    order = np.argsort(-found.pool, kind="stable")
    if len(order) > most:
        order = np.concatenate([order[: most - most // 3], order[-(most // 3) :]])
    drawn, size = found.randoms.mean(0), max(1, found.subset.sum())
    return [
        {
            "name": found.names[i] if found.names else str(i),
            "pool": int(found.pool[i]),
            "pool_share": found.pool[i] / found.pool.sum(),
            "random_share": drawn[i] / max(1.0, drawn.sum()),
            "subset": int(found.subset[i]),
            "subset_share": found.subset[i] / size,
            "left_out": int(found.pool[i] - found.there[i]),
            "used_up": bool(found.distinct[i] == found.there[i] > 0),
        }
        for i in order
    ]
