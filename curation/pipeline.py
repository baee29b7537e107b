"""Pool to report in one folder: what `curate run` and the demo do. Finished steps are skipped, changed ones redone."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from curation import kmeans
from curation.embedding.text_embedders import embed_any, has_text_only, resolve_embedder
from curation.export import row_names
from curation.pages.card import save_with_card
from curation.pages.first_look import write_first_look
from curation.pages.report import PAGE, write_report
from curation.pages.verdict import Verdict, beside
from curation.pools.labels import Labels, read_labels
from curation.pools.pool import open_pool, require_own_pool
from curation.preparation.filters.text import TextJunk
from curation.preparation.kept import Kept, kept_rows
from curation.preparation.prepare import Preparation, prepare_folder
from curation.soundness import Finding, check_subset
from curation.store.embeddings import Embeddings, open_embeddings, require_own_row_ids
from curation.trees.community_tree import AUTO, CommunityTree, metric_for
from curation.trees.hierarchy import HierarchicalKMeans
from curation.trees.sampling import STRATEGIES
from curation.trees.subset import Subset, read_info
from curation.trees.tree import MOST_COPIES, ClusterTree, is_made_of, read_tree_settings
from foundation.clock import Clock
from foundation.devices import open_device
from foundation.errors import CurationError
from foundation.files import digest_json, load_json, require_own, write_atomically
from foundation.locks import locked_folder
from foundation.paths import regular_file
from foundation.settings import LARGEST_SEED, Range, require_number

DEFAULT_PREPARATION = Preparation()
LEAST_OF_LABEL, LABELS_TOLD = 10, 5  # rows of a label, and labels, of which preparation is told to leave out most
TEXT_PREPARATION = Preparation(by=("exact", "text"), junk=None, text_junk=TextJunk())


@dataclass
class PipelineResult:
    """What the run made, what it found already there, and what the report says first."""

    folder: Path
    tree: ClusterTree
    subset: Subset
    report: Path
    verdict: Verdict
    skipped: list[str] = field(default_factory=list)
    preparation: dict[str, Any] | None = None
    findings: list[Finding] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict, kw_only=True)


Fit = CommunityTree | HierarchicalKMeans


def tree_fit(
    levels: str | Sequence[Any] = AUTO,
    n_resamples: int | Sequence[int] | None = None,
    sample_sizes: int | Sequence[int] | None = None,
    metric: str = AUTO,
    max_iterations: int | None = None,
    **options: Any,
) -> Fit:
    """What fits the tree: the one set of defaults of `curate run` and `curate cluster`.

    Args:
        levels: "auto": level 1 by k-means, the others from communities (`CommunityTree`). Else the clusters of each
            level: the paper's method (`HierarchicalKMeans`).
        n_resamples: None: 10, as in the paper; "auto" levels have none.
        metric: "auto": of "auto" levels, from the dimensions; of the paper's levels, l2.
        max_iterations: None: 50, as in the paper; 20 for "auto" levels.
        options: the others of the two classes.

    Raises:
        CurationError: a setting makes no sense.
    """
    if levels == AUTO:
        given = {"resamples": n_resamples, "sample sizes": sample_sizes}
        given |= {key: options.pop(key, None) for key in ("resample_strategy", "seeding", "tolerance")}
        for name, value in given.items():
            if value is not None:
                raise CurationError(f"{name} belong to the paper's levels, such as 10000,1000,100; auto has none")
        return CommunityTree(metric=metric, max_iterations=max_iterations or 20, **options)
    paper = {key: value for key, value in options.items() if value is not None}
    return HierarchicalKMeans(
        levels,
        n_resamples=10 if n_resamples is None else n_resamples,
        sample_sizes=sample_sizes,
        metric="l2" if metric == AUTO else metric,
        max_iterations=max_iterations or 50,
        **paper,
    )


def cluster_folder(embeddings: Any, folder: Path, fit: Fit, overwrite: bool = True) -> tuple[ClusterTree, bool]:
    """The tree in ``folder``: loaded where it was made with these settings of these embeddings, else fitted.

    Args:
        overwrite: replace a finished tree of other settings; else refuse.

    Returns:
        The tree, and whether it was already there.

    Raises:
        CurationError: a finished tree of other settings is there, and is not to be overwritten.
    """
    source = open_embeddings(embeddings)
    found = finished_tree(source, folder, fit, overwrite)
    if found is not None:
        return found, True
    fit.work_dir, fit.restart = folder / "unfinished", overwrite
    with locked_folder(folder):
        return fit.fit(source, save_to=folder), False


def finished_tree(source: Embeddings, folder: Path, fit: Fit, overwrite: bool) -> ClusterTree | None:
    """The tree in ``folder``, where it was made with these settings of these embeddings; None: a fit is wanted.

    One of other settings stays until the new one takes its place.

    Raises:
        CurationError: a finished tree of other settings is there, and is not to be overwritten; a damaged one, or
            another result.
    """
    require_own_row_ids(folder, "tree.json")
    if not (folder / "tree.json").exists():
        return None
    try:
        settings = read_tree_settings(folder)
        wanted = {**fit.settings, "embeddings_fingerprint": source.fingerprint()}
        if all(settings.get(key) == value for key, value in wanted.items()):
            if is_made_of(settings, source):
                return ClusterTree.load(folder)
            wanted["embeddings_fingerprint"] = None  # rows that the fingerprint does not look at have changed
        if not overwrite:
            _refuse_other_tree(folder, settings, wanted)
    except CurationError:
        if not overwrite:
            raise
    return None


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
    fit: Fit,
    strategy: str,
    max_copies: int,
    labels: str | None,
    overwrite: bool,
) -> None:
    """Refuse, before anything is embedded, what would fail hours later.

    Raises:
        CurationError: a size, a number of clusters or a column that the pool does not have; a finished tree or subset
            of other settings that is not to be overwritten.
    """
    require_number(max_copies, Range(ge=1, le=MOST_COPIES), "max_copies")
    require_number(fit.seed, Range(ge=0, le=LARGEST_SEED), "seed")
    if not 0 < size <= len(pool) * max_copies:
        raise CurationError(f"size {size} must lie between 1 and {len(pool) * max_copies}, the rows of the pool")
    if strategy not in STRATEGIES:
        raise CurationError(f"strategy {strategy!r} is unknown; use one of {', '.join(STRATEGIES)}")
    if labels is not None:
        read_labels(labels, pool).take(np.arange(len(pool)))
    if isinstance(fit, HierarchicalKMeans) and fit.plans[0].n_clusters > len(pool):
        raise CurationError(f"level 1 wants {fit.plans[0].n_clusters} clusters of {len(pool)} rows; lower the levels")
    if (folder / "tree" / "tree.json").exists() and not overwrite:
        settings = read_tree_settings(folder / "tree")
        _refuse_other_tree(folder / "tree", settings, fit.settings)
    if (folder / "subset" / "subset.json").exists() and not overwrite:
        wanted = _subset_settings(size, strategy, "balanced", max_copies, fit.seed)
        _refuse_other_subset(folder / "subset", read_info(folder / "subset"), wanted)


def _subset_settings(size: int, strategy: str, method: str, max_copies: int, seed: int) -> dict[str, Any]:
    """What a subset keeps of the way it was drawn, its tree apart."""
    return {"method": method, "strategy": strategy, "target": size, "max_copies": max_copies, "seed": seed}


def _refuse_other_subset(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise where a finished subset has other settings than those wanted."""
    for key, value in wanted.items():
        if found.get(key) != value:
            what = f"size {found.get(key)}, not {value}" if key == "target" else f"{key}={found.get(key)}, not {value}"
            what = "another tree" if key == "tree_checksum" else what
            tree = folder.parent / "tree"
            further = "`curate sample` draws further subsets from the tree that is there"
            if key == "target" and (tree / "tree.json").exists():
                further = f"another from the same tree: curate sample {tree} -o {folder}-{value} --size {value}"
            raise CurationError(
                f"{folder} holds a finished subset of {what}; choose another -o, or give --overwrite ({further})"
            )


