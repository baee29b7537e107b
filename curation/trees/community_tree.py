"""The default tree: level 1 by k-means, the levels above from communities, so that concepts weigh the same.

Beside it stands the paper's method, `curation.trees.hierarchy.HierarchicalKMeans`. Both leave the same kind of tree.
"""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curation.group import Group
from curation.kmeans.assignment import rows_per_read
from curation.store.bad_rows import KeptRows, read_all_rows
from curation.store.embeddings import Embeddings, open_embeddings
from curation.trees.communities import FEW_DIMENSIONS, CommunitySettings
from curation.trees.hierarchy import HierarchicalKMeans
from curation.trees.levels import MAX_POINTS, first_level, grow_levels
from curation.trees.tree import ClusterTree, is_made_of, read_tree_settings
from foundation.errors import CurationError, is_final
from foundation.files import digest_json

AUTO = "auto"
METRICS = (AUTO, "l2", "cosine")
SPLIT_FROM = 60_000  # clusters of level 1 from which it is made in two steps, 100 splits each


def metric_for(metric: str, dim: int) -> str:
    """The metric that "auto" stands for: angles tell concepts apart only where there are dimensions for them."""
    return ("cosine" if dim >= FEW_DIMENSIONS else "l2") if metric == AUTO else metric


def level_of(k: int) -> int | tuple[int, int]:
    """Level 1 of k clusters as `HierarchicalKMeans` takes it: in two steps where there are many."""
    return (round(k / 100), 100) if k >= SPLIT_FROM else k


