"""Commands of the tree: `cluster`, `advise`, `sample`, `assign`, and the `baseline` methods without one."""

from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from curation.cli.options import (
    Beside,
    Column,
    Device,
    DryRun,
    Embedded,
    Iterations,
    Json,
    Levels,
    Metric,
    NoCheck,
    NoVerify,
    Output,
    Overwrite,
    Resamples,
    Rows,
    Seed,
    Sizes,
    Tree,
    TreeDistance,
    TreeMetric,
    existing,
    levels_of,
    one_or_each,
    opened_pool,
)
from curation.cli.say import embeddings_of, print_json, say, typed, warn
from foundation.devices import open_device
from foundation.errors import CurationError
from foundation.locks import locked_folder
from foundation.options import number, output_option, refuse_unused

Seeding = Enum(
    "Seeding", {"auto": "auto", "kmeans++": "kmeans++", "kmeans||": "kmeans||", "random": "random"}, type=str
)
Members = Enum("Members", {"closest": "closest", "random": "random"}, type=str)
Strategy = Enum("Strategy", {"random": "random", "closest": "closest", "furthest": "furthest"}, type=str)
Method = Enum("Method", {"balanced": "balanced", "flat": "flat", "random": "random"}, type=str)
Baseline = Enum(
    "Baseline",
    {
        "random": "random",
        "oracle": "oracle",
        "flat": "flat",
        "semdedup": "semdedup",
        "d4": "d4",
        "retrieval": "retrieval",
    },
    type=str,
)