def finished_subset(folder: Path, wanted: dict[str, Any], overwrite: bool) -> Subset | None:
    """The subset in ``folder``, where it was drawn with these settings; None: one is to be drawn.

    Raises:
        CurationError: a finished subset of other settings, or a damaged one, is not to be overwritten.
    """
    if not (folder / "subset.json").exists():
        return None
    with suppress(CurationError) if overwrite else nullcontext():
        found = read_info(folder)
        if all(found.get(key) == value for key, value in wanted.items()):
            return Subset.load(folder)
    if not overwrite:
        _refuse_other_subset(folder, found, wanted)
    return None


def sample_folder(
    tree: ClusterTree,
    folder: Path,
    size: int,
    *,
    strategy: str,
    method: str,
    max_copies: int,
    seed: int,
    pool: Any = None,
    overwrite: bool = True,
) -> tuple[Subset, bool]:
    """The subset in ``folder``: loaded where it was drawn with these settings from this tree, else drawn.

    Args:
        pool: gives the files or keys of the rows, where it has some.
        overwrite: replace a finished subset of other settings, or a damaged one; else refuse.

    Raises:
        CurationError: a finished subset of other settings is not to be overwritten, or see `ClusterTree.sample`.
    """
    wanted = _subset_settings(size, strategy, method, max_copies, seed)
    there = finished_subset(folder, {"tree_checksum": tree.checksum, **wanted}, overwrite)
    if there is not None:
        if pool is not None and there.names != (names := row_names(pool, there.ids)):
            there.names = names
            with locked_folder(folder):
                there.save(folder)
        return there, True
    rows = tree.sample(size, strategy=strategy, max_copies=max_copies, seed=seed, method=method)
    subset = Subset.from_rows(rows, tree, **wanted)
    if pool is not None:
        subset.names = row_names(pool, subset.ids)
    with locked_folder(folder):
        save_with_card(subset, folder)
    return subset, False


