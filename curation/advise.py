"""Which preparation, metric and levels for these embeddings? An answer with its evidence and the command to type."""

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curation.pools.labels import Labels
from curation.preparation.near_duplicates import NearRule, near_duplicates
from curation.store.bad_rows import usable
from curation.store.embeddings import open_embeddings
from curation.trees.dimension import likely_dimension, two_nearest_dimension
from curation.trees.levels import first_level
from curation.trees.neighbours import nearest, principal_axes
from curation.trial import Trial, try_on_labels
from foundation.errors import CurationError

SAMPLE = 5_000
FEW_DIMENSIONS = 16  # below it lengths say more than angles
FLAT_DIMENSIONS = 2  # up to it the paper's levels, which flatten density in space, were the best
REPEATED = 0.02  # share of near-duplicates in a sample that is worth a step of its own
PAPER_ROWS = (25, 80, 250)  # for each cluster of the paper's levels


@dataclass(frozen=True)
class Evidence:
    """One measured thing, and what it means for the choice."""

    name: str
    value: float
    meaning: str


@dataclass(frozen=True)
class Advice:
    """What to do.

    Attributes:
        preparation: "as is" or "unit length" (what ``metric`` cosine does), one of the words of the command's table.
        levels: "auto", or clusters of each level, finest first.
        level_1: clusters of level 1, also of "auto".
        resamples: after the first k-means of each level.
        dedup: near-duplicates are worth leaving out first.
        reasons: a sentence for every choice.
        commands: to type, in order.
        method: "tree", or a baseline that labels prefer to any.
        trial: what labels say of each method, where some were given.
    """

    preparation: str
    metric: str
    levels: str | list[int]
    level_1: int
    resamples: int
    dedup: bool
    reasons: list[str]
    evidence: list[Evidence]
    commands: list[str]
    method: str = "tree"
    trial: Trial | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it: what is not known is None."""
        found = asdict(self)
        for item in found["evidence"]:
            item["value"] = item["value"] if np.isfinite(item["value"]) else None
        return found

    def table(self) -> str:
        """For people: evidence, reasons, commands."""
        wide = max(len(item.name) for item in self.evidence)
        lines = [f"{item.name:{wide}}  {_short(item.value):>9}  {item.meaning}".rstrip() for item in self.evidence]
        tried = [] if self.trial is None else [*self.trial.lines(), ""]
        reasons = [*self.reasons, ""] if self.reasons else []
        return "\n".join([*lines, "", *reasons, *tried, *self.commands])


def _short(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"


def advise(
    x: Any,
    size: int,
    name: str = "embeddings/",
    seed: int = 0,
    kept: str | None = None,
    labels: Labels | None = None,
    progress: bool = False,
) -> Advice:
    """Look at a sample of rows and choose.

    The choice is `--levels auto`, which was best or near it on all pools of many dimensions; the paper's levels are
    chosen only where rows have two dimensions or one, or where labels say so.

    Args:
        x: (n, d), anything `open_embeddings` takes.
        size: rows of the subset that is wanted.
        name: of the embeddings in the commands, and
        kept: of the folder of ``x``'s kept rows there.
        labels: of the rows of ``x``, or of a few hundred: methods are tried on them (`curation.trial`), which takes a
            minute.

    Raises:
        CurationError: ``size`` is not between 1 and the rows, no row of the sample can be used, or labels are too few.
    """
    source = open_embeddings(x)
    n, dim = source.shape
    if not 0 < size <= n:
        raise CurationError(f"--size {size} must lie between 1 and {n}, the rows of the embeddings")
    rng = np.random.default_rng([seed, 13])
    rows = source.take(np.sort(rng.choice(n, min(n, SAMPLE), replace=False))).float().cpu().numpy()
    good = usable(rows)
    bad = 1 - float(good.mean())
    rows = rows[good]
    if len(rows) < 3:
        raise CurationError(f"{len(rows)} rows of the sample are finite and not zero; three are the least to say more")
    metric = "l2" if dim < FEW_DIMENSIONS else "cosine"
    lengths = np.linalg.norm(rows, axis=1)
    spread = float(lengths.std() / lengths.mean())
    units = rows / lengths[:, None]
    cosine = float((np.linalg.norm(units.mean(axis=0, dtype=np.float64)) ** 2 * len(rows) - 1) / (len(rows) - 1))
    points = principal_axes(units if metric == "cosine" else rows)
    distances, _found = nearest(points, min(20, len(points) - 1))
    intrinsic = two_nearest_dimension(distances[:, :2]) if distances.shape[1] > 1 else float("nan")
    likely = likely_dimension(distances)
    repeated = (len(rows) - 1) / len(rows)  # of equal rows, among which nothing is to be searched
    if np.ptp(points, axis=0).max() > 0:
        repeated = len(near_duplicates(rows, NearRule(), metric, progress=False).dropped) / len(rows)
    flat = dim <= FLAT_DIMENSIONS and n >= PAPER_ROWS[-1] * 8
    levels = [n // each for each in PAPER_ROWS] if flat else "auto"
    level_1 = n // PAPER_ROWS[0] if flat else first_level(n)
    evidence = [
        Evidence("rows", n, f"{size:,} of them are wanted, {size / n:.1%}"),
        Evidence(
            "dimensions",
            dim,
            "few: compare rows by distance" if dim < FEW_DIMENSIONS else "many: compare rows by angle",
        ),
        Evidence(
            "intrinsic dimension",
            intrinsic,
            f"by two nearest neighbours, which count below; {_short(likely)} by more of them",
        ),
        Evidence("density left", _left(intrinsic, 3), "its power after three levels of k-means; 1: not flattened"),
        Evidence("spread of lengths", spread, "standard deviation by mean; 0: of unit length"),
        Evidence("mean cosine", cosine, "of two rows; near 1: all point the same way"),
        Evidence("near-duplicates", repeated, "share of a sample; more of all rows"),
        Evidence("bad rows", bad, "share that is NaN, infinite or zero"),
    ]
    trial = None
    reasons = _reasons(
        n,
        dim,
        size,
        metric=metric,
        flat=flat,
        spread=spread,
        cosine=cosine,
        repeated=repeated,
        bad=bad,
        intrinsic=intrinsic,
    )
    resamples, method = 10 if flat else 0, ""
    if labels is not None:
        trial = try_on_labels(source, size, labels, seed, progress)
        metric, levels, resamples = trial.best.metric, trial.best.levels, trial.best.resamples
        method = trial.best.baseline
        level_1 = levels[0] if isinstance(levels, list) else first_level(n)
        reasons = [reason for reason in reasons if not reason.startswith(("Metric", "Levels", "The paper"))]
    return Advice(
        "unit length" if metric == "cosine" else "as is",
        metric,
        levels,
        level_1,
        resamples=resamples,
        dedup=repeated > REPEATED,
        reasons=reasons,
        evidence=evidence,
        method=method or "tree",
        commands=_commands(name, size, metric, levels, resamples, repeated > REPEATED, bad, kept=kept, method=method),
        trial=trial,
    )


def _left(dimension: float, levels: int) -> float:
    return (dimension / (dimension + 2)) ** levels


def _reasons(
    n: int,
    dim: int,
    size: int,
    *,
    metric: str,
    flat: bool,
    spread: float,
    cosine: float,
    repeated: float,
    bad: float,
    intrinsic: float,
) -> list[str]:
    if metric == "cosine":
        found = ["Metric cosine, which brings rows to unit length: in many dimensions lengths tell little of concepts"]
        found[0] += f", and they differ by {spread:.0%} here." if spread > 0.05 else "."
    else:
        found = [f"Metric l2, rows as they are: {dim} dimensions are too few for directions to tell concepts apart."]
    if flat:
        found.append("The paper's levels, resampled: in two dimensions they flatten the density in space.")
    else:
        left = f" (after three k-means levels the density is left to the power of {_left(intrinsic, 3):.2f})"
        found.append(
            "Levels auto: upper levels from communities of neighbour graphs do not depend on density or dimension"
            + (f"{left}." if np.isfinite(intrinsic) else ".")
        )
    if cosine > 0.9:
        found.append(
            f"Any two rows have a cosine of {cosine:.2f}: taking the mean off is worth a trial, compare it with "
            "`curate compare`."
        )
    if repeated > REPEATED:
        found.append(f"At least {repeated:.0%} of the rows nearly repeat another: leave them out first.")
    if bad:
        found.append(f"{bad:.1%} of the rows are NaN, infinite or zero and are left out.")
    if size > n / 2:
        found.append("More than half of the rows are wanted: little balance is to be had; a smaller subset has more.")
    return found


def _commands(
    name: str,
    size: int,
    metric: str,
    levels: str | list[int],
    resamples: int,
    dedup: bool,
    bad: float,
    *,
    kept: str | None,
    method: str,
) -> list[str]:
    where, rows, lines = shlex.quote(name), "" if kept is None else f" --rows {shlex.quote(kept)}", []
    if dedup:
        lines.append(f"curate dedup {where} -o distinct/ --metric {metric}{rows}")
        rows = " --rows distinct/"
    if method:
        return [*lines, f"curate baseline {method} {where} -o subset/ --size {size}{rows}"]
    cluster = f"curate cluster {where} -o tree/ --metric {metric} --levels "
    cluster += levels if isinstance(levels, str) else ",".join(map(str, levels)) + f" --resamples {resamples}"
    cluster += rows + (" --drop-bad-rows" if bad else "")
    beside = "" if Path(name) == Path("embeddings") else f" --embeddings {where}"  # else found beside the tree
    return [*lines, cluster, f"curate sample tree/ -o subset/ --size {size}{beside}"]
