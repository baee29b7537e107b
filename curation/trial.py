"""Which method is the most even over labels of some rows? All are tried on samples; the default is left for good cause.

No method balances every pool: what counts as a concept is for somebody to say, and labels of a few hundred rows say it.
They are then no longer an honest judge of the subset; a report asks others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from curation.baselines import clusters_of, semdedup_subset
from curation.pools.labels import Labels
from curation.store.bad_rows import usable
from curation.store.embeddings import open_embeddings
from curation.trees.balance import kl_to_uniform
from curation.trees.community_tree import AUTO, CommunityTree, metric_for
from curation.trees.hierarchy import HierarchicalKMeans
from curation.trees.sampling import balanced_targets
from foundation.errors import CurationError

ROWS = 8_000  # of the sample
LABELLED = 0.5  # of the sample at most that are taken for their labels, where few rows have one
LEAST_LABELLED = 50  # rows, below which nothing can be told
SEEDS, DRAWS, AGAIN = 3, 5, 200  # samples and trees; subsets of each; times that labels are drawn again
SURE, WORTH = 2.0, 0.1  # standard errors, and part of the way, by which a method must be better than the default
RANDOM = "random"  # the baseline
PAPER_ROWS, FLAT_ROWS = (25, 80, 250), 50  # for each cluster


@dataclass(frozen=True)
class Way:
    """One way to a subset.

    Attributes:
        rows: for each cluster of the levels of its tree; none: the levels are `AUTO`.
        baseline: a method of `curation.baselines` in place of a tree.
    """

    name: str
    metric: str
    rows: tuple[int, ...] = ()
    resamples: int = 0
    baseline: str = ""

    def levels(self, n_rows: int) -> str | list[int]:
        """As ``--levels`` takes them, for a pool of so many rows."""
        wanted = [max(1, n_rows // rows) for rows in self.rows]
        return list(dict.fromkeys(wanted)) or AUTO  # of very few rows fewer levels

    def fit(self, x: Float[np.ndarray, "n d"], seed: int) -> Any:
        """The tree of some rows."""
        if not self.rows:
            return CommunityTree(metric=self.metric, seed=seed, progress=False).fit(x)
        levels = self.levels(len(x))
        resamples = [0] + [self.resamples] * (len(levels) - 1)
        settings: dict[str, Any] = {"metric": self.metric, "max_iterations": 30, "seed": seed, "progress": False}
        return HierarchicalKMeans(levels, resamples, **settings).fit(x)

    def subsets(self, x: Float[np.ndarray, "n d"], size: int, seed: int) -> list[Int[np.ndarray, "m"]]:
        """Rows of some subsets: of a tree several draws."""
        if self.baseline == "semdedup":
            return [semdedup_subset(x, clusters_of("semdedup", len(x)), size, seed=seed, progress=False).ids]
        tree = self.fit(x, seed)
        return [tree.sample(size, seed=draw) for draw in range(DRAWS)]


def ways(dim: int) -> list[Way]:
    """What is tried: the default first, then the paper's method with its switches, one level, and SemDeDup."""
    angle = metric_for(AUTO, dim)
    found = [Way("the default", angle)]
    for metric in dict.fromkeys([angle, "l2"]):
        for resamples in (10, 0):
            found.append(Way(f"the paper's, {metric}, m = {resamples}", metric, PAPER_ROWS, resamples))
    found.append(Way(f"one level, {angle}", angle, (FLAT_ROWS,)))
    return [*found, Way("SemDeDup", "cosine", baseline="semdedup")]


@dataclass(frozen=True)
class Tried:
    """How even the subsets of one way are over the labels.

    Attributes:
        metric, levels, resamples, baseline: of the `Way`, for the whole pool.
        kl: to uniform over the labels, nats; mean over samples, trees and subsets.
        way: of the way from random rows (0) to the most even subset (1).
        less: mean KL less that of the default, and
        error: the standard error of that, over labels, samples and trees.
    """

    name: str
    metric: str
    levels: str | list[int]
    resamples: int
    baseline: str
    kl: float
    way: float
    less: float
    error: float


