"""Lloyd's algorithm over blocks of rows: the same loop for a tensor and for a file larger than memory."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from curation.group import Group
from curation.kmeans.activity import ActiveSearch
from curation.kmeans.assignment import CentroidSearch, assign_all, rows_per_read
from curation.kmeans.frame import Frame, sample_rows
from curation.kmeans.seeding import seed_centroids
from curation.kmeans.settings import KMeansSettings
from curation.kmeans.update import ClusterSums, KeptParts
from curation.store.bad_rows import check_rows
from curation.store.embeddings import Embeddings, open_embeddings
from foundation.errors import CurationError

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
    *,
    seeding: str = "auto",
    max_iterations: int = 50,
    tolerance: float = 0.0,
    metric: str = "l2",
    initial: Any = None,
    device: str | torch.device = "cpu",
    precision: str = "auto",
    progress: bool | str = False,
    group: Group | None = None,
) -> KMeansResult:
    """k-means with exact assignments; the same seed gives the same bytes, for any number of processes.

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
        precision: of the products, "auto", "bfloat16", "int16" or "float32"; it changes the speed alone.
        progress: show a bar, under this title if it is a string.
        group: the processes that share the work, of which each gets the whole result; None: this one alone.

    Raises:
        CurationError: bad settings, NaN, infinite or (cosine) zero rows, fewer (distinct) rows than k.
    """
    source = open_embeddings(x)
    check_rows(source, metric == "cosine", rows_per_read(source.dim), group)
    settings = KMeansSettings(seeding, max_iterations, tolerance, metric, device, precision)
    rng = np.random.default_rng(seed)
    centroids, history = fit_centroids(source, k, rng, settings, initial=initial, progress=progress, group=group)
    return assign_filled(source, centroids, settings, history, group)


def fit_centroids(
    x: Embeddings,
    k: int,
    rng: np.random.Generator,
    settings: KMeansSettings,
    *,
    initial: Any = None,
    progress: bool | str = False,
    resume: LloydState | None = None,
    on_iteration: Callable[[LloydState], None] | None = None,
    group: Group | None = None,
    folder: Path | None = None,
) -> tuple[Float[np.ndarray, "k d"], list[float]]:
    """Seeding and Lloyd iterations without the final assignment; see `kmeans`.

    Args:
        resume: state to go on from, as ``on_iteration`` received it.
        on_iteration: called after every update.
        group: the processes that share the rows; None: this one alone.
        folder: where a long seeding keeps its state, and goes on from it.

    Returns:
        (k, d) float32 centroids in the units of the data, and the inertia before each update.
    """
    if settings.metric not in METRICS:
        raise CurationError(f"metric {settings.metric!r} is unknown; use one of {', '.join(METRICS)}")
    if k < 1:
        raise CurationError(f"k={k} makes no sense: at least one cluster is needed")
    if k > x.n_rows:
        raise CurationError(f"k={k} clusters need at least {k} rows but there are {x.n_rows}; lower k")
    group = group or Group()
    max_iterations, device = settings.max_iterations, settings.device
    frame = Frame.of(sample_rows(x), unit=settings.metric == "cosine")
    title = progress if isinstance(progress, str) else f"k-means, k={k}"
    with tqdm(total=max_iterations, desc=title, unit="it", leave=False, disable=not (progress and group.first)) as bar:
        if resume is not None:
            centroids = torch.from_numpy(np.array(resume.centroids)).to(device)
            history, done = list(resume.history), resume.iteration
        else:
            if initial is None:
                how = (settings.seeding, device, settings.precision)
                centroids = seed_centroids(x, k, frame, rng, *how, progress=bar, group=group, folder=folder)
            else:
                centroids = frame.apply(torch.as_tensor(np.asarray(initial))).to(device)
                if centroids.shape != (k, x.dim):
                    raise CurationError(f"initial has shape {tuple(centroids.shape)}, not ({k}, {x.dim})")
            history, done = [], 0
        bar.update(done)
        span = group.span(x.n_rows, rows_per_read(x.dim))
        active = ActiveSearch(span[1] - span[0])
        on_cpu = centroids.device.type == "cpu"
        kept = KeptParts(span[1] - span[0], rows_per_read(x.dim), k, x.dim) if on_cpu else None
        for iteration in range(done, max_iterations):
            moved, inertia = _iterate(x, centroids, frame, settings.precision, active, kept, group)
            history.append(inertia / frame.scale**2)
            still = torch.equal(moved, centroids)
            centroids = moved
            if on_iteration is not None:
                on_iteration(LloydState(iteration + 1, centroids.cpu().numpy(), list(history)))
            bar.update()
            bar.set_postfix_str(f"mean squared distance {history[-1] / x.n_rows:.4g}")
            least = settings.tolerance
            slow = least > 0 and len(history) > 1 and history[-2] - history[-1] < least * history[-2]
            if still or slow:
                break
    return frame.invert(centroids).cpu().numpy(), history


def _iterate(
    x: Embeddings,
    centroids: Float[Tensor, "k d"],
    frame: Frame,
    precision: str,
    active: ActiveSearch,
    kept: KeptParts | None,
    group: Group,
) -> tuple[Float[Tensor, "k d"], float]:
    """One assignment and update; empty clusters move to the rows farthest from their centroids."""
    search = active.begin(centroids, precision)
    sums = ClusterSums(search.k, search.dim, search.device, kept)
    found = []  # distances, 4 bytes a row, for where a cluster is empty
    first, last = group.span(x.n_rows, rows_per_read(x.dim))
    for start, block in x.blocks(rows_per_read(x.dim), (first, last)):
        rows = frame.apply(block.to(search.device))
        labels, distances = active.nearest(start - first, rows)
        sums.add(rows, labels, start=start - first)
        found.append((start, distances))
    inertias = [float(distances.sum(dtype=torch.float64)) for _, distances in found]
    inertia = float(group.gather(np.array(inertias, np.float64)).sum())
    moved, counts = sums.means(group)
    empty = (counts == 0).nonzero().flatten()
    if frame.unit:
        length = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
        # opposite rows can cancel to a mean without direction: such a centroid stays
        moved = torch.where(length > 1e-12, moved / length.clamp(min=1e-12), centroids)
    if len(empty):
        farthest = _Farthest(search.k)
        for start, distances in found:
            farthest.add(start, distances)
        moved[empty] = frame.apply(x.take(farthest.rows(len(empty), search.k, group)).to(search.device))
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

    def rows(self, n: int, k: int, group: Group) -> np.ndarray:
        """The n farthest rows of all processes, lowest row first among equals."""
        self.found, self.distances = group.gather(self.found[:n]), group.gather(self.distances[:n])
        best = np.lexsort((self.found, -self.distances))
        self.found, self.distances = self.found[best], self.distances[best]
        if self.distances[n - 1] <= 0:
            distinct = k - n + int((self.distances > 0).sum())
            raise CurationError(f"about {distinct} distinct rows for k={k} clusters; lower k or remove duplicates")
        return self.found[:n]


def assign_filled(
    x: Embeddings,
    centroids: Float[np.ndarray, "k d"],
    settings: KMeansSettings,
    history: list[float] | None = None,
    group: Group | None = None,
) -> KMeansResult:
    """Assign all rows; a centroid that no row is nearest to moves to the row farthest from its own.

    With several processes, labels and distances are put together by `Group.assemble`.

    Raises:
        CurationError: fewer distinct rows than centroids.
    """
    k, group = len(centroids), group or Group()
    centroids = np.array(centroids)
    span = group.span(x.n_rows, rows_per_read(x.dim))
    while True:
        points = torch.from_numpy(centroids)
        frame = Frame.of(points, unit=settings.metric == "cosine")
        search = CentroidSearch(frame.apply(points).to(settings.device), settings.precision)
        labels, distances = assign_all(x, search, frame, span=span)
        empty = np.flatnonzero(group.total(np.bincount(labels, minlength=k)) == 0)
        if not len(empty):
            inertia = inertia_of(distances, x.dim, group)
            labels, distances = group.assemble("labels", labels), group.assemble("distances", distances)
            return KMeansResult(centroids, labels, distances, inertia, history or [])
        farthest = _Farthest(len(empty))
        farthest.add(span[0], torch.from_numpy(distances))
        rows = x.take(farthest.rows(len(empty), k, group)).float()
        moved = torch.nn.functional.normalize(rows) if settings.metric == "cosine" else rows
        centroids[empty] = moved.cpu().numpy()


def inertia_of(distances: Float[np.ndarray, "m"], dim: int, group: Group) -> float:
    """Sum over the rows of all processes; block by block, so that it does not show how many there are."""
    block = rows_per_read(dim)
    parts = [distances[start : start + block].sum(dtype=np.float64) for start in range(0, len(distances), block)]
    return float(group.gather(np.array(parts, np.float64)).sum())