def cluster(
    embeddings: Embedded,
    *,
    output: Output,
    levels: Levels = "auto",
    resamples: Resamples = None,
    sample_sizes: Sizes = None,
    resample_strategy: Annotated[
        Members | None, typer.Option(help="Paper's levels: which members are resampled. [closest]")
    ] = None,
    seeding: Annotated[Seeding | None, typer.Option(help="Paper's levels: how centroids start. [auto]")] = None,
    iterations: Iterations = None,
    tolerance: Annotated[
        float | None, number("Paper's levels: stop when the inertia falls by less than this share. [0]", ge=0, lt=1)
    ] = None,
    metric: TreeDistance = TreeMetric("auto"),
    column: Annotated[str | None, typer.Option(help="Column of a parquet or Arrow file.")] = None,
    rows: Rows = None,
    fit_rows: Annotated[int, number("Fit level 1 on this many random rows, then assign all; 0: all.", ge=0)] = 0,
    drop_bad_rows: Annotated[
        bool, typer.Option("--drop-bad-rows", help="Leave out and count rows that are NaN, infinite, or zero (cosine).")
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    no_check: NoCheck = False,
    no_verify: NoVerify = False,
) -> None:
    """Build the cluster tree. A killed run goes on where it was.

    By default communities of neighbour graphs decide what weighs the same; with --levels 10000,1000,100 it is the
    paper's hierarchical k-means with resampling.

    Started by torchrun or srun, all processes share the work; the tree is the same for any number of them. They need
    to see the embeddings and the output under the same paths:  torchrun --nproc-per-node 8 -m curation cluster ...
    """

    from curation.group import joined
    from curation.pipeline import finished_tree, tree_fit
    from curation.plan import calibrate, plan_tree
    from curation.preparation.kept import kept_rows
    from curation.store.embeddings import open_embeddings

    source = open_embeddings(embeddings, column)
    source = source if rows is None else kept_rows(source, rows)
    settings: dict[str, Any] = {
        "levels": levels_of(levels),
        "n_resamples": one_or_each(resamples, "--resamples"),
        "sample_sizes": one_or_each(sample_sizes, "--sample-sizes"),
        "max_iterations": iterations,
        "fit_rows": fit_rows,
    }
    fit = tree_fit(
        **settings,
        resample_strategy=None if resample_strategy is None else resample_strategy.value,
        seeding=None if seeding is None else seeding.value,
        tolerance=tolerance,
        metric=metric.value,
        seed=seed,
        device=str(open_device(device)),
        work_dir=output / "unfinished",
        bad_rows="drop" if drop_bad_rows else "error",
    )
    if dry_run:
        typer.echo(plan_tree(source.n_rows, source.dim, hardware=calibrate(), dtype=source.dtype, **settings).table())
        return
    fit.restart = overwrite
    with joined(str(fit.device)) as (group, fit.device), ExitStack() as held:
        there = None
        with group.all_or_none():
            if group.first:
                held.enter_context(locked_folder(output))
                there = finished_tree(source, output, fit, overwrite)
        tree = there if group.share(there is not None) else fit.fit(source, output, group)
    if not group.first or tree is None:
        return
    if there is not None:
        say(f"{output} holds this tree already, with these settings of these embeddings")
    if dropped := tree.settings.get("dropped_rows"):
        say(f"left out {dropped:,} rows that are NaN, infinite, too large or zero")
    for row in tree.statistics():
        say(
            f"level {row['level']}: {row['k']:,} clusters of {row['points']:,} points, "
            f"{row['min_size']} to {row['max_size']} in one"
        )
    if not no_check:
        from curation.soundness import check_tree, rows_of_tree

        warn(check_tree(tree, rows_of_tree(tree, source)))
    say(f"tree {tree.checksum} in {output}")


def give_advice(
    embeddings: Embedded,
    *,
    size: Annotated[int, number("Rows of the subset that is wanted.", ge=1)],
    column: Annotated[str | None, typer.Option(help="Column of a parquet or Arrow file.")] = None,
    rows: Rows = None,
    pool: Annotated[str | None, typer.Option(help="The pool of the embeddings, for --labels.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Column of the pool with concepts of some rows, on which methods are tried."),
    ] = None,
    seed: Seed = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    no_verify: NoVerify = False,
) -> None:
    """Say which preparation, metric and levels to take, why, and what to type. Looks at a sample; no labels needed.

    No method balances every pool. With labels, a few hundred rows of them, it tries the default and the paper's and
    names the one that is the most even.
    """
    from json import dumps

    import numpy as np

    from curation.advise import advise
    from curation.pools.labels import read_labels
    from curation.pools.pool import require_own_pool
    from curation.preparation.kept import kept_rows
    from curation.store.embeddings import open_embeddings

    source = open_embeddings(embeddings, column)
    if (pool is None) != (labels is None):
        raise CurationError("--pool and --labels belong together: the pool's file, and the column of its concepts")
    known = None
    if pool is not None and labels is not None:
        opened, made_of = opened_pool(pool, None), source.metadata.get("pool_fingerprint")
        require_own_pool(opened, source.n_rows, source.row_ids, made_of, "the embeddings")
        known = read_labels(labels, opened)
    source = source if rows is None else kept_rows(source, rows)
    if known is not None:
        known = known.take(np.arange(source.n_rows) if source.row_ids is None else np.asarray(source.row_ids))
    kept = None if rows is None else str(rows)
    found = advise(source, size, str(embeddings), seed, kept, known, progress=not json)
    typer.echo(dumps(found.as_dict(), indent=2) if json else found.table())


def sample(
    context: typer.Context,
    tree: Tree,
    *,
    output: Output,
    size: Annotated[int, number("Rows to draw, copies counted.", ge=1)],
    strategy: Annotated[Strategy, typer.Option(help="Which rows of a cluster go first.")] = Strategy("random"),
    method: Annotated[Method, typer.Option(help="Balanced top-down, flat over level 1, or random.")] = Method(
        "balanced"
    ),
    max_copies: Annotated[int, number("How often one row may be taken.", ge=1, le=1_000_000)] = 1,
    weights: Annotated[
        bool, typer.Option("--weights", help="Also write weights.npy, one probability per row.")
    ] = False,
    embeddings: Beside = None,
    pool: Annotated[str | None, typer.Option(help="The pool: adds the column path (or key) of its files.")] = None,
    column: Column = None,
    no_check: NoCheck = False,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    no_verify: NoVerify = False,
    json: Json = False,
) -> None:
    """Draw a subset from a tree."""
    from curation.pipeline import sample_folder
    from curation.trees.subset import WEIGHTS
    from curation.trees.tree import ClusterTree
    from foundation.files import save_array

    refuse_unused(context, method.value, {"strategy": ["balanced", "flat"]})
    found = ClusterTree.load(tree)
    opened = opened_pool(pool, column)
    if opened is not None:
        found.check_pool(opened)
    checked = not no_check and method is Method("balanced")
    beside = embeddings_of(found, tree, embeddings) if checked or embeddings is not None else None
    with locked_folder(output):
        subset, there = sample_folder(
            found,
            output,
            size,
            strategy=strategy.value,
            method=method.value,
            max_copies=max_copies,
            seed=seed,
            pool=opened,
            overwrite=overwrite,
        )
        if weights:
            save_array(output / WEIGHTS, found.sampling_weights(size))
    if checked:
        from curation.soundness import check_subset

        warn(check_subset(found, subset, beside))
    say(f"{len(subset):,} rows ({len(subset.ids):,} distinct) in {output}/subset.parquet{', as before' * there}")
    if json:
        print_json({"subset": output / "subset.parquet", "rows": len(subset), "distinct": len(subset.ids)})


def assign(
    tree: Tree,
    embeddings: Annotated[Path, typer.Argument(help="New rows, embedded by the same network.", callback=existing)],
    output: Annotated[Path, output_option(endings=(".parquet", ".pq"))],
    column: Annotated[str | None, typer.Option(help="Column of a parquet or Arrow file.")] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    no_verify: NoVerify = False,
) -> None:
    """Place new rows in an old tree, without fitting again: a parquet file with one cluster column per level."""
    from curation.pipeline import place_in_file
    from curation.store.embeddings import open_embeddings
    from curation.trees.tree import ClusterTree

    rows, there = place_in_file(
        ClusterTree.load(tree), open_embeddings(embeddings, column), output, str(open_device(device)), overwrite
    )
    say(f"{rows:,} rows placed in {output}{', as before' * there}")


def baseline(
    context: typer.Context,
    method: Annotated[Baseline, typer.Argument(help="random, oracle, flat, semdedup, d4 or retrieval.")],
    embeddings: Embedded,
    *,
    output: Output,
    size: Annotated[int, number("Rows of the subset.", ge=1)],
    clusters: Annotated[int, number("k of flat, semdedup and d4; 0: a row in 50, at most 50,000.", ge=0)] = 0,
    trusted: Annotated[Path | None, typer.Option(help="retrieval: embeddings of the trusted set.")] = None,
    pool: Annotated[str | None, typer.Option(help="oracle: the pool with the labels.")] = None,
    labels: Annotated[str, typer.Option(help="oracle: column with the true concepts.")] = "label",
    dedup_share: Annotated[float, number("d4: share of the rows that its first step keeps.", gt=0, le=1)] = 0.75,
    metric: Annotated[Metric, typer.Option(help="flat: distance.")] = Metric("cosine"),
    rows: Rows = None,
    column: Annotated[str | None, typer.Option(help="Column of a parquet or Arrow file, else of the pool.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    no_verify: NoVerify = False,
) -> None:
    """Draw a subset by a method that hierarchical k-means is compared with."""
    from curation.baselines import OF_SOME, baseline_folder, clusters_of, plan_of
    from curation.pools.pool import open_pool
    from curation.preparation.kept import kept_rows
    from curation.store.embeddings import has_columns, open_embeddings

    refuse_unused(context, method.value, OF_SOME)
    of_pool = None if pool is None or has_columns(embeddings) else column
    source = open_embeddings(embeddings, None if of_pool else column)
    source = source if rows is None else kept_rows(source, rows)
    k = clusters_of(method.value, source.n_rows, clusters)
    found = None if pool is None else open_pool(pool, column=of_pool)
    if dry_run:
        typer.echo(plan_of(method.value, source, size, k))
        return
    subset, there = baseline_folder(
        output,
        method.value,
        source,
        size,
        k,
        pool=found,
        labels=labels,
        trusted=trusted,
        dedup_share=dedup_share,
        metric=metric.value,
        seed=seed,
        overwrite=overwrite,
        commands=[typed()],
    )
    say(f"{len(subset):,} rows by {method.value} in {output}/subset.parquet{', as before' * there}")
