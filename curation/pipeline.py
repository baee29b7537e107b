"""Pool to report in one folder: what `curate run` and the demo do. Finished steps are skipped, changed ones redone."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from curation.embed import embed_pool
from curation.embedders import open_embedder
from curation.embeddings import open_embeddings
from curation.hierarchy import HierarchicalKMeans
from curation.pool import open_pool
from curation.prepare import Preparation, kept_rows, prepare_folder
from curation.report import write_report
from curation.sampling import STRATEGIES
from curation.soundness import Finding, check_subset
from curation.subset import Subset
from curation.tree import ClusterTree
from foundation.errors import CurationError
from foundation.files import load_json

DEFAULT_PREPARATION = Preparation()


@dataclass
class PipelineResult:
    """What the run made, and what it found already there."""

    folder: Path
    tree: ClusterTree
    subset: Subset
    report: Path
    skipped: list[str] = field(default_factory=list)
    preparation: dict[str, Any] | None = None
    findings: list[Finding] = field(default_factory=list)


def default_levels(n_rows: int) -> list[int]:
    """Levels for a pool: about 8 rows in a level-1 cluster, and 4 to 10 clusters in each of the level above."""
    first = max(2, n_rows // 8)
    levels = [first]
    ratio = 4 if first < 10_000 else 10
    while len(levels) < 4 and levels[-1] // ratio >= 10:
        levels.append(levels[-1] // ratio)
    return levels


def cluster_folder(
    embeddings: Any, folder: Path, fit: HierarchicalKMeans, overwrite: bool = True
) -> tuple[ClusterTree, bool]:
    """The tree in ``folder``: loaded where it was made with these settings of these embeddings, else fitted.

    Args:
        overwrite: replace a finished tree of other settings; else refuse.

    Returns:
        The tree, and whether it was already there.

    Raises:
        CurationError: a finished tree of other settings is there, and is not to be overwritten.
    """
    source = open_embeddings(embeddings)
    if (folder / "tree.json").exists():
        settings = load_json(folder / "tree.json").get("settings", {})
        wanted = {**fit.settings, "embeddings_fingerprint": source.fingerprint()}
        if all(settings.get(key) == value for key, value in wanted.items()):
            return ClusterTree.load(folder), True
        if not overwrite:
            _refuse_other_tree(folder, settings, wanted)
        shutil.rmtree(folder)
    fit.work_dir = folder / "unfinished"
    return fit.fit(source, save_to=folder), False


def _refuse_other_tree(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise where a finished tree has other settings than those wanted."""
    for key, value in wanted.items():
        if found.get(key) != value:
            what = f"{key}={found.get(key)}, not {value}"
            what = "other embeddings or other rows of them" if key == "embeddings_fingerprint" else what
            raise CurationError(
                f"{folder} holds a finished tree of {what}; repeat those settings, choose another -o, or --overwrite"
            )


def check_run(
    pool: Any,
    folder: Path,
    size: int,
    fit: HierarchicalKMeans,
    strategy: str,
    max_copies: int,
    labels: str | None,
    overwrite: bool,
    default: bool,
) -> None:
    """Refuse, before anything is embedded, what would fail hours later.

    Args:
        fit: as it will be, or, where ``default`` says so, with the levels of a pool that loses no row.

    Raises:
        CurationError: a size, a number of clusters or a column that the pool does not have; a device that is not
            there; a finished tree of other settings that is not to be overwritten.
    """
    import torch

    if not 0 < size <= len(pool) * max_copies:
        raise CurationError(f"size {size} must lie between 1 and {len(pool) * max_copies}, the rows of the pool")
    if strategy not in STRATEGIES:
        raise CurationError(f"strategy {strategy!r} is unknown; use one of {', '.join(STRATEGIES)}")
    if labels is not None and labels not in pool.column_names:
        raise CurationError(f"the pool has no column {labels!r} for --labels; it has {', '.join(pool.column_names)}")
    if fit.plans[0].k > len(pool):
        raise CurationError(f"level 1 wants {fit.plans[0].k} clusters of {len(pool)} rows; lower the levels")
    try:
        torch.empty(0, device=fit.device)
    except (RuntimeError, AssertionError) as error:
        raise CurationError(f"device {str(fit.device)!r} cannot be used here; try --device cpu") from error
    if (folder / "tree" / "tree.json").exists() and not overwrite:
        settings = load_json(folder / "tree" / "tree.json").get("settings", {})
        derived = ("levels", "n_resamples", "sample_sizes") if default else ()
        wanted = {key: value for key, value in fit.settings.items() if key not in derived}
        _refuse_other_tree(folder / "tree", settings, wanted)