@dataclass(frozen=True)
class Trial:
    """All ways, and which to take.

    Attributes:
        labelled: rows whose labels were asked, mean over the samples.
        random, most_even: KL of random rows, and of the most even that the labelled rows allow.
        best: the default, unless another way is better by more than chance; random rows where none is better than these
            by more than chance, and the default is worse.
        hopeless: not even the best is better than random rows by more than chance.
    """

    rows: int
    labelled: int
    concepts: int
    random: float
    most_even: float
    tried: list[Tried]
    best: Tried
    hopeless: bool

    def lines(self) -> list[str]:
        """For people: the table, the most even first, and what to take."""
        there = f"{self.labelled:,} of {self.rows:,} rows have one"
        head = f"KL of subsets to even shares of {self.concepts:,} labels ({there}):"
        rows = [("random rows", self.random, 0.0), ("the most even there is", self.most_even, 1.0)]
        rows += [(tried.name, tried.kl, tried.way) for tried in self.tried]
        wide, rows = max(len(name) for name, _kl, _way in rows), sorted(rows, key=lambda row: row[1])
        table = [f"  {name:{wide}}  {kl:.3f}  {way:5.0%} of the way" for name, kl, way in rows]
        return [head, *table, "", self.sentence()]

    def sentence(self) -> str:
        """What to take, and how sure that is."""
        if self.hopeless:
            instead = ", or random rows as they are" if self.best.baseline == RANDOM else ""
            return (
                "None of these is better than random rows on your labels by more than chance: take another embedding"
                f"{instead}, or label more rows to be sure."
            )
        honest = "These labels chose, so they no longer judge: give the report others."
        if self.best is self.tried[0]:
            return f"The default: no other is better on your labels by much, and by more than chance. {honest}"
        gain = f"KL {-self.best.less:.3f} ± {self.best.error:.3f} less than the default"
        return f"{self.best.name[0].upper()}{self.best.name[1:]}: {gain}. {honest}"


def _sample(codes: Int[np.ndarray, "n"], rng: np.random.Generator) -> Int[np.ndarray, "m"]:
    """Rows at random, among them as many labelled ones as can be had up to a part of them."""
    n = len(codes)
    rows = rng.choice(n, min(n, ROWS), replace=False)
    short = round(LABELLED * len(rows)) - int((codes[rows] >= 0).sum())
    if n > ROWS and short > 0:
        outside = np.setdiff1d(np.flatnonzero(codes >= 0), rows)
        more = rng.permutation(outside)[:short]
        rows = np.concatenate([more, rows[codes[rows] >= 0], rows[codes[rows] < 0]])[:ROWS]
    return np.sort(rows)


class _Judge:
    """KL of the labelled rows of subsets to even shares: as they are, and with their rows drawn again (bootstrap).

    Args:
        codes: label of every row of the pool.
        known: rows that will be asked, ascending, all labelled.
    """

    def __init__(self, codes: Int[np.ndarray, "n"], known: Int[np.ndarray, "m"], k: int, seed: int):
        self.codes, self.known, self.k = codes, known, k
        drawn = np.random.default_rng([seed, 18]).poisson(1.0, (AGAIN, len(known)))
        self.weights = np.concatenate([np.ones((1, len(known))), drawn]).astype(np.float32)

    def __call__(self, subsets: Sequence[Int[np.ndarray, "m"]]) -> Float[np.ndarray, "b"]:
        """(1 + AGAIN,) mean KL over some subsets of pool rows; one without a labelled row is as uneven as can be."""
        total = np.zeros(len(self.weights))
        for rows in subsets:
            rows = rows[self.codes[rows] >= 0]
            label = np.zeros((len(rows), self.k), np.float32)
            label[np.arange(len(rows)), self.codes[rows]] = 1
            shares = self.weights[:, np.searchsorted(self.known, rows)] @ label
            shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1e-9)
            logs = np.log(np.maximum(shares, 1e-30) * self.k)
            total += np.where(shares.sum(axis=1) > 0, (shares * logs).sum(axis=1), np.log(self.k))
        return total / len(subsets)