def skipped_lines(pool: Any, skipped: dict[int, str], folder: Path, most: int = 5) -> list[str]:
    """What to tell of rows that have no embedding: the first of them by row, file and reason."""
    first = list(skipped.items())[:most]
    names = row_names(pool, np.array([row for row, _reason in first])) if first else {}
    places = next(iter(names.values()), [""] * len(first))
    lines = [
        f"skipped row {row}{f' ({place})' if place and place not in reason else ''}: {reason}"
        for (row, reason), place in zip(first, places, strict=True)
    ]
    more = len(skipped) - len(first)
    return [*lines, f"... and {more:,} more; all are in {folder}/embeddings.json"] if more else lines


def lost_labels(labels: Labels, row_ids: Int[np.ndarray, "n"] | None, kept: Kept) -> list[str]:
    """A line for each label of which preparation left out more than half: are these copies, or one kind of thing?"""
    known = np.arange(len(labels.codes)) if row_ids is None else np.asarray(row_ids)
    before, gone = (
        np.bincount(codes[codes >= 0], minlength=len(labels.names))
        for codes in (labels.codes[known], labels.codes[kept.dropped])
    )
    lost = np.flatnonzero((2 * gone > before) & (before >= LEAST_OF_LABEL))
    lines = [
        f"{gone[i]:,} of the {before[i]:,} rows of {labels.names[i]!r} are left out: are they copies of each other?"
        for i in lost[:LABELS_TOLD]
    ]
    more = len(lost) - len(lines)
    return [*lines, f"... and of {more:,} more labels"] if more else lines


