"""Image retrieval: mean average precision, and the revisited Oxford and Paris protocol (Radenovic et al. 2018)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int

from eval.arrays import as_features, as_labels, check_same_width
from foundation.errors import CurationError
from foundation.files import load_json
from foundation.paths import inside

# which lists of the ground truth count as relevant, and which are taken out of the ranking
PROTOCOLS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
CUTS = (1, 5, 10)


@dataclass
class Query:
    """A query of the revisited protocol.

    Attributes:
        name: of its image, without the ending.
        box: (left, top, right, bottom) of the object, pixels; the query is cut out of its image.
        easy, hard, junk: database indices.
    """

    name: str
    box: tuple[float, float, float, float]
    easy: list[int]
    hard: list[int]
    junk: list[int]


@dataclass
class GroundTruth:
    """Database images and queries.

    Attributes:
        database: names of the images, without the ending, in the order that the indices mean.
        queries: see `Query`.
    """

    database: list[str]
    queries: list[Query]


@dataclass
class _Entry:
    bbx: list[float]
    easy: list[int]
    hard: list[int]
    junk: list[int]


@dataclass
class _Truth:
    """What ``gnd.json`` must hold."""

    imlist: list[str]
    qimlist: list[str]
    gnd: list[_Entry]


def read_ground_truth(path: str | Path) -> GroundTruth:
    """Read ``gnd.json``: {"imlist": [...], "qimlist": [...], "gnd": [{"bbx", "easy", "hard", "junk"}, ...]}.

    The official file is a Python pickle with the same keys; pickles can run code, so this reads only JSON.

    Raises:
        CurationError: no such file, other keys, or an index outside the database.
    """
    path = Path(path)
    if path.suffix == ".pkl":
        raise CurationError(
            f"{path} is a pickle, which can run code when opened and is never read here; if you trust it, convert it: "
            "python -c \"import json, pickle, sys; json.dump(pickle.load(open(sys.argv[1], 'rb')), "
            f"open(sys.argv[2], 'w'), default=lambda x: x.tolist())\" {path} {path.with_suffix('.json')}"
        )
    try:
        content = load_json(path, _Truth, "give the gnd.json of the set")
        database, names, lists = content["imlist"], content["qimlist"], content["gnd"]
        queries = []
        for name, entry in zip(names, lists, strict=True):
            left, top, right, bottom = (float(edge) for edge in entry["bbx"])
            parts = {part: entry[part] for part in ("easy", "hard", "junk")}
            queries.append(Query(name, (left, top, right, bottom), **parts))
    except CurationError:
        raise
    except ValueError as error:  # not four edges, or not one entry for each query
        raise CurationError(f"ground truth {path} is not the revisited format ({error!r})") from error
    for query in queries:
        lists = [set(getattr(query, part)) for part in ("easy", "hard", "junk")]
        named = set().union(*lists)
        for image in named:
            if not 0 <= image < len(database):
                raise CurationError(f"{path}: query {query.name} names image {image}, but imlist has {len(database)}")
        if len(named) < sum(map(len, lists)):
            raise CurationError(f"{path}: query {query.name} names an image in two of easy, hard and junk; leave one")
    for name in [*database, *(query.name for query in queries)]:
        inside(path.parent, name, str(path))
    return GroundTruth(list(database), queries)


def trapezoid_ap(positions: Int[np.ndarray, "p"], n_relevant: int) -> float:
    """Average precision by the trapezoid rule, as the Oxford benchmark defines it.

    Args:
        positions: ranks of the relevant images found, ascending, the first rank is 0.
        n_relevant: relevant images in the database.
    """
    found = np.arange(len(positions))
    before = np.where(positions == 0, 1.0, found / np.maximum(positions, 1))
    after = (found + 1) / (positions + 1)
    return float((before + after).sum() / (2 * n_relevant))


def average_precision(relevant: Bool[np.ndarray, "n"]) -> float:
    """Average precision of a whole ranking, the usual definition: mean of the precision at each relevant rank."""
    positions = np.flatnonzero(relevant)
    return float(((np.arange(len(positions)) + 1) / (positions + 1)).mean())


def find_ground_truth(folder: Path) -> Path:
    """``gnd.json`` of a dataset's folder; the pickle beside it where only that is there."""
    pickles = sorted(folder.glob("gnd*.pkl"))
    return folder / "gnd.json" if (folder / "gnd.json").exists() or not pickles else pickles[0]