class CommunityTree:
    """Level 1 by k-means and upper levels from communities of neighbour graphs (`curation.trees.levels`).

    Args:
        clusters: of level 1; 0: from the rows (`curation.trees.levels.first_level`).
        metric: of level 1: "l2", "cosine", or "auto": cosine from 16 dimensions on.
        max_iterations: Lloyd iterations of level 1.
        seed: of all random choices.
        fit_rows, device, precision, work_dir, progress, bad_rows, checkpoint_seconds: see
            `curation.trees.hierarchy.HierarchicalKMeans`.
        graph_points: rows in the neighbour graphs, at most; memory and time grow with them, about 1 KB and, for all
            graphs, 1 ms each.

    Raises:
        CurationError: a setting makes no sense.
    """

    def __init__(
        self,
        clusters: int = 0,
        metric: str = AUTO,
        max_iterations: int = 20,
        seed: int = 0,
        *,
        fit_rows: int = 0,
        device: str | torch.device = "cpu",
        precision: str = "auto",
        work_dir: str | Path | None = None,
        progress: bool = True,
        bad_rows: str = "error",
        checkpoint_seconds: float = 20.0,
        graph_points: int = MAX_POINTS,
    ):
        if metric not in METRICS:
            raise CurationError(f"metric {metric!r} is unknown; use one of {', '.join(METRICS)}")
        if clusters < 0:
            raise CurationError(f"clusters={clusters} must not be negative; 0 takes one for about 8 rows")
        if graph_points < 100:
            raise CurationError(f"graph_points={graph_points} are too few to see communities; take 100 or more")
        self.clusters, self.metric, self.seed, self.graph_points = clusters, metric, seed, graph_points
        self.bad_rows, self.device, self.progress = bad_rows, device, progress
        self.work_dir = None if work_dir is None else Path(work_dir)
        self.options: dict[str, Any] = {
            "max_iterations": max_iterations,
            "fit_rows": fit_rows,
            "seed": seed,
            "precision": precision,
            "progress": progress,
            "checkpoint_seconds": checkpoint_seconds,
        }
        self.restart = False  # see HierarchicalKMeans
        HierarchicalKMeans([clusters or max(fit_rows, 1)], bad_rows=bad_rows, device=device, **self.options)  # checks

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the tree, as JSON."""
        found = {
            "upper_levels": "communities",
            "clusters": self.clusters,
            "metric_asked": self.metric,
            "max_iterations": self.options["max_iterations"],
            "seed": self.seed,
            "graph_limit": self.graph_points,
            "beliefs": digest_json(
                asdict(CommunitySettings())
            ),  # a tree of another release is not taken for one of this
            "bad_rows": self.bad_rows,
        }
        return {**found, "fit_rows": self.options["fit_rows"]} if self.options["fit_rows"] else found

    def _first(self, source: Embeddings, metric: str) -> HierarchicalKMeans:
        """The k-means of level 1."""
        k = self.clusters or min(first_level(source.n_rows), max(1, _distinct(source) // 2))
        fit = HierarchicalKMeans([level_of(k)], metric=metric, device=self.device, **self.options)
        fit.work_dir = None if self.work_dir is None else self.work_dir / "fit"
        fit.restart = self.restart
        return fit

    def fit(self, x: Any, save_to: str | Path | None = None, group: Group | None = None) -> ClusterTree:
        """Build the tree; see `curation.trees.hierarchy.HierarchicalKMeans.fit`.

        Of several processes all share the k-means, and the first finds the communities. A fit that was killed goes on
        from the checkpoint of its k-means, or from the finished level 1.

        Raises:
            CurationError: bad rows, too few distinct rows, a checkpoint of another fit.
        """
        source, group = open_embeddings(x), group or Group()
        if group.size > 1 and (self.work_dir is None or save_to is None):
            raise CurationError("a fit by several processes needs work_dir and save_to, on a file system they share")
        metric = metric_for(self.metric, source.dim)
        fingerprint, digest, dropped = source.fingerprint(), None, 0
        if self.bad_rows == "drop":
            bad, digest = read_all_rows(source, metric == "cosine", group)
            dropped = len(bad)
            source = KeptRows(source, bad) if dropped else source
        first = self._first(source, metric)
        known = {**first.settings, "embeddings_fingerprint": source.fingerprint()}
        folder = None if self.work_dir is None else self.work_dir / "level_1"
        tree = None if folder is None else _finished(folder, known, source, self.restart)
        if tree is None:
            tree = first.fit(source, save_to=folder, group=group)
        if group.first:
            tree = self._grown(tree, source)
            tree.settings |= {**self.settings, "embeddings_fingerprint": fingerprint, "dropped_rows": dropped}
            tree.settings |= {"embeddings_digest": digest} if digest is not None else {}
        if save_to is None:
            return tree
        with group.all_or_none():
            if group.first:
                tree.save(save_to)
        if group.size > 1:
            tree = ClusterTree.load(save_to)
            group.barrier()
        if self.work_dir is not None and group.first:
            shutil.rmtree(self.work_dir, ignore_errors=True)
        return tree

    def _grown(self, tree: ClusterTree, source: Embeddings) -> ClusterTree:
        """The levels above the first; a mistake that shows only here leaves no level 1 to block a better fit."""
        try:
            return grow_levels(tree, source, self.seed, progress=self.progress, limit=self.graph_points)
        except CurationError as error:
            if is_final(error) and self.work_dir is not None:
                shutil.rmtree(self.work_dir, ignore_errors=True)
            raise


def _finished(folder: Path, known: dict[str, Any], source: Embeddings, restart: bool) -> ClusterTree | None:
    """Level 1 of an interrupted fit with these settings; None where there is none.

    Raises:
        CurationError: it has other settings.
    """
    if not (folder / "tree.json").exists():
        return None
    settings = read_tree_settings(folder)
    if all(settings.get(key) == value for key, value in known.items()) and is_made_of(settings, source):
        return ClusterTree.load(folder)
    if restart:
        return None
    raise CurationError(
        f"{folder.parent} holds level 1 of an unfinished fit with other settings or embeddings; "
        "repeat those to resume it, or delete the folder (--overwrite) to start anew"
    )


def _distinct(source: Embeddings) -> int:
    """Distinct rows of a small pool; of a large one, its rows: its clusters are far fewer."""
    if source.n_rows > 160_000:
        return source.n_rows
    seen: set[bytes] = set()
    for _start, block in source.blocks(rows_per_read(source.dim)):
        seen.update(np.ascontiguousarray(row).tobytes() for row in block.float().cpu().numpy())
    return len(seen)