def sample_folder(
    tree: ClusterTree, folder: Path, size: int, strategy: str, method: str, max_copies: int, seed: int
) -> tuple[Subset, bool]:
    """The subset in ``folder``: loaded where it was drawn with these settings from this tree, else drawn."""
    wanted = {
        "tree_checksum": tree.checksum,
        "method": method,
        "strategy": strategy,
        "target": size,
        "max_copies": max_copies,
        "seed": seed,
    }
    if (folder / "subset.json").exists():
        found = load_json(folder / "subset.json")
        if all(found.get(key) == value for key, value in wanted.items()):
            return Subset.load(folder), True
    rows = tree.sample(size, strategy=strategy, max_copies=max_copies, seed=seed, method=method)
    del wanted["tree_checksum"]
    subset = Subset.from_rows(rows, tree, **wanted)
    subset.save(folder)
    return subset, False


def run_pipeline(
    source: Any,
    folder: str | Path,
    size: int,
    embedder: str,
    levels: list[Any] | None = None,
    n_resamples: int | list[int] = 10,
    sample_sizes: int | list[int] | None = None,
    image_size: int | None = None,
    batch_size: int = 64,
    metric: str = "cosine",
    max_iterations: int = 50,
    strategy: str = "random",
    max_copies: int = 1,
    seed: int = 0,
    device: str = "auto",
    labels: str | None = None,
    title: str | None = None,
    commands: list[str] | None = None,
    progress: bool = True,
    prepare: Preparation | None = DEFAULT_PREPARATION,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _line: None,
    check: bool = True,
) -> PipelineResult:
    """Embed a pool, leave out duplicates and junk, cluster the rest, draw a balanced subset, and write the report.

    Args:
        source: anything `curation.pool.open_pool` takes.
        folder: gets ``embeddings/``, ``prepared/``, ``tree/``, ``subset/`` and ``report.html``.
        size: rows of the subset.
        embedder: see `curation.embedders.open_embedder`.
        levels: clusters of each level; None: `default_levels`.
        labels: pool column with the true concepts, for the report alone.
        prepare: what is left out before clustering (its metric is ``metric``); None: nothing. Rows of tree and subset
            are rows of the pool either way.
        overwrite: replace a finished tree of other settings; else it is refused.
        say: is told what preparation left out.
        check: ask whether the tree and the subset are sound, for the report and ``findings`` of the result.

    Raises:
        CurationError: bad settings or input; settings are checked before anything is embedded.
    """
    import torch

    folder = Path(folder)
    pool = open_pool(source)
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device

    def fit_of(n_rows: int) -> HierarchicalKMeans:
        return HierarchicalKMeans(
            levels or default_levels(n_rows),
            n_resamples=n_resamples,
            sample_sizes=sample_sizes,
            metric=metric,
            max_iterations=max_iterations,
            seed=seed,
            device=where,
            progress=progress,
        )

    check_run(pool, folder, size, fit_of(len(pool)), strategy, max_copies, labels, overwrite, levels is None)
    skipped = []
    done = (folder / "embeddings" / "embeddings.json").exists() and load_json(
        folder / "embeddings" / "embeddings.json"
    ).get("complete", False)
    network = open_embedder(embedder, image_size, device)
    embed_pool(pool, network, folder / "embeddings", batch_size=batch_size, progress=progress)
    skipped += ["embeddings"] if done else []
    x = open_embeddings(folder / "embeddings")
    preparation = None
    if prepare is not None:
        wanted = replace(prepare, metric=metric)
        kept, found = prepare_folder(pool, x, folder / "prepared", wanted, commands=commands or (), progress=progress)
        x, preparation = kept_rows(x, kept), kept.report
        skipped += ["prepared"] if found else []
        for line in (kept.line(), *kept.report["notes"]):
            say(f"prepared: {line}")
        if size > x.n_rows * max_copies:
            raise CurationError(
                f"size {size} is more than the {x.n_rows * max_copies} rows that preparation leaves of {len(pool)} "
                f"({folder}/prepared/dropped.html shows the others); lower it, or give --no-prepare"
            )
    tree, found = cluster_folder(x, folder / "tree", fit_of(x.n_rows), overwrite)
    skipped += ["tree"] if found else []
    subset, found = sample_folder(tree, folder / "subset", size, strategy, "balanced", max_copies, seed)
    skipped += ["subset"] if found else []
    findings = check_subset(tree, subset, x, seed) if check else []
    left_out = None
    if preparation is not None:
        left_out = {**preparation["dropped"], "see": "prepared/dropped.html"} if preparation["dropped"] else None
    report = folder / "report.html"
    write_report(
        tree,
        subset,
        report,
        pool=pool,
        labels=labels,
        title=title or f"Curation of {len(pool):,} rows to {len(subset):,}",
        commands=commands,
        progress=progress,
        findings=findings,
        preparation=left_out,
    )
    return PipelineResult(folder, tree, subset, report, skipped, preparation, findings)


def place_rows(tree: ClusterTree, embeddings: Any, device: str = "cpu") -> dict[str, np.ndarray]:
    """Clusters of new rows in an old tree, as columns: ``row``, ``level_1``, ..."""
    placed = tree.assign(embeddings, device=device)
    return {"row": np.arange(len(placed))} | {f"level_{i + 1}": placed[:, i] for i in range(placed.shape[1])}
