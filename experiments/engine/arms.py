"""Arms: what is trained on. Two arms differ by one line of configuration, the subset."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from curation import Embeddings, HierarchicalKMeans, Subset, open_embeddings
from curation.baselines import (
    flat_kmeans_subset,
    oracle_subset,
    random_subset,
    retrieval_subset,
    semdedup_subset,
)
from curation.pages.gallery import cluster_examples, contact_sheet, gallery_clusters
from curation.pipeline import cluster_folder
from curation.preparation.kept import kept_rows
from curation.preparation.prepare import Preparation, prepare_folder
from curation.trees.balance import balance_row
from curation.trees.communities import CommunitySettings
from curation.trees.community_tree import CommunityTree
from curation.trees.levels import PIECES, ROWS_PER_CLUSTER
from curation.trees.tree import ClusterTree
from experiments.engine.stages import StageRun
from foundation.errors import CurationError
from foundation.files import save_json, write_atomically
from foundation.settings import Choices, Count, CountOrZero, check, fill, nearest_name

METHODS = ("random", "all", "flat", "tree", "communities", "semdedup", "retrieval", "oracle", "manual")
BASE_ARM, METHOD_ARM, ORACLE, MANUAL = "raw", "hierarchical_resampled", "oracle", "manual"
LINES, PER_LINE = 12, 10  # of a gallery: clusters, and rows of each


@dataclass(frozen=True)
class CurationSettings:
    """Section ``science.curation``: what all arms share.

    Attributes:
        size: rows of every subset but that of `all`.
        levels: clusters of each level, finest first; a tree arm of fewer levels drops the finest.
        n_resamples: m of the resampled arms.
        sample_sizes: r_t of each level; 0: half the mean cluster size.
        flat_clusters: k of flat k-means; 0: as many as level 1.
        semdedup_clusters: k of SemDeDup.
        max_iterations: of every k-means.
        metric: l2 or cosine.
        prepare: near-duplicates and junk are left out of the pool of every arm (`curation.preparation`); an arm of its
            own may say so as well.
    """

    size: Count
    levels: list[Count]
    n_resamples: CountOrZero = 10
    sample_sizes: list[CountOrZero] = field(default_factory=list)
    flat_clusters: CountOrZero = 0
    semdedup_clusters: Count = 50
    max_iterations: Count = 50
    metric: Annotated[str, Choices("l2", "cosine")] = "l2"
    prepare: bool = False

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Method:
    """One line of ``science.methods``: how the arm of that name draws its subset.

    Attributes:
        method: one of `METHODS`.
        n_levels: of a tree; 0: all.
        resample: use the resampling steps of ``science.curation``.
        prepare: leave near-duplicates and junk out first.
        draw: another number draws other rows by the same seed: how much of a difference is chance.
        only: of the method random: rows of these labels alone, the largest difference that rows can make; []: of all.
    """

    method: Annotated[str, Choices(*METHODS)]
    n_levels: CountOrZero = 0
    resample: bool = False
    prepare: bool = False
    draw: CountOrZero = 0
    only: list[CountOrZero] = field(default_factory=list)

    def __post_init__(self) -> None:
        check(self)
        if self.only and self.method != "random":
            raise CurationError(f"only is of the method random, not of {self.method}; leave it out")


def subset_settings(
    arms: Sequence[str], methods: Mapping[str, Mapping[str, Any]], curation: CurationSettings
) -> dict[str, dict[str, Any]]:
    """Arm -> all that decides its subset, as JSON: settings that an arm does not use leave its results alone.

    Raises:
        CurationError: an arm that is not there or that the levels do not allow.
    """
    found = {}
    for arm in arms:
        if arm not in methods:
            raise CurationError(f"there is no arm {arm!r}; {nearest_name(arm, methods)}")
        line = fill(Method, methods[arm], f"science.methods.{arm}")
        spec: dict[str, Any] = {"method": line.method, "size": curation.size}
        shared = {"max_iterations": curation.max_iterations, "metric": curation.metric}
        if line.method == "all":
            spec = {"method": "all"}
        elif line.method == "flat":
            spec |= {"k": curation.flat_clusters or curation.levels[0], "metric": curation.metric}
        elif line.method == "semdedup":
            spec |= {"k": curation.semdedup_clusters}
        elif line.method == "communities":
            # what decides them: a change of the default is another arm
            spec |= {"communities": asdict(CommunitySettings()), "pieces": PIECES, "rows_per_cluster": ROWS_PER_CLUSTER}
        elif line.method == "tree":
            n = line.n_levels or len(curation.levels)
            if n > len(curation.levels):
                raise CurationError(
                    f"arm {arm} wants {n} levels but science.curation.levels has {len(curation.levels)}; add levels"
                )
            sizes = list(curation.sample_sizes) or [0] * len(curation.levels)
            spec |= shared | {"levels": list(curation.levels)[-n:]}
            if line.resample:
                # the lowest level left clusters the rows: the r_t of a dropped level is not meant for it
                first = sizes[-n] if n == len(curation.levels) else 0
                spec |= {"n_resamples": curation.n_resamples, "sample_sizes": [first, *sizes[len(sizes) - n + 1 :]]}
        if line.prepare or curation.prepare:  # else no key: results without preparation keep theirs
            spec |= {"prepare": True, "prepare_metric": curation.metric}
        if line.draw:
            spec["draw"] = line.draw
        if line.only:
            spec["only"] = list(line.only)
        found[arm] = spec
    return found


def _prepared(spec: dict[str, Any], x: Embeddings, run: StageRun, pool: Any) -> Embeddings:
    """The embeddings without near-duplicates and junk, whose ``row_ids`` are rows of the pool."""
    wanted = Preparation(metric=spec["prepare_metric"])
    kept, _there = prepare_folder(pool, x, run.folder / "prepared", wanted, workers=0, progress=run.progress)
    return kept_rows(x, kept)


def _tree(spec: dict[str, Any], x: Any, folder: Path, run: StageRun) -> ClusterTree:
    if spec["method"] == "communities":
        default = CommunityTree(seed=run.seed or 0, device=run.speed.get("device", "cpu"), progress=run.progress)
        return cluster_folder(x, folder, default)[0]
    fit = HierarchicalKMeans(
        spec["levels"],
        n_resamples=spec.get("n_resamples", 0),
        sample_sizes=spec.get("sample_sizes"),
        max_iterations=spec["max_iterations"],
        metric=spec["metric"],
        seed=run.seed or 0,
        device=run.speed.get("device", "cpu"),
        progress=run.progress,
    )
    return cluster_folder(x, folder, fit)[0]


def read_labels(prepared: Path) -> np.ndarray | None:
    """(n,) int64 concept of every pool row, -1 for none; None where the pool has no labels."""
    path = prepared / "labels.npy"
    return np.load(path, allow_pickle=False) if path.exists() else None


def curate(run: StageRun, pictures: Callable[[Path], Any] | None = None) -> dict[str, float]:
    """The stage `curate`: a tree where the method has one, the subset, and its balance before any training.

    Reads ``embeddings.npy`` or ``embeddings/``, ``labels.npy``, ``trusted.npy`` and ``manual.npy`` (concept of each row
    of a hand-curated set beside the pool, of which the arm `manual` draws its subset) of the stage `prepare`.

    Args:
        run: what to do and where.
        pictures: folder of the stage `prepare` -> its pool, with a column "image": then each level has a gallery.
    """
    prepared, spec = run.upstream("prepare"), run.settings
    seed = (run.seed or 0) + 10_000 * spec.get("draw", 0)
    whole = prepared / "embeddings"
    x = open_embeddings(str(whole if whole.exists() else prepared / "embeddings.npy"))
    labels, method, n_rows = read_labels(prepared), spec["method"], x.n_rows
    shown = None if pictures is None else pictures(prepared)
    if spec.get("prepare"):
        x = _prepared(spec, x, run, shown)
    size = spec.get("size", x.n_rows)
    if size > x.n_rows:
        raise CurationError(
            f"science.curation.size is {size} but preparation leaves {x.n_rows} of {n_rows} rows; lower it"
        )
    here = np.arange(n_rows) if x.row_ids is None else np.asarray(x.row_ids)
    tree = None
    if spec.get("only"):
        if labels is None:
            raise CurationError("an arm with `only` needs labels, which this pool does not have; leave it out of arms")
        mine = here[np.isin(labels[here], spec["only"])]
        if size > len(mine):
            raise CurationError(
                f"the labels {spec['only']} have {len(mine)} rows; name more labels, or lower science.curation.size"
            )
        drawn = random_subset(len(mine), size, seed)
        subset = Subset.from_rows(mine[drawn.rows()], **drawn.metadata)
    elif method in ("random", "all"):
        drawn = random_subset(x.n_rows, size, seed)
        subset = Subset.from_rows(here[drawn.rows()], **drawn.metadata)
    elif method == "oracle":
        if labels is None:
            raise CurationError("the arm oracle needs labels, which this pool does not have; leave it out of arms")
        known = here[labels[here] >= 0]
        drawn = oracle_subset(labels[known], size, seed)
        subset = Subset.from_rows(known[drawn.rows()], **drawn.metadata)
    elif method == "flat":
        subset = flat_kmeans_subset(x, spec["k"], size, seed, spec["metric"], progress=run.progress)
    elif method == "semdedup":
        subset = semdedup_subset(x, spec["k"], size, seed=seed, progress=run.progress)
    elif method == "retrieval":
        if not (prepared / "trusted.npy").exists():
            raise CurationError("the arm retrieval needs a trusted set, which this pool does not have; leave it out")
        subset = retrieval_subset(x, str(prepared / "trusted.npy"), size, progress=run.progress)
    elif method == MANUAL:
        if not (prepared / "manual.npy").exists():
            raise CurationError("the arm manual needs a hand-curated set, which this pool does not have; leave it out")
        labels = np.load(prepared / "manual.npy", allow_pickle=False)
        if size > len(labels):
            raise CurationError(f"the hand-curated set has {len(labels)} rows; lower science.curation.size to that")
        subset = Subset.from_rows(random_subset(len(labels), size, seed).rows(), method=MANUAL, seed=seed)
    else:
        tree = _tree(spec, x, run.folder / "tree", run)
        subset = Subset.from_rows(tree.sample(size, strategy="random", seed=seed), tree, method=method, seed=seed)
    if tree is not None and shown is not None:
        for level in range(tree.n_levels):
            lines = [
                cluster_examples(tree, level, int(c), PER_LINE, 0) for c in gallery_clusters(tree, level, LINES, 0)
            ]
            # short clusters are filled up with their own rows, so that each has a line of its own
            rows = here[np.concatenate([np.resize(members, PER_LINE) for members in lines])]
            sheet = contact_sheet(shown, rows, columns=PER_LINE, size=48)
            write_atomically(run.folder / f"gallery_level_{level + 1}.jpg", partial(_write, sheet))
    subset.save(run.folder / "subset")
    save_json(run.folder / "balance.json", _balance(read_labels(prepared), labels, subset, n_rows))
    return {"samples": float(n_rows)}


def _write(content: bytes, stream: Any) -> None:
    stream.write(content)


def _balance(labels: np.ndarray | None, drawn_from: np.ndarray | None, subset: Subset, n_rows: int) -> dict[str, Any]:
    """Rows of each concept in pool and subset with their measures; without labels only the sizes.

    Args:
        labels, drawn_from: concepts of the pool, and of what the subset was drawn from: of a hand-curated set its own.
    """
    sizes = {"pool_rows": n_rows, "subset_rows": len(subset)}
    if labels is None or drawn_from is None:
        return sizes
    k = int(max(labels.max(), drawn_from.max())) + 1
    pool = np.bincount(labels[labels >= 0], minlength=k)
    mine = drawn_from[subset.rows()]
    counts = np.bincount(mine[mine >= 0], minlength=k)
    return sizes | {
        "measures": balance_row(counts, pool) | {"no_concept": float((mine < 0).mean())},
        "pool_measures": balance_row(pool, pool) | {"no_concept": float((labels < 0).mean())},
        "pool_counts": pool.tolist(),
        "subset_counts": counts.tolist(),
    }