def try_on_labels(x: Any, size: int, labels: Labels, seed: int = 0, progress: bool = True) -> Trial:
    """Try every way on samples of the rows; one that cannot be fitted to them is left out.

    Args:
        x: (n, d), anything `open_embeddings` takes.
        size: rows of the subset that is wanted, of all rows; a sample's subset is as large a part of it.
        labels: one for each row of ``x``; those of a few hundred random rows do.

    Raises:
        CurationError: too few rows have a label, or there is one label alone.
    """
    source = open_embeddings(x)
    n, codes = source.n_rows, labels.codes
    known, k = int((codes >= 0).sum()), len(labels.names)
    if known < LEAST_LABELLED or k < 2:
        raise CurationError(
            f"{known:,} rows have a label, of {k} concepts; to tell which method is the more even takes "
            f"{LEAST_LABELLED} rows of two concepts at least"
        )
    tried = ways(source.dim)
    rngs = [np.random.default_rng([seed, 17, number]) for number in range(SEEDS)]
    samples = [_sample(codes, rng) for rng in rngs]
    asked = np.unique(np.concatenate([rows[codes[rows] >= 0] for rows in samples]))
    judge = _Judge(codes, asked, k, seed)
    kl = np.full((1 + AGAIN, SEEDS, 1 + len(tried)), np.nan)  # of random rows first
    most_even, labelled, looked_at = np.zeros(SEEDS), 0, 0
    with tqdm(total=SEEDS * len(tried), desc="tried on labels", unit="tree", disable=not progress) as bar:
        for number, (rng, rows) in enumerate(zip(rngs, samples, strict=True)):
            points = source.take(rows).float().cpu().numpy()
            rows, points = rows[usable(points)], points[usable(points)]
            part = max(2, round(len(rows) * size / n))
            counts = np.bincount(codes[rows][codes[rows] >= 0], minlength=k)
            share = np.array([max(1, round(part * counts.sum() / len(rows)))])
            most_even[number] = kl_to_uniform(balanced_targets(np.zeros(k, np.int64), counts, share, rng))
            labelled, looked_at = labelled + int(counts.sum()), looked_at + len(rows)
            kl[:, number, 0] = judge([rng.permutation(rows)[:part] for _draw in range(10 * DRAWS)])
            for place, way in enumerate(tried, 1):
                try:
                    kl[:, number, place] = judge([rows[chosen] for chosen in way.subsets(points, part, seed + number)])
                except CurationError:  # fewer distinct rows than clusters
                    if place == 1:
                        raise
                bar.update()
    fitted = np.isfinite(kl[0]).all(axis=0)
    tried, kl = [way for way, there in zip(tried, fitted[1:], strict=True) if there], kl[:, :, fitted]
    about = {"rows": looked_at // SEEDS, "labelled": labelled // SEEDS, "concepts": k}
    return _judged(tried, kl, float(most_even.mean()), n, about)


def _judged(tried: list[Way], kl: Float[np.ndarray, "b s w"], most_even: float, n: int, about: dict[str, int]) -> Trial:
    """The best by its mean, if it is better than the default by `SURE` standard errors and by `WORTH`.

    Args:
        kl: of random rows and every way; labels as they are first, then drawn again.
    """

    def error(differences: Float[np.ndarray, "b s"]) -> float:
        """Of a mean over samples: what another draw of labels would change, and another of rows and trees."""
        of_labels = differences[1:].mean(axis=1).var(ddof=1)
        return float(np.sqrt(of_labels + differences[0].var(ddof=1) / differences.shape[1]))

    mean = kl[0].mean(axis=0)
    there = max(mean[0] - most_even, 1e-9)
    found = [
        Tried(
            name=way.name,
            metric=way.metric,
            levels=way.levels(n),
            resamples=way.resamples,
            baseline=way.baseline,
            kl=round(float(mean[i]), 4),
            way=round(float((mean[0] - mean[i]) / there), 4),
            less=round(float(mean[i] - mean[1]), 4),
            error=round(error(kl[:, :, i] - kl[:, :, 1]), 4),
        )
        for i, way in enumerate(tried, 1)
    ]
    sure = [one for one in found[1:] if one.less < -max(SURE * one.error, WORTH * there)]
    best = min([found[0], *sure], key=lambda one: one.kl)
    at = 1 + found.index(best)
    hopeless = bool(mean[at] > mean[0] - SURE * error(kl[:, :, at] - kl[:, :, 0]))
    if hopeless and mean[at] > mean[0]:
        less, of_less = round(float(mean[0] - mean[1]), 4), round(error(kl[:, :, 0] - kl[:, :, 1]), 4)
        kl_of = round(float(mean[0]), 4)
        best = replace(best, name="random rows", baseline=RANDOM, kl=kl_of, way=0.0, less=less, error=of_less)
    random = round(float(mean[0]), 4)
    return Trial(random=random, most_even=round(most_even, 4), tried=found, best=best, hopeless=hopeless, **about)
