"""Lloyd's algorithm over blocks of rows: the same loop for a tensor and for a file larger than memory."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from curation.bad_rows import check_rows
from curation.embeddings import Embeddings, open_embeddings
from curation.errors import CurationError
from curation.kmeans.activity import ActiveSearch
from curation.kmeans.assignment import CentroidSearch, assign_all, rows_per_read
from curation.kmeans.frame import Frame, sample_rows
from curation.kmeans.seeding import seed_centroids
from curation.kmeans.update import ClusterSums

METRICS = ("l2", "cosine")


@dataclass
class LloydState:
    """All that a killed run needs to go on: the rest follows from the data and the seed."""

    iteration: int
    centroids: Float[np.ndarray, "k d"]
    history: list[float]


@dataclass
class KMeansResult:
    """A fitted k-means.

    Attributes:
        centroids: (k, d) float32, in the units of the data (unit length with cosine).
        labels: (n,) int64 nearest centroid of every row; no cluster is empty.
        distances: (n,) float32 squared distance to it.
        inertia: sum of ``distances`` in float64.
        history: inertia before each update.
    """

    centroids: Float[np.ndarray, "k d"]
    labels: Int[np.ndarray, "n"]
    distances: Float[np.ndarray, "n"]
    inertia: float
    history: list[float] = field(default_factory=list)


def kmeans(
    x: Any,
    k: int,
    seed: int | np.random.SeedSequence = 0,
    seeding: str = "auto",
    max_iterations: int = 50,
    tolerance: float = 0.0,
    metric: str = "l2",
    initial: Any = None,
    device: str | torch.device = "cpu",
    precision: str = "auto",
    progress: bool | str = False,
) -> KMeansResult:
    """k-means with exact assignments; the same seed gives the same bytes.

    Args:
        x: (n, d), anything `open_embeddings` takes; never copied as a whole.
        k: number of clusters, 1 <= k <= n.
        seed: of every random choice.
        seeding: see `curation.kmeans.seeding.seed_centroids`.
        max_iterations: Lloyd iterations; fewer where the centroids stop moving.
        tolerance: stop when the inertia falls by less than this share in one iteration; 0 runs on.
        metric: "l2" or "cosine" (rows and centroids at unit length).
        initial: (k, d) starting centroids instead of seeding.
        device: "cpu", "cuda", ...: where the products run.
        precision: of the products, "auto", "bfloat16" or "float32"; it changes the speed alone.
        progress: show a bar, under this title if it is a string.

    Raises:
        CurationError: bad settings, NaN, infinite or (cosine) zero rows, fewer (distinct) rows than k.
    """
    source = open_embeddings(x)
    check_rows(source, metric == "cosine", rows_per_read(source.dim))
    centroids, history = fit_centroids(
        source,
        k,
        np.random.default_rng(seed),
        seeding=seeding,
        max_iterations=max_iterations,
        tolerance=tolerance,
        metric=metric,
        initial=initial,
        device=device,
        precision=precision,
        progress=progress,
    )
    return assign_filled(source, centroids, metric, device, precision, history)


def fit_centroids(
    x: Embeddings,
    k: int,
    rng: np.random.Generator,
    seeding: str = "auto",
    max_iterations: int = 50,
    tolerance: float = 0.0,
    metric: str = "l2",
    initial: Any = None,
    device: str | torch.device = "cpu",
    precision: str = "auto",
    progress: bool | str = False,
    resume: LloydState | None = None,
    on_iteration: Callable[[LloydState], None] | None = None,
) -> tuple[Float[np.ndarray, "k d"], list[float]]:
    """Seeding and Lloyd iterations without the final assignment; see `kmeans`.

    Args:
        resume: state to go on from, as ``on_iteration`` received it.
        on_iteration: called after every update.

    Returns:
        (k, d) float32 centroids in the units of the data, and the inertia before each update.
    """
    if metric not in METRICS:
        raise CurationError(f"metric {metric!r} is unknown; use one of {', '.join(METRICS)}")
    if k < 1:
        raise CurationError(f"k={k} makes no sense: at least one cluster is needed")
    if k > x.n_rows:
        raise CurationError(f"k={k} clusters need at least {k} rows but there are {x.n_rows}; lower k")
    frame = Frame.of(sample_rows(x), unit=metric == "cosine")
    title = progress if isinstance(progress, str) else f"k-means, k={k}"
    with tqdm(total=max_iterations, desc=title, unit="it", leave=False, disable=not progress) as bar:
        if resume is not None:
            centroids = torch.from_numpy(resume.centroids).to(device)
            history, done = list(resume.history), resume.iteration
        else:
            if initial is None:
                centroids = seed_centroids(x, k, frame, rng, seeding, device, precision, bar)
            else:
                centroids = frame.apply(torch.as_tensor(np.asarray(initial))).to(device)
                if centroids.shape != (k, x.dim):
                    raise CurationError(f"initial has shape {tuple(centroids.shape)}, not ({k}, {x.dim})")
            history, done = [], 0
        bar.update(done)
        active = ActiveSearch(x.n_rows)
        for iteration in range(done, max_iterations):
            moved, inertia = _iterate(x, centroids, frame, precision, active)
            history.append(inertia / frame.scale**2)
            still = torch.equal(moved, centroids)
            centroids = moved
            if on_iteration is not None:
                on_iteration(LloydState(iteration + 1, centroids.cpu().numpy(), list(history)))
            bar.update()
            bar.set_postfix_str(f"mean squared distance {history[-1] / x.n_rows:.4g}")
            slow = tolerance > 0 and len(history) > 1 and history[-2] - history[-1] < tolerance * history[-2]
            if still or slow:
                break
    return frame.invert(centroids).cpu().numpy(), history


def _iterate(
    x: Embeddings, centroids: Float[Tensor, "k d"], frame: Frame, precision: str, active: ActiveSearch
) -> tuple[Float[Tensor, "k d"], float]:
    """One assignment and update; empty clusters move to the rows farthest from their centroids."""
    search = active.begin(centroids, precision)
    sums = ClusterSums(search.k, search.dim, search.device)
    farthest = _Farthest(search.k)
    inertia = 0.0
    for start, block in x.blocks(rows_per_read(x.dim)):
        rows = frame.apply(block.to(search.device))
        labels, distances = active.nearest(start, rows)
        sums.add(rows, labels)
        inertia += float(distances.sum(dtype=torch.float64))
        farthest.add(start, distances)
    moved = sums.means()
    empty = (sums.counts == 0).nonzero().flatten()
    if frame.unit:
        length = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
        # opposite rows can cancel to a mean without direction: such a centroid stays
        moved = torch.where(length > 1e-12, moved / length.clamp(min=1e-12), centroids)
    if len(empty):
        moved[empty] = frame.apply(x.take(farthest.rows(len(empty), search.k)).to(search.device))
    return moved, inertia


class _Farthest:
    """The rows farthest from their centroids, kept while blocks go by."""

    def __init__(self, k: int):
        self.limit = k
        self.found = np.empty(0, np.int64)
        self.distances = np.empty(0, np.float32)

    def add(self, start: int, distances: Tensor) -> None:
        n = min(self.limit, len(distances))
        largest, index = torch.topk(distances, n, sorted=False)
        found = np.concatenate([self.found, index.cpu().numpy() + start])
        values = np.concatenate([self.distances, largest.cpu().numpy()])
        best = np.lexsort((found, -values))[: self.limit]
        self.found, self.distances = found[best], values[best]

    def rows(self, n: int, k: int) -> np.ndarray:
        """The n farthest rows, lowest row first among equals."""
        if self.distances[n - 1] <= 0:
            distinct = k - n + int((self.distances > 0).sum())
            raise CurationError(f"about {distinct} distinct rows for k={k} clusters; lower k or remove duplicates")
        return self.found[:n]


def assign_filled(
    x: Embeddings,
    centroids: Float[np.ndarray, "k d"],
    metric: str = "l2",
    device: str | torch.device = "cpu",
    precision: str = "auto",
    history: list[float] | None = None,
    progress: Any = None,
) -> KMeansResult:
    """Assign all rows; a centroid that no row is nearest to moves to the row farthest from its own.

    Raises:
        CurationError: fewer distinct rows than centroids.
    """
    k = len(centroids)
    centroids = np.array(centroids)
    while True:
        points = torch.from_numpy(centroids)
        frame = Frame.of(points, unit=metric == "cosine")
        search = CentroidSearch(frame.apply(points).to(device), precision)
        labels, distances = assign_all(x, search, frame, progress)
        empty = np.flatnonzero(np.bincount(labels, minlength=k) == 0)
        if not len(empty):
            return KMeansResult(centroids, labels, distances, float(distances.sum(dtype=np.float64)), history or [])
        farthest = _Farthest(len(empty))
        farthest.add(0, torch.from_numpy(distances))
        rows = x.take(farthest.rows(len(empty), k)).float()
        centroids[empty] = (torch.nn.functional.normalize(rows) if metric == "cosine" else rows).cpu().numpy()
