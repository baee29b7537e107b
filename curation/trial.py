"""Which method is the most even over labels of some rows? Each is tried on a sample, and where none is better, none is.

No method balances every pool: what counts as a concept is for somebody to say, and labels of a few hundred rows say it.
They are then no longer an honest judge of the subset; a report asks others.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
SEEDS, DRAWS = 3, 5  # samples and trees; subsets of each
SURE, WORTH = 2.0, 0.1  # standard errors, and part of the way, by which a method must be better than the default
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
        return [max(1, n_rows // rows) for rows in self.rows] or AUTO

    def fit(self, x: Float[np.ndarray, "n d"], seed: int) -> Any:
        """The tree of some rows."""
        if not self.rows:
            return CommunityTree(metric=self.metric, seed=seed, progress=False).fit(x)
        levels, resamples = self.levels(len(x)), [0] + [self.resamples] * (len(self.rows) - 1)
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
        error: the standard error of that, over samples.
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
        best: the default, unless another way is better by more than chance.
        hopeless: not even the best is better than random rows.
    """

    rows: int
    labelled: int
    concepts: int
    random: float
    most_even: float
    tried: list[Tried]
    best: Tried
    hopeless: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For people: the table, the most even first."""
        there = f"{self.labelled:,} of {self.rows:,} rows have one"
        head = f"KL of subsets to even shares of {self.concepts:,} labels ({there}):"
        rows = [("random rows", self.random, 0.0), ("the most even there is", self.most_even, 1.0)]
        rows += [(tried.name, tried.kl, tried.way) for tried in self.tried]
        wide, rows = max(len(name) for name, _kl, _way in rows), sorted(rows, key=lambda row: row[1])
        table = [f"  {name:{wide}}  {kl:.3f}  {way:5.0%} of the way" for name, kl, way in rows]
        return [head, *table, "", self.sentence()]

    def sentence(self) -> str:
        if self.hopeless:
            return (
                "None of these is better than random rows on your labels by more than chance: take another embedding, "
                "or label more rows to be sure."
            )
        honest = "These labels chose, so they no longer judge: give the report others."
        if self.best is self.tried[0]:
            return f"The default: no other is better on your labels by much, and by more than chance. {honest}"
        gain = f"KL {-self.best.less:.3f} ± {self.best.error:.3f} less than the default"
        return f"{self.best.name[0].upper()}{self.best.name[1:]}: {gain}. {honest}"


def _sample(codes: Int[np.ndarray, "n"], rng: np.random.Generator) -> Int[np.ndarray, "m"]:
    """Rows at random, among them as many labelled ones as can be had up to a part of them."""
    n = len(codes)
    rows = rng.permutation(n)[:ROWS]
    short = round(LABELLED * len(rows)) - int((codes[rows] >= 0).sum())
    if n > ROWS and short > 0:
        outside = np.setdiff1d(np.flatnonzero(codes >= 0), rows)
        more = rng.permutation(outside)[:short]
        rows = np.concatenate([more, rows[codes[rows] >= 0], rows[codes[rows] < 0]])[:ROWS]
    return np.sort(rows)


def _counts(codes: Int[np.ndarray, "m"], k: int) -> Int[np.ndarray, "k"]:
    return np.bincount(codes[codes >= 0], minlength=k)


def try_on_labels(x: Any, size: int, labels: Labels, seed: int = 0, progress: bool = True) -> Trial:
    """Try every way on samples of the rows.

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
    kl = np.full((SEEDS, len(tried)), np.nan)
    random, most_even, labelled = np.zeros(SEEDS), np.zeros(SEEDS), 0
    bar = tqdm(total=SEEDS * len(tried), desc="tried on labels", unit="tree", disable=not progress)
    with bar:
        for number in range(SEEDS):
            rng = np.random.default_rng([seed, 17, number])
            rows = _sample(codes, rng)
            points = source.take(rows).float().cpu().numpy()
            rows, points = rows[usable(points)], points[usable(points)]
            mine = codes[rows]
            part = max(2, round(len(rows) * size / n))
            labelled += int((mine >= 0).sum())
            drawn = [mine[rng.permutation(len(rows))[:part]] for _draw in range(10 * DRAWS)]
            random[number] = _mean_kl(drawn, k)
            of_labels, parent = _counts(mine, k), np.zeros(k, np.int64)
            share = round(part * of_labels.sum() / len(rows))
            most_even[number] = kl_to_uniform(balanced_targets(parent, of_labels, np.array([max(1, share)]), rng))
            for place, way in enumerate(tried):
                drawn = [mine[chosen] for chosen in way.subsets(points, part, seed + number)]
                kl[number, place] = _mean_kl(drawn, k)
                bar.update()
    return _judged(tried, kl, random, most_even, rows=len(rows), n=n, labelled=labelled // SEEDS, k=k)


def _mean_kl(drawn: Sequence[Int[np.ndarray, "m"]], k: int) -> float:
    """Of the labelled rows of some subsets; a subset without any is as uneven as can be."""
    counts = [_counts(codes, k) for codes in drawn]
    return float(np.mean([kl_to_uniform(count) if count.any() else np.log(k) for count in counts]))


def _judged(
    tried: list[Way],
    kl: Float[np.ndarray, "s w"],
    random: Float[np.ndarray, "s"],
    most_even: Float[np.ndarray, "s"],
    *,
    rows: int,
    n: int,
    labelled: int,
    k: int,
) -> Trial:
    """The best by its mean, if it is better than the default by `SURE` standard errors and by `WORTH`."""

    def error(differences: np.ndarray) -> float:
        return float(differences.std(ddof=1) / np.sqrt(len(differences)))

    mean, there = kl.mean(axis=0), max(random.mean() - most_even.mean(), 1e-9)
    found = [
        Tried(
            name=way.name,
            metric=way.metric,
            levels=way.levels(n),
            resamples=way.resamples,
            baseline=way.baseline,
            kl=round(float(mean[i]), 4),
            way=round(float((random.mean() - mean[i]) / there), 4),
            less=round(float(mean[i] - mean[0]), 4),
            error=round(error(kl[:, i] - kl[:, 0]), 4),
        )
        for i, way in enumerate(tried)
    ]
    sure = [one for one in found[1:] if one.less < -max(SURE * one.error, WORTH * there)]
    best = min([found[0], *sure], key=lambda one: one.kl)
    at = found.index(best)
    hopeless = bool(mean[at] > random.mean() - SURE * error(kl[:, at] - random))
    summary = {"random": round(float(random.mean()), 4), "most_even": round(float(most_even.mean()), 4)}
    return Trial(rows, labelled, k, tried=found, best=best, hopeless=hopeless, **summary)
