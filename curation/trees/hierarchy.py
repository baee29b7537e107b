"""Hierarchical k-means with resampling (paper, algorithm 1): the clusters of each level are the points of the next."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curation.group import Group, LostProcess
from curation.kmeans.assignment import rows_per_read
from curation.kmeans.lloyd import METRICS, LloydState, assign_filled, fit_centroids, inertia_of
from curation.kmeans.seeding import STRATEGIES as SEEDINGS
from curation.kmeans.settings import KMeansSettings
from curation.kmeans.two_step import Centroids, split_clusters
from curation.store.bad_rows import KeptRows, read_all_rows, refuse_rows
from curation.store.embeddings import Embeddings, embedder_of, open_embeddings
from curation.store.rows import SelectedRows
from curation.store.shards import ArrayShard, TensorShard
from curation.trees.checkpoint import FitCheckpoint
from curation.trees.sampling import members_to_resample
from curation.trees.tree import ClusterTree, Level
from foundation.errors import CurationError, is_final
from foundation.numbers import read_number
from foundation.settings import LARGEST_INT, LARGEST_SEED, Range, require_number

RESAMPLE_STRATEGIES = ("closest", "random")
MOST_RESAMPLES = 10_000


@dataclass
class LevelFit:
    """A level after its initial k-means and the resampled ones so far.

    Attributes:
        centroids: of the last k-means, every one with a point.
        labels, distances: (n,) nearest centroid of every point of the level, and squared distance to it.
        inertias: sum of the distances after each k-means.
    """

    centroids: Centroids
    labels: np.ndarray
    distances: np.ndarray
    inertias: list[float]


@dataclass(frozen=True)
class LevelPlan:
    """What one level does.

    Attributes:
        k: clusters of the k-means.
        n_splits: each of them is split in this many (two-step level); 1: no split.
        n_resamples: resampled k-means runs after the initial one (m of the paper).
        sample_size: members of each cluster in a resampled set (r_t); 0: half the mean cluster size.
    """

    k: int
    n_splits: int
    n_resamples: int
    sample_size: int

    @property
    def n_clusters(self) -> int:
        return self.k * self.n_splits


def parse_level(level: int | str | Sequence[int]) -> tuple[int, int]:
    """(k, splits) of "10000", 10000, "100000x100" or (100000, 100).

    Raises:
        CurationError: not such a level.
    """
    try:
        parts: list[Any] = level.split("x") if isinstance(level, str) else np.atleast_1d(level).tolist()
        numbers = [read_number(part, int) for part in parts]
        if any(number != int(number) for number in numbers):
            raise ValueError
        numbers = [int(number) for number in numbers]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers) < 1 or math.prod(numbers) > LARGEST_INT:
        raise CurationError(f"level {level!r} is not a number of clusters such as 10000, or 100000x100 for a split one")
    return numbers[0], numbers[1] if len(numbers) == 2 else 1


def _per_level(value: Any, n_levels: int, name: str, most: int = LARGEST_INT) -> list[int]:
    values: list[Any] = [value] * n_levels if np.isscalar(value) or value is None else list(value)
    if len(values) != n_levels:
        raise CurationError(f"{name} has {len(values)} values for {n_levels} levels; give one, or one for each level")
    numbers = [int(item or 0) for item in values]
    for number in numbers:
        require_number(number, Range(ge=0, le=most), name)
    return numbers


class HierarchicalKMeans:
    """Hierarchical k-means with resampling.

    Args:
        levels: clusters of each level, level 1 (the finest) first; "100000x100" or (100000, 100) makes a two-step
            level: k-means with 100,000 clusters, each split in 100.
        n_resamples: resampled k-means runs after the initial one of each level (m of the paper: 10); one number, or
            one for each level.
        sample_sizes: members of each cluster in a resampled set (r_t of the paper); one number, or one for each
            level; None or 0: half the mean cluster size.
        resample_strategy: "closest" to the centroid (the paper) or "random" members.
        seeding: "auto", "kmeans++", "kmeans||" or "random"; see `curation.kmeans.seeding.seed_centroids`.
        max_iterations: Lloyd iterations of each k-means run.
        tolerance: relative fall of the inertia under which a run stops; 0: only when nothing moves.
        metric: "l2" or "cosine".
        seed: of all random choices: the same seed gives the same tree.
        device: "cpu", "cuda", ... where products run.
        precision: of products, "auto", "bfloat16", "int16" or "float32"; it changes the speed alone.
        work_dir: checkpoints go here, and a killed fit with the same data and settings goes on from them to the same
            tree. Removed when the tree is saved by `fit(..., save_to=...)`.
        progress: show progress bars.
        fit_rows: fit level 1 on this many rows, drawn uniformly, and assign all of them afterwards; 0: fit on all. The
            resampled sets are drawn from all rows either way.
        bad_rows: "error", or "drop": rows that are NaN or infinite (or zero, with cosine) are left out of the tree and
            counted in its settings; `ClusterTree.row_ids` says which rows are in.

    Raises:
        CurationError: a setting makes no sense.
    """

    def __init__(
        self,
        levels: Sequence[int | str | Sequence[int]],
        n_resamples: int | Sequence[int] = 0,
        *,
        sample_sizes: int | Sequence[int] | None = None,
        resample_strategy: str = "closest",
        seeding: str = "auto",
        max_iterations: int = 50,
        tolerance: float = 0.0,
        metric: str = "l2",
        seed: int = 0,
        device: str | torch.device = "cpu",
        precision: str = "auto",
        work_dir: str | Path | None = None,
        progress: bool = True,
        checkpoint_seconds: float = 20.0,
        bad_rows: str = "error",
        fit_rows: int = 0,
    ):
        for name, value, allowed in (
            ("resample_strategy", resample_strategy, RESAMPLE_STRATEGIES),
            ("seeding", seeding, SEEDINGS),
            ("metric", metric, METRICS),
            ("precision", precision, ("auto", "bfloat16", "int16", "float32")),
            ("bad_rows", bad_rows, ("error", "drop")),
        ):
            if value not in allowed:
                raise CurationError(f"{name} {value!r} is unknown; use one of {', '.join(allowed)}")
        if not levels:
            raise CurationError("levels is empty; give the number of clusters of at least one level")
        if fit_rows < 0:
            raise CurationError(f"fit_rows={fit_rows} must not be negative; 0 fits on all rows")
        if max_iterations < 1:
            raise CurationError(f"max_iterations={max_iterations} must be at least 1")
        if not 0 <= tolerance < 1:  # NaN neither
            raise CurationError(f"tolerance={tolerance} is a share of the inertia, from 0 to below 1")
        require_number(seed, Range(ge=0, le=LARGEST_SEED), "seed")
        parsed = [parse_level(level) for level in levels]
        resamples = _per_level(n_resamples, len(parsed), "n_resamples", MOST_RESAMPLES)
        members = _per_level(sample_sizes, len(parsed), "sample_sizes")
        self.plans = [LevelPlan(*spec, m, r) for spec, m, r in zip(parsed, resamples, members, strict=True)]
        for below, above in zip(self.plans, self.plans[1:], strict=False):
            if above.n_clusters >= below.n_clusters:
                raise CurationError(
                    f"levels must shrink upwards, but {above.n_clusters} clusters follow {below.n_clusters}; "
                    "list the finest level first"
                )
        self.kmeans = KMeansSettings(seeding, max_iterations, tolerance, metric, device, precision)
        self.resample_strategy, self.seed, self.progress = resample_strategy, seed, progress
        self.work_dir = None if work_dir is None else Path(work_dir)
        self.checkpoint_seconds = checkpoint_seconds
        self.bad_rows, self.fit_rows = bad_rows, fit_rows
        if 0 < fit_rows < self.plans[0].k:
            raise CurationError(
                f"fit_rows={fit_rows} is too few for {self.plans[0].k} clusters; 16 for each are enough"
            )
        self.group = Group()
        self.restart = False  # throw the checkpoint of another fit in work_dir away, in place of refusing it

    @property
    def device(self) -> str | torch.device:
        """Where products run; a process of several is given its own."""
        return self.kmeans.device

    @device.setter
    def device(self, device: str | torch.device) -> None:
        self.kmeans = replace(self.kmeans, device=device)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the tree, as JSON."""
        settings = {
            "levels": [f"{plan.k}x{plan.n_splits}" if plan.n_splits > 1 else plan.k for plan in self.plans],
            "n_resamples": [plan.n_resamples for plan in self.plans],
            "sample_sizes": [plan.sample_size for plan in self.plans],
            "resample_strategy": self.resample_strategy,
            "seeding": self.kmeans.seeding,
            "max_iterations": self.kmeans.max_iterations,
            "tolerance": self.kmeans.tolerance,
            "metric": self.kmeans.metric,
            "seed": self.seed,
            "bad_rows": self.bad_rows,
        }
        return {**settings, "fit_rows": self.fit_rows} if self.fit_rows else settings

    def fit(self, x: Any, save_to: str | Path | None = None, group: Group | None = None) -> ClusterTree:
        """Build the tree, the same for any number of processes.

        Args:
            x: (n, d), anything `open_embeddings` takes; read in blocks, never copied as a whole.
            save_to: folder for the tree; the checkpoint in ``work_dir`` is removed once it is there.
            group: the processes that share the work (`curation.group.joined`); all of them call this, with ``work_dir``
                and ``save_to`` on a file system that they share. None: this one alone.

        Raises:
            CurationError: fewer rows than clusters, NaN, infinite or (cosine) zero rows unless they are dropped, a
                checkpoint of another fit.
        """
        source = open_embeddings(x)
        self.group = group = group or Group()
        if group.size > 1 and (self.work_dir is None or save_to is None):
            raise CurationError("a fit by several processes needs work_dir and save_to, on a file system they share")
        fingerprint = source.fingerprint()
        group.agree(fingerprint, "fingerprint of the embeddings")
        group.agree(json.dumps(self.settings, default=str), "list of settings")
        dropped = 0
        bad, digest = None, None
        if self.bad_rows == "drop":
            bad, digest = read_all_rows(source, self.kmeans.metric == "cosine", group)
            dropped = len(bad)
            source = KeptRows(source, bad) if dropped else source
        smallest = self.plans[0].n_clusters
        if smallest > source.n_rows:
            raise CurationError(f"level 1 wants {smallest} clusters of {source.n_rows} rows; lower the levels")
        if smallest == source.n_rows and len(self.plans) > 1:
            raise CurationError(f"level 1 has as many clusters as there are rows ({smallest}), so it groups nothing")
        if bad is None:
            bad, digest = read_all_rows(source, self.kmeans.metric == "cosine", group)
            refuse_rows(source, bad)
        settings = {**self.settings, "rows": source.n_rows, "dim": source.dim}
        settings |= {"embeddings_fingerprint": fingerprint, "dropped_rows": dropped}
        settings |= {"embeddings_digest": digest} if digest is not None else {}
        checkpoint = FitCheckpoint(self.work_dir, settings, self.checkpoint_seconds, group, self.restart)
        levels: list[Level] = []
        points = source
        for number in range(len(self.plans)):
            try:
                levels.append(self._fit_level(points, number, checkpoint))
            except LostProcess:
                checkpoint.rescue()
                raise
            except CurationError as error:
                if is_final(error) and group.size == 1:  # what can never be finished must not block a better fit
                    checkpoint.remove()
                raise
            centroids = levels[-1].centroids
            mapped = isinstance(centroids, np.memmap)  # one copy for all processes of a machine
            shard = ArrayShard(centroids, "") if mapped else TensorShard(torch.from_numpy(np.array(centroids)))
            shard.name = f"level {number + 1}"
            points = Embeddings([shard])
        for key in ("pool_fingerprint", "embedder", "pool_rows", "near_copies_out"):
            if key in source.metadata:
                settings[key] = source.metadata[key]
        settings["embedded_by"] = embedder_of(source.metadata)
        tree = ClusterTree(levels, settings, source.row_ids)
        if save_to is None:
            return tree
        with group.all_or_none():
            if group.first:
                tree.save(save_to)
        if group.size > 1:  # its arrays lie in files of the checkpoint
            tree = ClusterTree.load(save_to)
            group.barrier()
        checkpoint.remove()
        return tree

    def _fit_level(self, points: Embeddings, number: int, checkpoint: FitCheckpoint) -> Level:
        """Initial k-means, then the resampled ones, each assigned to all points of the level."""
        plan = self.plans[number]
        if self.work_dir is not None:  # files of a level stay until the tree is saved: the next level reads them
            self.group.scratch = self.work_dir / "shared" / f"level_{number + 1}"
        name = f"level_{number + 1}"
        saved = checkpoint.load(name)
        if saved is not None:
            arrays, record = saved
            coarse, coarse_of = arrays.get("coarse_centroids"), arrays.get("coarse_of")
            return Level(arrays["centroids"], arrays["assignment"], arrays["distance"], coarse, coarse_of, record)
        if plan.k >= points.n_rows and number:
            raise CurationError(
                f"level {number + 1} wants {plan.k} clusters of the {points.n_rows} of level {number}; lower it"
            )
        started = time.monotonic()
        fit: LevelFit | None = None
        current = checkpoint.load("step")
        if current is not None and current[1]["level"] == number:
            arrays, numbers = current
            centroids = Centroids(arrays["centroids"], arrays.get("coarse_centroids"), arrays.get("coarse_of"))
            fit = LevelFit(centroids, *self._assign(points, centroids)[:2], numbers["inertias"])
            started -= numbers["seconds"]
        if fit is None:
            fit = self._step(points if number else self._drawn(points), points, (number, 0), checkpoint, started, [])
        while len(fit.inertias) <= plan.n_resamples:
            place = (number, len(fit.inertias))
            fit = self._step(self._resample(points, fit, place), points, place, checkpoint, started, fit.inertias)
        centroids, record = fit.centroids, {"inertias": fit.inertias}
        level = Level(centroids.points, fit.labels, fit.distances, centroids.coarse, centroids.coarse_of, record)
        checkpoint.save(name, level.arrays(), record)
        checkpoint.drop("step")
        return level

    def _step(
        self,
        members: Embeddings,
        points: Embeddings,
        place: tuple[int, int],
        checkpoint: FitCheckpoint,
        started: float,
        inertias: list[float],
    ) -> LevelFit:
        """One k-means of (level, step) on ``members``, all points assigned to it; what it found is kept on disk."""
        number, step = place
        clustered = self._cluster(members, place, checkpoint)
        centroids, labels, distances, inertia = self._fill(points, clustered)
        fit = LevelFit(centroids, labels, distances, [*inertias, inertia])
        arrays = {"centroids": centroids.points}
        if centroids.coarse is not None and centroids.coarse_of is not None:
            arrays |= {"coarse_centroids": centroids.coarse, "coarse_of": centroids.coarse_of}
        seconds = time.monotonic() - started
        numbers = {"level": number, "steps": step + 1, "inertias": fit.inertias, "seconds": seconds}
        checkpoint.save("step", arrays, numbers)
        checkpoint.drop("lloyd")
        checkpoint.drop_pieces()
        return fit

    def _drawn(self, points: Embeddings) -> Embeddings:
        """The rows that level 1 is fitted on."""
        if not 0 < self.fit_rows < points.n_rows:
            return points
        rng = np.random.default_rng([self.seed, 3])
        rows = np.empty(0, np.int64)
        if self.group.first:
            rows = np.sort(rng.choice(points.n_rows, self.fit_rows, replace=False))
        rows = self.group.assemble("fitted", rows)
        return SelectedRows(points, rows, self.group.span(len(rows), rows_per_read(points.dim)))

    def _assign(self, points: Embeddings, centroids: Centroids) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
        """Labels, squared distances, their sum, and the size of every cluster; each process assigns its own rows."""
        span = self.group.span(points.n_rows, rows_per_read(points.dim))
        settings = self.kmeans
        labels, distances = centroids.assign(points, settings.metric, settings.device, settings.precision, span)
        sizes = self.group.total(np.bincount(labels, minlength=len(centroids.points)))
        inertia = inertia_of(distances, points.dim, self.group)
        return self.group.assemble("labels", labels), self.group.assemble("distances", distances), inertia, sizes

    def _fill(self, points: Embeddings, centroids: Centroids) -> tuple[Centroids, np.ndarray, np.ndarray, float]:
        """Assign all points; no cluster stays empty, so the next level clusters no stale centroid."""
        if centroids.coarse is None:
            result = assign_filled(points, centroids.points, self.kmeans, group=self.group)
            return Centroids(result.centroids), result.labels, result.distances, result.inertia
        while True:
            labels, distances, inertia, sizes = self._assign(points, centroids)
            empty = np.flatnonzero(sizes == 0)
            if not len(empty):
                return centroids, labels, distances, inertia
            centroids = centroids.without(empty)

    def _resample(self, points: Embeddings, fit: LevelFit, place: tuple[int, int]) -> Embeddings:
        """The resampled set of (level, step): r_t members of every cluster."""
        k = len(fit.centroids.points)
        n_members = self.plans[place[0]].sample_size or max(1, math.ceil(points.n_rows / k / 2))
        rng = np.random.default_rng([self.seed, *place, 1])
        rows = np.empty(0, np.int64)
        if self.group.first:
            rows = members_to_resample(fit.labels, fit.distances, k, n_members, self.resample_strategy, rng)
        rows = self.group.assemble("resampled", rows)
        return SelectedRows(points, rows, self.group.span(len(rows), rows_per_read(points.dim)))

    def _cluster(self, members: Embeddings, place: tuple[int, int], checkpoint: FitCheckpoint) -> Centroids:
        """k-means from scratch on one set of points; every (level, step) has random numbers of its own."""
        number, step = place
        plan = self.plans[number]
        of = f" of {len(self.plans)}" if len(self.plans) > 1 else ""  # the default tree makes the upper ones otherwise
        title = f"level {number + 1}{of}, k={plan.k}"
        title += f", resampling {step} of {plan.n_resamples}" if step else ""
        where = {"level": number, "step": step}
        pieces = checkpoint.pieces(number, step)

        def save(state: LloydState) -> None:
            checkpoint.save_lloyd(state, where)

        points, _history = fit_centroids(
            members,
            plan.k,
            np.random.default_rng([self.seed, number, step, 0]),
            self.kmeans,
            progress=title if self.progress else False,
            resume=checkpoint.load_lloyd(where),
            on_iteration=save,
            group=self.group,
            folder=pieces and pieces / "seeding",
        )
        if plan.n_splits == 1:
            return Centroids(points)
        return split_clusters(
            members,
            points,
            plan.n_splits,
            np.random.SeedSequence([self.seed, number, step, 2]),
            self.kmeans,
            progress=f"{title}, splitting in {plan.n_splits}" if self.progress else False,
            group=self.group,
            folder=pieces and pieces / "splits",
        )
