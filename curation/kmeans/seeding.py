"""Seeding: where Lloyd starts decides where it ends.

Greedy k-means++ (Arthur and Vassilvitskii, 2007) is the quality to reach but costs one pass over the data for each
centroid. On a uniform subsample of a few rows for each cluster it ends at the same inertia at a fraction of the cost:
that is "auto". For very many centroids, where that still grows with the square of k, it runs within groups of rows
(`curation.kmeans.grouped_seeding`), which all processes share.
k-means|| (Bahmani et al., 2012) samples thousands of candidates in each of a few passes, weighs every
candidate by the points nearest to it, and reduces them to k by weighted greedy k-means++.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from curation.group import Group
from curation.kmeans.assignment import CentroidSearch, rows_per_read
from curation.kmeans.frame import Frame
from curation.kmeans.greedy import greedy_kmeans_plusplus
from curation.kmeans.grouped_seeding import Sample, seed_in_groups
from curation.store.embeddings import Embeddings
from foundation.errors import CurationError

STRATEGIES = ("auto", "kmeans++", "kmeans||", "random")
ROUNDS = 4  # passes of k-means|| after the first, each with about k candidates
SUBSAMPLE = 16  # rows for each cluster in the subsample of "auto"
TRIAL_BUDGET = 2e11  # multiply-adds: beyond it fewer candidates are tried for each centroid, down to one
GROUPED_WORK = 2e11  # rows of the subsample x centroids x dimensions beyond which "auto" seeds within groups
GREEDY_BYTES = 2 << 30


def seed_centroids(
    x: Embeddings,
    k: int,
    frame: Frame,
    rng: np.random.Generator,
    strategy: str = "auto",
    device: str | torch.device = "cpu",
    precision: str = "auto",
    *,
    progress: Any = None,
    group: Group | None = None,
    folder: Path | None = None,
) -> Float[Tensor, "k d"]:
    """k starting centroids, float32 in ``frame``; the same generator state gives the same centroids.

    Several processes share the passes of "kmeans||" and, for very many centroids, "auto"; else greedy choices are made
    by the first one.

    Args:
        strategy: "auto" (greedy k-means++ on a uniform subsample), "kmeans++" (greedy over all rows, which must fit in
            memory), "kmeans||", or "random" (distinct rows).
        folder: where a long "auto" keeps its state, and goes on from it; all processes see it.

    Raises:
        CurationError: fewer (distinct) rows than k, or greedy k-means++ on an input too large for it.
    """
    if strategy not in STRATEGIES:
        raise CurationError(f"seeding {strategy!r} is unknown; use one of {', '.join(STRATEGIES)}")
    if k > x.n_rows:
        raise CurationError(f"k={k} clusters need at least {k} rows but there are {x.n_rows}; lower k")
    if k == x.n_rows:
        return frame.apply(x.block(0, k).to(device))
    if strategy == "random":
        rows = np.sort(rng.choice(x.n_rows, k, replace=False))
        return frame.apply(x.take(rows).to(device))
    if strategy == "kmeans++" and x.n_rows * x.dim * 4 > GREEDY_BYTES:
        raise CurationError(
            f"seeding kmeans++ would read {x.n_rows} rows {k} times; use seeding auto or kmeans|| for such an input"
        )
    group = group or Group()
    n_sample = min(x.n_rows, SUBSAMPLE * k)
    if strategy == "auto" and n_sample * k * x.dim > GROUPED_WORK:
        rows = np.arange(x.n_rows) if n_sample == x.n_rows else np.sort(rng.choice(x.n_rows, n_sample, replace=False))
        return seed_in_groups(
            Sample(x, rows, frame), k, rng, device, precision, progress=progress, group=group, folder=folder
        )
    if strategy == "kmeans||":
        candidates, weights = _oversample(x, k, frame, rng, device, precision, progress, group)
    elif not group.first:
        candidates, weights = torch.empty((0, x.dim)), np.empty(0)
    else:
        if strategy == "kmeans++" or x.n_rows <= SUBSAMPLE * k:
            sample = x.block(0, x.n_rows)
        else:
            sample = x.take(np.sort(rng.choice(x.n_rows, SUBSAMPLE * k, replace=False)))
        candidates = frame.apply(sample)
        weights = np.ones(len(candidates))
    found = torch.empty((k, x.dim))
    with group.all_or_none():
        if group.first:
            in_memory = candidates.cpu().numpy()
            n_trials = _n_trials(len(in_memory), k, x.dim, strategy)
            found = torch.from_numpy(in_memory[greedy_kmeans_plusplus(in_memory, k, weights, rng, n_trials)])
    return group.share_tensor(found).to(device)


def _n_trials(n: int, k: int, dim: int, strategy: str) -> int:
    """2 + ln k candidates for each centroid (Arthur and Vassilvitskii), fewer where that would take too long."""
    wanted = 2 + int(math.log(k))
    return wanted if strategy == "kmeans++" else max(1, min(wanted, int(TRIAL_BUDGET / (n * k * dim))))


def _oversample(
    x: Embeddings,
    k: int,
    frame: Frame,
    rng: np.random.Generator,
    device: str | torch.device,
    precision: str,
    progress: Any,
    group: Group,
) -> tuple[Float[Tensor, "c d"], Float[np.ndarray, "c"]]:
    """Candidates of k-means|| with the number of rows nearest to each; each process passes over its own rows.

    The first k are uniform: while few centres exist, D^2 hardly differs from row to row in many dimensions.
    """
    step = rows_per_read(x.dim)
    first, last = group.span(x.n_rows, step)
    closest = np.full(last - first, np.inf, np.float32)
    nearest = np.zeros(last - first, np.int64)
    root = int(rng.integers(1 << 62))
    rows = np.sort(rng.choice(x.n_rows, k, replace=False))
    found: list[Tensor] = []
    n_found = 0
    for round_ in range(ROUNDS + 1):
        fresh = frame.apply(x.take(rows).to(device))
        search = CentroidSearch(fresh, precision)
        for start, block in x.blocks(step, (first, last)):
            labels, distances = search.nearest(frame.apply(block.to(device)))
            here = slice(start - first, start - first + len(block))
            closer = distances.cpu().numpy() < closest[here]
            nearest[here][closer] = labels.cpu().numpy()[closer] + n_found
            closest[here][closer] = distances.cpu().numpy()[closer]
            if progress is not None:
                progress.set_postfix_str(f"seeding, pass {round_ + 1} of {ROUNDS + 1}")
        found.append(fresh)
        n_found += len(fresh)
        parts = [closest[i : i + step].sum(dtype=np.float64) for i in range(0, len(closest), step)]
        total = float(group.gather(np.array(parts, np.float64)).sum())
        if total <= 0 or round_ == ROUNDS:
            break
        drawn = [np.empty(0, np.int64)]
        for start in range(first, last, step):
            mine = closest[start - first : start - first + step].astype(np.float64)
            # random numbers of each block on its own: they do not depend on the process that has it
            uniforms = np.random.default_rng([root, round_, start]).random(len(mine))
            drawn.append(np.flatnonzero(uniforms * total < k * mine) + start)
        rows = group.gather(np.concatenate(drawn))
        if not len(rows):
            largest = int(closest.argmax()) if len(closest) else 0
            tops = group.gather(closest[largest : largest + 1])
            rows = group.gather(np.array([largest + first] if len(closest) else [], np.int64))[[int(tops.argmax())]]
    weights = group.total(np.bincount(nearest, minlength=n_found)).astype(np.float64)
    used = weights > 0
    if used.sum() < k:
        raise CurationError(
            f"only {int(used.sum())} distinct rows were found for k={k} clusters; lower k or remove duplicates"
        )
    return torch.cat(found)[torch.from_numpy(used).to(device)], weights[used]