@dataclass(frozen=True)
class ProtocolResult:
    """One difficulty.

    Attributes:
        mean_ap: over the queries that have a relevant image.
        precision: at 1, 5, 10: relevant share of the first k (of the first r, if fewer are relevant).
        per_query: (queries,) average precision, NaN for a query without a relevant image.
    """

    mean_ap: float
    precision: dict[int, float]
    per_query: Float[np.ndarray, "queries"]


def rank(query_features: Any, database_features: Any) -> Int[np.ndarray, "queries n"]:
    """Database indices of each query by descending cosine; ties go to the lower index."""
    queries = as_features(query_features, "query features")
    database = as_features(database_features, "database features")
    check_same_width(database, queries)
    similarity = F.normalize(queries.double(), dim=1) @ F.normalize(database.double(), dim=1).T
    return (-similarity).argsort(dim=1, stable=True).cpu().numpy()


def revisited(ranking: Int[np.ndarray, "queries n"], truth: GroundTruth) -> dict[str, ProtocolResult]:
    """Easy, medium and hard: other images than the relevant ones of a protocol are junk, and junk leaves the ranking.

    Raises:
        CurationError: the ranking has another number of queries or images than the ground truth.
    """
    expected = (len(truth.queries), len(truth.database))
    if ranking.shape != expected:
        raise CurationError(
            f"the ranking has shape {ranking.shape}; the ground truth has {expected} queries and images"
        )
    found = {}
    for name, (wanted, ignored) in PROTOCOLS.items():
        aps, precisions = [], []
        for order, query in zip(ranking, truth.queries, strict=True):
            relevant = sorted({i for part in wanted for i in getattr(query, part)})
            junk = [i for part in ignored for i in getattr(query, part)]
            if not relevant:
                aps.append(float("nan"))
                continue
            kept = order[~np.isin(order, junk)]
            positions = np.flatnonzero(np.isin(kept, relevant))
            aps.append(trapezoid_ap(positions, len(relevant)))
            # the benchmark never looks further down than the last relevant image
            cuts = {k: min(k, int(positions[-1]) + 1) for k in CUTS}
            precisions.append([(positions < cut).sum() / cut for cut in cuts.values()])
        per_query = np.array(aps)
        if not np.isfinite(per_query).any():
            continue
        mean = np.mean(precisions, axis=0)
        at = {k: float(mean[i]) for i, k in enumerate(CUTS)}
        found[name] = ProtocolResult(float(np.nanmean(per_query)), at, per_query)
    if not found:
        raise CurationError("no query has a relevant image under any protocol")
    return found


def label_retrieval(
    query_features: Any,
    query_labels: Any,
    database_features: Any = None,
    database_labels: Any = None,
    queries_per_block: int = 256,
) -> Float[np.ndarray, "queries"]:
    """Average precision of each query where relevant means: of the same class. NaN where no image is.

    Args:
        database_features, database_labels: None searches the queries themselves, each without itself.
    """
    queries = as_features(query_features, "query features")
    labels = as_labels(query_labels, len(queries), "query labels").numpy()
    itself = database_features is None
    database = queries if itself else as_features(database_features, "database features")
    truth = labels if itself else as_labels(database_labels, len(database), "database labels").numpy()
    found = np.full(len(queries), np.nan)
    for first in range(0, len(queries), queries_per_block):
        for i, order in enumerate(rank(queries[first : first + queries_per_block], database), start=first):
            order = order[order != i] if itself else order
            relevant = truth[order] == labels[i]
            if relevant.any():
                found[i] = average_precision(relevant)
    return found
