"""Is a tree sound? Checks that need no labels: what each finds, in one plain sentence with its remedy.

No single sign is enough. Rare concepts lie apart, and so do outliers; a pool of one huge concept has one huge cluster.
So each check says what it saw, and thresholds are those that told known good trees from known bad ones
(`python scripts/calibrate_checks.py`). Everything is measured on samples: seconds for any number of rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from curation.store.bad_rows import KeptRows
from curation.store.embeddings import Embeddings, open_embeddings, read_info
from curation.trees.balance import effective_number
from curation.trees.communities import communities
from curation.trees.dimension import likely_dimension, two_nearest_dimension
from curation.trees.neighbours import cover, nearest, principal_axes, shared_neighbour_graph
from curation.trees.subset import Subset
from curation.trees.tree import ClusterTree, is_made_of
from foundation.errors import CurationError

SAMPLE = 4_000  # rows of the pool, and as many of the subset, that are looked at
READ = 8_192  # rows in one read
DIGEST_BYTES = 1 << 30  # of rows that are read whole to see that they are those of the tree: a second
NEIGHBOURS = 20  # of a point, for its dimension
GRAPH = 15  # neighbours in the graph of communities
ISOLATION = 5  # the neighbour whose distance says how isolated a row is
DRAWS, CHANCE = 10, 2  # of random rows; standard deviations of these that are chance
TAIL = 0.02  # share of the pool's rows that count as isolated, or as crowded
CELLS = 64  # on which two trees are compared
RESOLUTIONS = (0.1, 1.0)  # of the communities on which a subset is judged, coarse and fine
COPY = 0.5  # of the distance to the last neighbour: the first one is a near-copy below it
AGAIN_ROWS, AGAIN_RESAMPLES = 2_500, 2  # of the tree that is grown again
LEAST = 32  # rows, below which samples tell nothing
# beyond these a finding is a warning, or bad
ISOLATED, COPIES, FLATNESS, AGREEMENT = (3.0, 5.0), (3.0, np.inf), (1.05, 1.15), (0.35, 0.6)
LARGEST, ALONE, USED_UP, BELIEFS, LEFT = (0.5, 0.8), (0.15, 0.25), (0.65, 0.9), (0.42, 0.6), (0.5, np.inf)
OVERLAP = (0.15, np.inf)
LITTLE_EVIDENCE = 0.5
HEARD = 0.3  # weight of isolation from which it can find what communities that run into each other cannot
AUTO = "Cluster again with --levels auto."
AS_WELL = (
    "This check sees no gain over random rows, which do as well where a pool is even already; labels of some rows "
    "(--labels) tell more."
)


@dataclass
class Finding:
    """One thing that was checked.

    Attributes:
        severity: "ok", "warn" or "bad".
        sentence: what was found, one plain sentence with its full stop.
        remedy: what to change, one sentence; where nothing is wrong empty, or what else to know.
        value: the number behind the sentence.
        estimates_evenness: it says, without labels, what labels would say better.
    """

    severity: Literal["ok", "warn", "bad"]
    sentence: str
    remedy: str
    value: float
    estimates_evenness: bool = False


def _finding(value: float, warn: float, bad: float, sentence: str, remedy: str) -> Finding:
    """The higher the value the worse."""
    severity: Literal["ok", "warn", "bad"] = "bad" if value > bad else "warn" if value > warn else "ok"
    return Finding(severity, sentence, "" if severity == "ok" else remedy, float(value))


def worst_first(findings: list[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: ("bad", "warn", "ok").index(finding.severity))


def by_communities(tree: ClusterTree) -> bool:
    return tree.settings.get("upper_levels") == "communities"


def _auto(tree: ClusterTree, otherwise: str) -> str:
    return otherwise if by_communities(tree) else AUTO


def rows_of_tree(tree: ClusterTree, embeddings: Any) -> Embeddings:
    """The rows of embeddings that are in a tree, in its order; nothing is copied.

    Raises:
        CurationError: the tree was made of others.
    """
    given = x = open_embeddings(embeddings)
    wanted, dim = tree.settings.get("embeddings_fingerprint"), tree.levels[0].centroids.shape[1]
    there = np.arange(x.n_rows) if x.row_ids is None else np.asarray(x.row_ids)
    mine = np.arange(tree.n_rows) if tree.row_ids is None else np.asarray(tree.row_ids)
    whole = x.fingerprint()
    if not np.array_equal(there, mine) and not (tree.row_ids is None and x.n_rows == tree.n_rows):
        left_out = np.flatnonzero(~np.isin(there, mine))
        if x.n_rows - len(left_out) != tree.n_rows:
            raise CurationError(f"the embeddings lack rows of the tree; give those that it was fitted on ({wanted})")
        x = KeptRows(x, left_out)
    # of kept rows without the bad ones among them the tree does not know which were which
    unknown = 0 < tree.settings.get("dropped_rows", 0) != given.n_rows - tree.n_rows
    same = wanted in (None, whole, x.fingerprint()) or unknown
    if wanted in (None, whole) or given.digest_of_files():
        same = same and is_made_of(tree.settings, given, DIGEST_BYTES)
    elif wanted == x.fingerprint():
        same = same and is_made_of(tree.settings, x, DIGEST_BYTES)
    if x.dim != dim or not same:
        raise CurationError(
            f"the tree was made of other embeddings (fingerprint {wanted}); give those it was fitted on"
        )
    return x


# --- what the tree alone says ---------------------------------------------------------------------------------------


def check_sizes(tree: ClusterTree) -> Finding:
    """Does one cluster of an upper level hold most rows?"""
    n, worst = tree.n_rows, (0.0, 1, 1)
    for level in range(1, tree.n_levels):
        counts = tree.row_counts(level)
        if len(counts) > 2:
            worst = max(worst, (float(counts.max() / n), level + 1, len(counts)))
    share, level, k = worst
    if k == 1:
        share = float(tree.row_counts(0).max() / n)
        return _finding(
            share,
            *LARGEST,
            f"The largest of the {len(tree.levels[0].centroids):,} clusters holds {share:.0%} of the rows.",
            "Take more clusters, or bring the rows to unit length with --metric cosine.",
        )
    sentence = f"The largest of the {k:,} clusters of level {level} holds {share:.0%} of the rows"
    if by_communities(tree):  # it holds what one concept deserves, which may be most of the pool
        return _finding(
            share, 0.95, 1.0, f"{sentence}, which are one concept to the neighbour graphs.", "Look at them in the map."
        )
    reason = ": the levels above the first set outliers apart, not concepts" if share > LARGEST[0] else ""
    return _finding(share, *LARGEST, f"{sentence}{reason}.", f"{AUTO[:-1]}, or with fewer levels and fewer resamples.")


def check_singletons(tree: ClusterTree, rows: Int[np.ndarray, "m"]) -> Finding:
    """What share of a subset do clusters of a single row take?"""
    alone = np.zeros(tree.n_rows, bool)
    shares = []
    for level in range(tree.n_levels):
        counts = tree.row_counts(level)
        shares.append(float((counts == 1).sum() / max(1, (counts > 0).sum())))
        alone |= (counts == 1)[tree.row_clusters(level)]
    taken = float(alone[rows].mean())
    upper = f" ({', '.join(f'{share:.0%}' for share in shares[1:])} higher up)" if len(shares) > 1 else ""
    return _finding(
        # there, level 1 is split to single rows where rows deserve it: `isolated` tells whether they are outliers
        taken if alone.mean() * 1.5 < taken and not by_communities(tree) else 0.0,
        *ALONE,
        f"Clusters of a single row, {shares[0]:.0%} of those of level 1{upper}, are {alone.mean():.0%} of the "
        f"pool and {taken:.0%} of a subset of {len(rows):,}.",
        f"Take fewer clusters at level 1, and leave out junk first (curate filter). {_auto(tree, '')}".strip(),
    )


def check_used_up(tree: ClusterTree, rows: Int[np.ndarray, "m"]) -> Finding:
    """How much of the subset are clusters of level 1 that are taken whole?"""
    labels, counts = np.asarray(tree.levels[0].assignment), tree.row_counts(0)
    taken = np.bincount(labels[np.unique(rows)], minlength=len(counts))
    used = (taken == counts) & (counts > 0)
    share = float(taken[used].sum() / max(1, taken.sum()))
    pool = float(taken.sum() / tree.n_rows)
    value = share if pool < 0.5 else 0.0
    return _finding(
        value,
        *USED_UP,
        f"{used.sum():,} of {len(counts):,} clusters of level 1 are used up by the subset and make {share:.0%} of it"
        + (": more balance among them is not to be had." if value > USED_UP[0] else "."),
        "Draw a smaller subset, or let rows repeat (--max-copies).",
    )


def check_beliefs(tree: ClusterTree) -> Finding | None:
    """Do the neighbour graphs behind a tree of communities agree?"""
    apart = tree.settings.get("belief_distance")
    if apart is None:
        return None
    return _finding(
        float(apart),
        *BELIEFS,
        f"The neighbour graphs would give {1 - float(apart):.0%} of the subset to the same rows: they "
        + ("do not agree on what the concepts are." if apart > BELIEFS[0] else "agree on what the concepts are."),
        "Look at the map and the galleries before you trust the shares; another embedding may tell more.",
    )


def check_overlap(tree: ClusterTree) -> Finding | None:
    """Are there concepts to see at all, in communities or, where these run into each other, by isolation?"""
    overlap, isolation = tree.settings.get("overlap"), tree.settings.get("isolation")
    if overlap is None or isolation is None:
        return None
    lost = overlap > OVERLAP[0] and isolation < HEARD
    told = f"Communities share {float(overlap):.0%} of the edges of the neighbour graphs"
    if lost:
        told += (
            ", and density differs too much over the pool to say what is rare: the subset may be no more even than "
            "random rows."
        )
    elif overlap > OVERLAP[0]:
        told += "; density says what is rare."
    else:
        told += ": they are apart."
    return _finding(
        float(overlap) if lost else 0.0,
        *OVERLAP,
        told,
        "Count concepts on a few hundred labelled rows (--labels), or take another embedding.",
    )


def check_evidence(tree: ClusterTree) -> Finding | None:
    """Do several beliefs say alike which concepts are rare, or has each of them its own noise?"""
    evidence = tree.settings.get("evidence")
    if evidence is None:
        return None
    told = f"Graphs, k-means levels and linkage have so much in common that {float(evidence):.0%} of their shares count"
    if evidence < LITTLE_EVIDENCE:
        told += ": the subset is little more even than random rows, which is right where the pool is even already"
    return Finding("ok", told + ".", "", float(evidence))


# --- what the rows say ----------------------------------------------------------------------------------------------


class _Sample:
    """Rows of the pool and of the subset, as the checks see them.

    Attributes:
        pool: (m,) rows, with their (m, e) ``points``;
        subset: (s,) rows, with their (s, e) ``subset_points``;
        random: (r, s) as many rows of the pool's sample at random, `DRAWS` times, by their places in it;
        called: what sentences call the subset.
    """

    def __init__(self, tree: ClusterTree, x: Embeddings, subset: Int[np.ndarray, "s"], seed: int, called: str):
        self.tree, self.x, self.called = tree, x, called
        self.rng = np.random.default_rng([seed, 11])
        n = tree.n_rows
        self.pool = self.rng.permutation(self.rng.choice(n, min(n, SAMPLE), replace=False))
        self.subset = np.sort(self.rng.choice(subset, min(len(subset), SAMPLE), replace=False))
        m, s = len(self.pool), len(self.subset)
        self.random = np.stack([self.rng.choice(m, min(m, s), replace=n > m) for _draw in range(DRAWS)])
        rows, place = np.unique(np.concatenate([self.pool, self.subset]), return_inverse=True)
        self.raw = _read(x, rows)
        self._place = place
        if not np.isfinite(self.raw).all():
            bad = int(rows[~np.isfinite(self.raw).all(axis=1)][0])
            raise CurationError(f"{x.locate(bad)} holds NaN or infinity; give the rows of the tree alone")
        points = self.raw
        if tree.settings.get("metric") == "cosine" or x.dim >= 16:
            points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
        points = principal_axes(points)
        self.points, self.subset_points = points[place[:m]], points[place[m:]]

    @property
    def pool_rows(self) -> Float[np.ndarray, "m d"]:
        """The pool's rows as they are stored."""
        return self.raw[self._place[: len(self.pool)]]

    @cached_property
    def neighbours(self) -> tuple[Float[np.ndarray, "m k"], Int[np.ndarray, "m k"]]:
        return nearest(self.points, min(NEIGHBOURS, len(self.points) - 1))

    def to_pool(
        self, rows: Int[np.ndarray, "s"], points: Float[np.ndarray, "s e"], k: int
    ) -> tuple[Float[np.ndarray, "s k"], Int[np.ndarray, "s k"]]:
        """Distances to the k nearest rows of the pool's sample, a row itself left out, and which they are."""
        import faiss

        index = faiss.IndexFlatL2(self.points.shape[1])
        index.add(self.points)
        squared, found = index.search(np.ascontiguousarray(points), k + 1)
        distances = np.where(self.pool[found] == rows[:, None], np.inf, np.sqrt(np.maximum(squared, 0)))
        order = np.argsort(distances, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(distances, order, 1), np.take_along_axis(found, order, 1)


def _read(x: Embeddings, rows: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m d"]:
    parts = [x.take(part).float().cpu().numpy() for part in np.array_split(rows, -(-len(rows) // READ))]
    return np.concatenate(parts)


def _dimension(sample: _Sample) -> float:
    distances, _found = sample.neighbours
    found = [two_nearest_dimension(distances[:, :2]), likely_dimension(distances)]
    known = [value for value in found if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def check_dimension(sample: _Sample) -> Finding | None:
    """How much do levels of k-means flatten? Density goes as p^(d / (d + 2)) with each (Zador, 1982)."""
    d = _dimension(sample)
    tree = sample.tree
    if not np.isfinite(d):
        return Finding(
            "warn",
            "Nearly all rows have an equal one, so their dimension cannot be told.",
            "Leave out duplicates first (curate dedup), or use an embedder that tells the rows apart.",
            0.0,
        )
    about = f"The rows have about {d:.0f} intrinsic dimensions of {sample.x.dim:,}"
    if by_communities(tree):
        return Finding("ok", f"{about}; shares from neighbour graphs do not depend on it.", "", d)
    left = (d / (d + 2)) ** tree.n_levels
    levels = f"{tree.n_levels} level{'s' * (tree.n_levels > 1)} of k-means"
    return _finding(
        left,
        *LEFT,
        f"{about}, where {levels} leave the density to the power of {left:.2f} (1: as it was, 0: flat).",
        AUTO,
    )


def check_isolation(sample: _Sample) -> Finding:
    """Are rows over-represented that lie much further out than their neighbours do (Breunig et al., 2000)?

    Rows of a rare concept have far neighbours too, but these have equally far ones.
    """
    k = min(ISOLATION, sample.neighbours[0].shape[1])
    own = sample.neighbours[0][:, k - 1]

    def outlying(rows: np.ndarray, points: np.ndarray) -> np.ndarray:
        distances, found = sample.to_pool(rows, points, k)
        return distances[:, -1] / np.maximum(own[found].mean(axis=1), 1e-12)

    pool = outlying(sample.pool, sample.points)
    limit = np.quantile(pool, 1 - TAIL)
    there = float((pool > limit).mean())
    taken = float((outlying(sample.subset, sample.subset_points) > limit).mean())
    return _finding(
        taken / there if there > 0 else 0.0,
        *ISOLATED,
        f"The most isolated {there:.1%} of the pool's rows make {taken:.1%} of the subset.",
        "Look at them in the gallery: junk is left out first (curate filter), what is rare may stay."
        if by_communities(sample.tree)
        else f"Leave out junk and outliers first (curate filter), or take fewer resamples. {AUTO}",
    )


def check_copies(sample: _Sample) -> Finding:
    """Are rows over-represented whose nearest neighbour is far nearer than the others, as copies are?"""

    def repeated(rows: np.ndarray, points: np.ndarray) -> float:
        distances, _found = sample.to_pool(rows, points, min(NEIGHBOURS, len(sample.points) - 2))
        return float((distances[:, 0] <= COPY * distances[:, -1]).mean())

    there, taken = repeated(sample.pool, sample.points), repeated(sample.subset, sample.subset_points)
    if sample.tree.settings.get("near_copies_out"):
        told = (
            f"Rows that are far nearer to one than to others are {there:.1%} of the pool and {taken:.1%} of the subset"
        )
        return Finding("ok", f"{told}: small concepts, since near-duplicates were left out before.", "", taken)
    return _finding(
        taken / there if taken > 0.02 and there > 0 else 0.0,
        *COPIES,
        f"Near-copies of other rows are {there:.1%} of the pool and {taken:.1%} of the subset.",
        "Leave them out before you cluster: curate dedup, or curate run without --no-prepare.",
    )


def check_flatness(sample: _Sample) -> Finding | None:
    """Is the subset more even than random rows over communities of a graph that the tree did not see?"""
    first = sample.neighbours[0][:, 0]
    apart = float(np.median(first[first > 0])) if (first > 0).any() else 0.0
    # a burst of near-copies is one place, and no community
    place, leaders = cover(sample.points, COPY * apart)
    k = min(GRAPH, len(leaders) - 1)
    if k < 1:
        return None
    _distances, near = nearest(np.ascontiguousarray(sample.points[leaders]), k)
    graph = shared_neighbour_graph(near)
    _distances, of_subset = sample.to_pool(sample.subset, sample.subset_points, 1)
    _distances, of_pool = sample.to_pool(sample.pool, sample.points, 1)
    logs, spreads, told = [], [], []
    for resolution in RESOLUTIONS:
        labels = communities(graph, resolution, 5)[place]
        k = int(labels.max()) + 1
        ours = float(effective_number(np.bincount(labels[of_subset[:, 0]], minlength=k)))
        drawn = [effective_number(np.bincount(labels[of_pool[draw, 0]], minlength=k)) for draw in sample.random]
        chance = np.log(np.array(drawn, float))
        logs.append(np.log(ours) - chance.mean())
        spreads.append(chance.std())
        told.append(f"{ours:.1f} equal ones of {k} (random rows {np.exp(chance.mean()):.1f})")
    mean = float(np.mean(logs))
    gain = float(np.exp(mean)) if abs(mean) > CHANCE * np.mean(spreads) else 1.0
    how = "less even than" if gain < 1 / FLATNESS[0] else "about as even as" if gain < FLATNESS[0] else "more even than"
    finding = _finding(
        1 / gain,
        *FLATNESS,
        f"Over communities of a neighbour graph that the tree did not see, coarse and fine, {sample.called} is as "
        f"diverse as {' and '.join(told)}: {how} random rows.",
        "Labels of some rows judge better than this estimate (--labels); without any look closely before you train on "
        f"this. {_auto(sample.tree, 'Try another embedding, or random rows.')}",
    )
    if finding.severity == "ok" and gain < FLATNESS[0]:
        finding.remedy = AS_WELL
    finding.estimates_evenness = True
    return finding


def _again(sample: _Sample, seed: int) -> ClusterTree:
    """A tree as the one that is checked, grown on the pool's sample with another seed."""
    from curation.trees.community_tree import CommunityTree
    from curation.trees.hierarchy import HierarchicalKMeans

    tree, points = sample.tree, sample.pool_rows[:AGAIN_ROWS]
    metric = tree.settings.get("metric", "l2")
    if by_communities(tree):
        return CommunityTree(metric=metric, seed=seed, progress=False).fit(points)
    n, share = len(points), len(points) / tree.n_rows
    levels: list[int] = []
    for level in tree.levels:
        # clusters of as many rows as there
        k = max(1, min(round(len(level.centroids) * share), n - 1))
        k = min(k, levels[-1] - 1) if levels else k
        if k >= 1:
            levels.append(k)
    resamples = [min(int(number), AGAIN_RESAMPLES) for number in np.atleast_1d(tree.settings.get("n_resamples", 0))]
    return HierarchicalKMeans(
        levels,
        n_resamples=(resamples + [0] * len(levels))[: len(levels)],
        metric=metric,
        max_iterations=20,
        seed=seed,
        progress=False,
    ).fit(points)


def check_agreement(sample: _Sample, seed: int) -> Finding | None:
    """How far do the shares of the subset move with another seed (and another sample of the rows)?"""
    from curation.kmeans import kmeans

    if len(sample.pool) < 64:
        return None
    rows = sample.pool[:AGAIN_ROWS]
    try:
        cells = kmeans(sample.points[: len(rows)], min(CELLS, len(rows) // 16), max_iterations=10, seed=1).labels
        other = _again(sample, seed + 1_000)
    except CurationError:  # too few distinct rows for as many clusters
        return None
    part = []
    for weights in (sample.tree.sampling_weights()[rows], other.sampling_weights()):
        part.append(np.bincount(cells, weights=weights / weights.sum()))
    moved = float(np.abs(part[0] - part[1]).sum() / 2)
    return _finding(
        moved,
        *AGREEMENT,
        f"Another seed (on {len(rows):,} rows) gives {moved:.0%} of the subset to other places.",
        _auto(sample.tree, "Take the mean of several seeds' sampling weights, or a pool of more rows."),
    )


def find_embeddings(tree: ClusterTree, folder: Path) -> Embeddings | None:
    """The embeddings of a tree in ``folder``, where they lie beside it as ``embeddings/``; else None."""
    beside = folder.resolve().parent / "embeddings"
    if not beside.exists():
        return None
    if (beside / "embeddings.json").exists() and not read_info(beside)["complete"]:
        return None  # embedded anew
    x = open_embeddings(beside)  # damaged ones are refused; others than those of the tree are not meant
    try:
        return rows_of_tree(tree, x)
    except CurationError:
        return None


def check_subset(tree: ClusterTree, subset: Subset, x: Any = None, seed: int = 0) -> list[Finding]:
    """`check_tree` of a subset by its pool rows; those that the tree does not know are left to others to refuse.

    Of a subset that was drawn from no tree, such as a baseline, only what its own rows say.
    """
    ids = subset.rows()
    rows = ids if tree.row_ids is None else np.searchsorted(np.asarray(tree.row_ids), ids)
    rows = rows[rows < tree.n_rows]
    of_tree = subset.metadata.get("tree_checksum") is not None
    return check_tree(tree, x, rows if len(rows) else None, seed, of_tree)


def check_tree(
    tree: ClusterTree,
    x: Any = None,
    subset_rows: Int[np.ndarray, "m"] | None = None,
    seed: int = 0,
    of_tree: bool = True,
) -> list[Finding]:
    """Whether a tree, and a subset drawn from it, can be trusted; no labels are needed.

    Args:
        tree: any tree.
        x: (n, d), the rows that it was made of, in its order (`rows_of_tree`); a sample of them is read. None: only
            what the tree itself tells is checked.
        subset_rows: rows of the tree in the subset, copies repeated; None: a balanced quarter is drawn.
        seed: of the samples.
        of_tree: the subset was drawn from the tree; else the checks of the tree itself are left out.

    Returns:
        What every check found, the worst first; of a tree at least one.

    Raises:
        CurationError: ``x`` has other rows than the tree, or rows that are not finite.
    """
    size = max(1, tree.n_rows // 4) if subset_rows is None else len(subset_rows)
    rows = tree.sample(size, seed=seed) if subset_rows is None else np.asarray(subset_rows, np.int64)
    checks: list[Callable[[], Finding | None]] = [
        lambda: check_sizes(tree),
        lambda: check_singletons(tree, rows),
        lambda: None if subset_rows is None else check_used_up(tree, rows),
        lambda: check_beliefs(tree),
        lambda: check_overlap(tree),
        lambda: check_evidence(tree),
    ]
    checks = checks if of_tree else []
    if x is not None:
        source = open_embeddings(x)
        if source.n_rows != tree.n_rows:
            raise CurationError(f"the tree has {tree.n_rows:,} rows but the embeddings {source.n_rows:,}; give its own")
        if tree.n_rows >= LEAST:
            called = "a balanced quarter of the rows" if subset_rows is None else "the subset"
            sample = _Sample(tree, source, rows, seed, called)
            checks += [lambda: check_dimension(sample)] * of_tree
            checks += [
                lambda: check_isolation(sample),
                lambda: check_copies(sample),
                lambda: check_flatness(sample),
            ]
            checks += [lambda: check_agreement(sample, seed)] * of_tree
    found = [finding for finding in (check() for check in checks) if finding is not None]
    if tree.n_rows < LEAST:
        few = f"{tree.n_rows} rows are too few to tell whether the tree is sound."
        found.append(Finding("warn", few, "Look at the rows themselves.", float(tree.n_rows)))
    return worst_first(found)