def run_pipeline(
    source: Any,
    folder: str | Path,
    size: int,
    embedder: str = "auto",
    *,
    embeddings: Any = None,
    levels: str | Sequence[Any] = AUTO,
    n_resamples: int | list[int] | None = None,
    sample_sizes: int | list[int] | None = None,
    image_size: int | None = None,
    batch_size: int = 64,
    metric: str = AUTO,
    max_iterations: int | None = None,
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
        source: anything `curation.pools.pool.open_pool` takes.
        folder: gets ``pool.html`` (random rows, at once), ``embeddings/``, ``prepared/``, ``tree/``, ``subset/`` and
            ``report.html``.
        size: rows of the subset.
        embedder: see `curation.embedding.text_embedders.embed_any`; "auto" chooses one for images or for text.
        embeddings: of the pool's rows, in their order, where they are there already: see `open_embeddings`.
        levels, n_resamples, sample_sizes, metric, max_iterations: see `tree_fit`.
        labels: pool column with the true concepts, for the report alone.
        prepare: what is left out before clustering (of text, by the rules for text); None: nothing. Rows of tree
            and subset are rows of the pool either way.
        overwrite: replace a finished tree or subset of other settings; else they are refused.
        say: is told which step begins, what preparation left out, and at the end what took how long.
        check: ask whether the tree and the subset are sound, for the report and ``findings`` of the result.

    Raises:
        CurationError: bad settings or input; settings are checked before anything is embedded.
    """
    folder, clock = Path(folder), Clock(say)
    clock.begin("open")
    pool = open_pool(source)
    x = None if embeddings is None else open_embeddings(embeddings)
    if x is None:
        embedder = resolve_embedder(embedder, pool)
    elif embedder != "auto" or image_size is not None:
        raise CurationError("an embedder or an image size means nothing where embeddings are given; leave it out")
    else:
        require_own_pool(pool, x.n_rows, x.row_ids, x.metadata.get("pool_fingerprint"), "the embeddings")
    if image_size is not None and has_text_only(pool):
        raise CurationError("an image size means nothing for text; leave --image-size out")
    if has_text_only(pool) and prepare is DEFAULT_PREPARATION:
        # one's own embeddings may tell copies apart from small topics; those of sentences and n-grams do not
        prepare = TEXT_PREPARATION if x is None else replace(TEXT_PREPARATION, by=("exact", "text", "embedding"))
    where = str(open_device(device))
    fit = tree_fit(
        levels, n_resamples, sample_sizes, metric, max_iterations, seed=seed, device=where, progress=progress
    )
    check_run(pool, folder, size, fit, strategy, max_copies, labels, overwrite)
    for page in ("pool.html", "report.html"):
        require_own(folder / page, PAGE, overwrite)
    with locked_folder(folder):
        write_first_look(pool, folder / "pool.html", labels)
        say(f"open {folder}/pool.html in a browser: what the pool holds before curation")
        skipped, unreadable = [], {}
        if x is None:
            there = folder / "embeddings"
            done = (there / "embeddings.json").exists() and load_json(there / "embeddings.json").get("complete", False)
            clock.begin("embed", f"{len(pool):,} rows with {embedder}")
            unreadable = embed_any(
                pool, embedder, there, image_size, batch_size, device, progress, seed, say=say, overwrite=overwrite
            ).skipped
            for line in skipped_lines(pool, unreadable, there):
                say(line)
            skipped += ["embeddings"] if done else []
            x = open_embeddings(there)
        preparation = None
        if prepare is not None:
            clock.begin("prepare", "near-duplicates and junk")
            wanted = replace(prepare, metric=metric_for(metric, x.dim))
            place = folder / "prepared"
            kept, found = prepare_folder(pool, x, place, wanted, commands=commands or (), progress=progress)
            preparation = kept.report
            skipped += ["prepared"] if found else []
            lost = [] if labels is None else lost_labels(read_labels(labels, pool), x.row_ids, kept)
            look = [f"open {place}/dropped.html to see what was left out"] * (len(kept.dropped) > 0)
            for line in (kept.line(), *kept.report["notes"], *lost, *look):
                say(f"prepared: {line}")
            x = kept_rows(x, kept)
            if size > x.n_rows * max_copies:
                raise CurationError(
                    f"size {size} is more than the {x.n_rows * max_copies} rows that preparation leaves of {len(pool)} "
                    f"({folder}/prepared/dropped.html shows the others); lower it, or give --no-prepare"
                )
        compiled = any(Path(kmeans.__file__).parent.glob("__pycache__/*.nbi"))
        first = "" if compiled else "; kernels are compiled first, once"
        clock.begin("cluster", f"{x.n_rows:,} rows of {x.dim} dimensions{first}")
        tree, found = cluster_folder(x, folder / "tree", fit, overwrite)
        skipped += ["tree"] if found else []
        clock.begin("sample")
        report = folder / "report.html"
        drawn: dict[str, Any] = {
            "strategy": strategy,
            "method": "balanced",
            "max_copies": max_copies,
            "seed": seed,
        }
        of_tree = {"tree_checksum": tree.checksum, **_subset_settings(size, **drawn)}
        if finished_subset(folder / "subset", of_tree, overwrite) is None:
            report.unlink(missing_ok=True)  # of another subset: a kill must not leave it beside the new one
        subset, found = sample_folder(tree, folder / "subset", size, **drawn, pool=pool, overwrite=overwrite)
        skipped += ["subset"] if found else []
        clock.begin("check", "is the tree sound? (--no-check: not asked)" if check else "")
        findings = check_subset(tree, subset, x, seed) if check else []
        left_out = None
        if preparation is not None:
            counts = preparation["dropped"] | ({"unreadable": len(unreadable)} if unreadable else {})
            left_out = {**counts, "see": "prepared/dropped.html"} if counts else None
        clock.begin("report")
        verdict = write_report(
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
            overwrite=overwrite,
        )
        say(clock.line())
        if labels is None and "label" in pool.column_names:
            say("the pool has labels: --labels label asks the report whether the subset is more even than random rows")
        return PipelineResult(
            folder,
            tree,
            subset,
            report,
            verdict,
            skipped,
            preparation,
            beside(verdict, findings),
            seconds=clock.seconds,
        )


def place_rows(tree: ClusterTree, embeddings: Any, device: str = "cpu") -> dict[str, np.ndarray]:
    """Clusters of new rows in an old tree, as columns: ``row``, ``level_1``, ..."""
    placed = tree.assign(embeddings, device=device)
    return {"row": np.arange(len(placed))} | {f"level_{i + 1}": placed[:, i] for i in range(placed.shape[1])}


def place_in_file(
    tree: ClusterTree, embeddings: Any, path: Path, device: str = "cpu", overwrite: bool = False
) -> tuple[int, bool]:
    """Write what `place_rows` gives as parquet.

    Returns:
        Rows, and whether they were there already: placed in this tree, of these embeddings.

    Raises:
        CurationError: another file is there and is not to be overwritten, or see `ClusterTree.assign`.
    """
    x = open_embeddings(embeddings)
    key = digest_json({"tree": tree.checksum, "embeddings": [x.fingerprint(), x.digest()]})
    if path.exists() and not overwrite:
        rows = _rows_placed(path, key)
        if rows is None:
            raise CurationError(f"{path} is there already; choose another -o, or give --overwrite")
        return rows, True
    table = pa.table(place_rows(tree, x, device)).replace_schema_metadata({"placed": key})
    write_atomically(path, lambda stream: pq.write_table(table, stream, write_page_checksum=True))
    return table.num_rows, False


def _rows_placed(path: Path, key: str) -> int | None:
    """Rows of a whole file that `place_in_file` wrote with this key; None: it is another one, or damaged."""
    try:
        with pq.ParquetFile(regular_file(path), page_checksum_verification=True) as file:
            if (file.schema_arrow.metadata or {}).get(b"placed") != key.encode():
                return None
            return int(file.read().num_rows)
    except (OSError, pa.ArrowException):
        return None
