"""What hierarchical k-means is compared with: each baseline is one function that gives a subset of a given size."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from tqdm import tqdm

from curation.kmeans import KMeansResult, kmeans
from curation.kmeans.assignment import rows_per_read
from curation.kmeans.update import cluster_starts
from curation.pages.card import save_with_card
from curation.pools.labels import read_labels
from curation.pools.pool import pool_fingerprint, require_own_pool
from curation.store.bad_rows import check_rows
from curation.store.embeddings import Embeddings, embedder_of, open_embeddings, require_one_embedder
from curation.trees.sampling import balanced_targets, take_from_clusters
from curation.trees.subset import Subset, read_info
from foundation.errors import CurationError
from foundation.files import digest_json
from foundation.locks import locked_folder

KEEP = ("far", "near", "random")
METHODS = ("random", "oracle", "flat", "semdedup", "d4", "retrieval")
CLUSTERED = ("flat", "semdedup", "d4")
OF_SOME = {  # what not every method takes
    "clusters": CLUSTERED,
    "trusted": ("retrieval",),
    "pool": ("oracle",),
    "labels": ("oracle",),
    "dedup_share": ("d4",),
    "metric": ("flat",),
    "seed": ("random", "oracle", *CLUSTERED),
}


def _check_size(size: int, n_rows: int) -> None:
    if not 0 < size <= n_rows:
        raise CurationError(f"size {size} must lie between 1 and the {n_rows} rows of the pool")


def _subset(x: Embeddings | None, rows: np.ndarray, **metadata: Any) -> Subset:
    rows = np.sort(rows)
    if x is not None and x.row_ids is not None:
        rows = np.asarray(x.row_ids)[rows]
    return Subset.from_rows(rows, **metadata)


def random_subset(n_rows: int, size: int, seed: int = 0) -> Subset:
    """``size`` of ``n_rows`` rows, all equally likely."""
    _check_size(size, n_rows)
    rows = np.random.default_rng(seed).choice(n_rows, size, replace=False)
    return _subset(None, rows, method="random", target=size, seed=seed)


def oracle_subset(labels: Int[np.ndarray, "n"], size: int, seed: int = 0) -> Subset:
    """Balanced over the true labels: the upper bound, where there are labels."""
    _values, codes = np.unique(labels, return_inverse=True)
    _check_size(size, len(codes))
    rng = np.random.default_rng(seed)
    counts = np.bincount(codes)
    wanted = balanced_targets(np.zeros(len(counts), np.int64), counts, np.array([size]), rng)
    copies = take_from_clusters(codes, wanted, "random", rng)
    return _subset(None, np.flatnonzero(copies), method="oracle", target=size, seed=seed)


def flat_kmeans_subset(x: Any, k: int, size: int, seed: int = 0, metric: str = "l2", progress: bool = True) -> Subset:
    """The same number of rows from each of k clusters of one k-means, as far as their sizes allow."""
    source = open_embeddings(x)
    _check_size(size, source.n_rows)
    found = kmeans(source, k, seed=seed, metric=metric, progress="flat k-means" if progress else False)
    rng = np.random.default_rng([seed, 1])
    wanted = balanced_targets(np.zeros(k, np.int64), np.bincount(found.labels, minlength=k), np.array([size]), rng)
    copies = take_from_clusters(found.labels, wanted, "random", rng)
    return _subset(source, np.flatnonzero(copies), method="flat_kmeans", k=k, target=size, seed=seed)


def _similarity_to_earlier(rows: Float[torch.Tensor, "m d"], block: int = 2048) -> Float[np.ndarray, "m"]:
    """Largest cosine similarity of every row to a row before it; -1 for the first. Never an (m, m) matrix."""
    most = torch.full((len(rows),), -1.0)
    for start in range(0, len(rows), block):
        stop = min(start + block, len(rows))
        for first in range(0, stop, block):
            last = min(first + block, stop)
            similarity = rows[start:stop] @ rows[first:last].T
            later = torch.arange(first, last)[None] >= torch.arange(start, stop)[:, None]
            similarity.masked_fill_(later, -1.0)
            most[start:stop] = torch.maximum(most[start:stop], similarity.max(dim=1).values)
    return most.numpy()


def semdedup_scores(
    x: Any, k: int, seed: int = 0, keep: str = "far", progress: bool = True
) -> tuple[Float[np.ndarray, "n"], KMeansResult]:
    """How much each row repeats another of its cluster (SemDeDup; Abbas et al., 2023).

    Within each of k cosine clusters rows are ordered, those to be kept first ("far" from the centroid in the paper);
    the score of a row is its largest cosine similarity to a row before it. Dropping the rows above 1 - epsilon is
    SemDeDup.

    Returns:
        (n,) float32 scores from -1 to 1, and the k-means.
    """
    if keep not in KEEP:
        raise CurationError(f"keep {keep!r} is unknown; use one of {', '.join(KEEP)}")
    source = open_embeddings(x)
    found = kmeans(source, k, seed=seed, metric="cosine", progress="k-means" if progress else False)
    starts, order = cluster_starts(found.labels, k), np.argsort(found.labels, kind="stable")
    scores = np.empty(source.n_rows, np.float32)
    rng = np.random.default_rng([seed, 1])
    for cluster in tqdm(range(k), desc="similarity within clusters", unit="cluster", disable=not progress):
        rows = order[starts[cluster] : starts[cluster + 1]]
        key = {"far": -found.distances[rows], "near": found.distances[rows], "random": rng.random(len(rows))}[keep]
        rows = rows[np.argsort(key, kind="stable")]
        members = torch.nn.functional.normalize(source.take(rows).float().cpu(), dim=1)
        scores[rows] = _similarity_to_earlier(members)
    return scores, found


def semdedup_subset(
    x: Any,
    k: int,
    size: int | None = None,
    epsilon: float | None = None,
    seed: int = 0,
    keep: str = "far",
    progress: bool = True,
) -> Subset:
    """SemDeDup: without the rows that repeat another of their cluster.

    Args:
        size: how many rows to keep, the least repeated ones; or
        epsilon: drop the rows whose similarity to a kept candidate exceeds 1 - epsilon.
    """
    if (size is None) == (epsilon is None):
        raise CurationError("semdedup takes either size or epsilon")
    source = open_embeddings(x)
    if size is not None:
        _check_size(size, source.n_rows)
    scores, _found = semdedup_scores(source, k, seed, keep, progress)
    if epsilon is not None:
        rows = np.flatnonzero(scores <= 1 - epsilon)
        return _subset(source, rows, method="semdedup", k=k, epsilon=epsilon, keep=keep, seed=seed)
    rows = np.argsort(scores, kind="stable")[:size]
    return _subset(source, rows, method="semdedup", k=k, target=size, keep=keep, seed=seed)


def d4_subset(x: Any, k: int, size: int, dedup_share: float = 0.75, seed: int = 0, progress: bool = True) -> Subset:
    """D4 (Tirumala et al., 2023): SemDeDup, cluster again, drop the most prototypical rows.

    Args:
        dedup_share: share of the rows that SemDeDup keeps (R_dedup of the paper); the second step keeps ``size``.
    """
    source = open_embeddings(x)
    _check_size(size, source.n_rows)
    if not 0 < dedup_share <= 1:
        raise CurationError(f"dedup_share {dedup_share} is the share of the rows to keep, above 0 and at most 1")
    left = max(size, round(dedup_share * source.n_rows))
    scores, _found = semdedup_scores(source, k, seed, progress=progress)
    survivors = np.sort(np.argsort(scores, kind="stable")[:left])
    members = open_embeddings(source.take(survivors))
    again = kmeans(
        members, min(k, left), seed=np.random.SeedSequence([seed, 2]), metric="cosine", progress=progress and "k-means"
    )
    rows = survivors[np.argsort(-again.distances, kind="stable")[:size]]
    return _subset(source, rows, method="d4", k=k, target=size, dedup_share=dedup_share, seed=seed)


def retrieval_subset(x: Any, trusted: Any, size: int, n_neighbours: int = 4, progress: bool = True) -> Subset:
    """Nearest neighbours of a small trusted set by cosine, as LVD-142M was made (Oquab et al., 2023).

    Round after round every trusted row takes its next nearest pool row that is not taken yet, ``n_neighbours`` at a
    time, until ``size`` rows are taken.

    Raises:
        CurationError: other dimensions, or a size beyond the pool.
    """
    import faiss

    source, reference = open_embeddings(x), open_embeddings(trusted)
    _check_size(size, source.n_rows)
    if source.dim != reference.dim:
        raise CurationError(f"the pool has {source.dim} dimensions but the trusted set {reference.dim}")
    require_one_embedder(embedder_of(source.metadata), embedder_of(reference.metadata), "the pool and the trusted set")
    for rows in (source, reference):
        check_rows(rows, True, rows_per_read(rows.dim), remedy="leave them out")
    index = faiss.IndexScalarQuantizer(source.dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    for _start, block in source.blocks(16_384):
        index.add(torch.nn.functional.normalize(block.float().cpu(), dim=1).numpy())
    queries = torch.nn.functional.normalize(reference.block(0, reference.n_rows).float().cpu(), dim=1).numpy()
    taken: dict[int, None] = {}
    depth = min(source.n_rows, max(n_neighbours, -(-size // len(queries))))
    with tqdm(total=size, desc="retrieval", unit="row", disable=not progress) as bar:
        while len(taken) < size:
            _similarity, found = index.search(queries, depth)
            taken = {}
            for rank in range(depth):
                for row in found[:, rank]:
                    if len(taken) < size:
                        taken[int(row)] = None
            bar.update(len(taken) - bar.n)
            if depth == source.n_rows:
                break
            depth = min(source.n_rows, depth * 2)
    return _subset(source, np.fromiter(taken, np.int64), method="retrieval", target=size, n_trusted=reference.n_rows)


def clusters_of(method: str, n_rows: int, clusters: int = 0) -> int:
    """k of a baseline that clusters: as asked, or a cluster for every 50 rows and at most 50,000; 0: it clusters not.

    Raises:
        CurationError: fewer than 1, or more than rows.
    """
    if method not in CLUSTERED:
        return 0
    k = clusters or min(50_000, max(1, n_rows // 50))
    if not 0 < k <= n_rows:
        raise CurationError(f"{k} clusters of {n_rows} rows cannot be; give 1 to {n_rows}")
    return k


def plan_of(method: str, x: Embeddings, size: int, k: int) -> str:
    """What `draw` costs, for people.

    Raises:
        CurationError: a size beyond the pool.
    """
    from curation.plan import calibrate, plan

    _check_size(size, x.n_rows)
    if not k:
        return f"{size:,} of {x.n_rows:,} rows by {method}; no clustering, seconds to minutes"
    return plan(x.n_rows, x.dim, [k], hardware=calibrate(), dtype=x.dtype).table()


def draw(
    method: str,
    x: Embeddings,
    size: int,
    k: int = 0,
    *,
    pool: Any = None,
    labels: str = "label",
    trusted: Any = None,
    dedup_share: float = 0.75,
    metric: str = "cosine",
    seed: int = 0,
) -> Subset:
    """A subset of pool rows by one of `METHODS`.

    Raises:
        CurationError: an unknown method, one whose labels or trusted set is not given, or a pool that is not that of
            the embeddings.
    """
    if method not in METHODS:
        raise CurationError(f"method {method!r} is unknown; use one of {', '.join(METHODS)}")
    if method == "random":
        return _of_pool(random_subset(x.n_rows, size, seed), x)
    if method == "oracle":
        if pool is None:
            raise CurationError("oracle needs the true labels; give --pool, and --labels for their column")
        require_own_pool(pool, x.n_rows, x.row_ids, x.metadata.get("pool_fingerprint"), "the embeddings")
        ids = np.arange(x.n_rows) if x.row_ids is None else np.asarray(x.row_ids)
        codes = read_labels(labels, pool).take(ids).codes
        known = np.flatnonzero(codes >= 0)
        subset = oracle_subset(codes[known], size, seed)
        return _of_pool(Subset.from_rows(known[subset.ids], **subset.metadata), x)
    if method == "retrieval":
        if trusted is None:
            raise CurationError("retrieval needs the embeddings of a trusted set; give --trusted")
        return retrieval_subset(x, trusted, size)
    if method == "flat":
        return flat_kmeans_subset(x, k, size, seed, metric)
    if method == "semdedup":
        return semdedup_subset(x, k, size, seed=seed)
    return d4_subset(x, k, size, dedup_share, seed)


def baseline_folder(
    folder: Path,
    method: str,
    x: Embeddings,
    size: int,
    k: int,
    *,
    pool: Any = None,
    labels: str = "label",
    trusted: Any = None,
    dedup_share: float = 0.75,
    metric: str = "cosine",
    seed: int = 0,
    overwrite: bool = False,
    commands: Sequence[str] = (),
) -> tuple[Subset, bool]:
    """The subset in ``folder``: loaded where `draw` made it with these settings of these inputs, else drawn and saved.

    Raises:
        CurationError: a finished subset of others is there and is not to be overwritten, or see `draw`.
    """
    inputs: dict[str, Any] = {"method": method, "size": size, "k": k, "seed": seed}
    inputs["embeddings"] = [x.fingerprint(), None if method == "random" else x.digest()]
    if method == "oracle":
        inputs |= {"labels": labels, "pool": None if pool is None else pool_fingerprint(pool)}
    if method == "retrieval" and trusted is not None:
        reference = trusted = open_embeddings(trusted)
        inputs["trusted"] = [reference.fingerprint(), reference.digest()]
    of_method: dict[str, dict[str, Any]] = {"d4": {"dedup_share": dedup_share}, "flat": {"metric": metric}}
    inputs |= of_method.get(method, {})
    key = digest_json(inputs)
    if (folder / "subset.json").exists() and not overwrite:
        if read_info(folder).get("inputs") != key:
            raise CurationError(
                f"{folder} holds a finished subset of other settings or inputs; choose another -o, or give --overwrite"
            )
        return Subset.load(folder), True
    with locked_folder(folder):
        subset = draw(
            method,
            x,
            size,
            k,
            pool=pool,
            labels=labels,
            trusted=trusted,
            dedup_share=dedup_share,
            metric=metric,
            seed=seed,
        )
        subset.metadata |= {"commands": list(commands), "inputs": key}
        drawn_from = inputs.get("pool", x.metadata.get("pool_fingerprint"))
        subset.metadata |= {} if drawn_from is None else {"pool_fingerprint": drawn_from}
        save_with_card(subset, folder)
    return subset, False


def _of_pool(subset: Subset, x: Embeddings) -> Subset:
    """Rows of the embeddings as rows of the pool."""
    if x.row_ids is None:
        return subset
    return Subset(np.asarray(x.row_ids)[subset.ids], subset.copies, subset.clusters, subset.metadata)
