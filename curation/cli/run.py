"""All steps at once, `run` and `demo`, and what they would cost, `plan`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from curation.cli.options import (
    PIXELS,
    Column,
    Device,
    Embedder,
    Iterations,
    Json,
    Levels,
    NoCheck,
    NoVerify,
    Output,
    Overwrite,
    Resamples,
    Seed,
    Sizes,
    TreeDistance,
    TreeMetric,
    Weights,
    levels_of,
    named_embedder,
    one_or_each,
)
from curation.cli.say import print_json, say, typed, warn
from foundation.errors import CurationError
from foundation.options import number, refuse_unused


def plan(
    context: typer.Context,
    source: Annotated[
        str | None,
        typer.Argument(help="Embeddings or a pool: rows, and of embeddings dimensions and dtype, are read off it."),
    ] = None,
    *,
    rows: Annotated[int | None, number("Rows, where there is no pool yet; 743e6 is fine.", ge=1, le=1e15)] = None,
    dim: Annotated[
        int | None, number("Dimensions of an embedding; default: of SOURCE or --embedder.", ge=1, le=1_000_000)
    ] = None,
    levels: Levels = "auto",
    resamples: Resamples = None,
    sample_sizes: Sizes = None,
    iterations: Iterations = None,
    dtype: Annotated[
        str | None, typer.Option(help="Stored: float16, bfloat16 or float32. [float16, or that of SOURCE]")
    ] = None,
    gpus: Annotated[
        int, number("GPUs that share the rows, one process each; 0: this machine, measured.", ge=0, le=1_000_000)
    ] = 0,
    gpu: Annotated[str, typer.Option(help="h100 or a100: rates are assumed from the data sheet.")] = "h100",
    embedder: Annotated[
        str | None, typer.Option(help="Count embedding too: timm:NAME, sentence, char_svd, byte_histogram.")
    ] = None,
    image_size: Annotated[int | None, PIXELS] = None,
    no_dedup: Annotated[bool, typer.Option("--no-dedup", help="Leave out the search for near-duplicates.")] = False,
    json: Json = False,
) -> None:
    """What a run costs before it starts: hours, memory, bytes, operations of each step. Nothing is written.

    Counted is what curate run does: embedding (with --embedder; without decoding
    and the memory of the network), near-duplicates, the tree. A multiply-add is
    two operations; the last column says whether GPUs work or processors alone.

    Without --gpus this machine is measured for 3 seconds: while it is busy, the
    times are too long. With --gpus they come from data sheets: a lower bound.

    A pool here:      curate plan images/ --embedder timm:vit_small_patch14_dinov2
    Paper's levels:   curate plan embeddings/ --levels 10000,1000,100
    The tree alone:   curate plan --rows 1e8 --dim 1024 --gpus 8 --no-dedup
    """
    from curation.plan import PROFILES, calibrate, plan_tree
    from curation.plan_memory import index_bytes
    from curation.plan_pool import pool_stages, proposal, proposed_levels, shape_of, with_pool

    network = "--embedder timm:NAME" if (embedder or "").startswith("timm:") else f"--embedder {embedder}"
    machine = "--gpus N" if gpus else "--gpus 0"
    refuse_unused(context, (network, machine), {"image_size": ("--embedder timm:NAME",), "gpu": ("--gpus N",)})
    if gpus and gpu not in PROFILES:
        raise CurationError(f"--gpu {gpu!r} is unknown; use one of {', '.join(PROFILES)}")
    n_rows, width, stored = shape_of(source, rows, dim, dtype, embedder)
    hardware = replace(PROFILES[gpu], n_devices=gpus) if gpus else calibrate()
    found = plan_tree(
        n_rows,
        width,
        levels_of(levels),
        hardware,
        n_resamples=one_or_each(resamples, "--resamples"),
        sample_sizes=one_or_each(sample_sizes, "--sample-sizes"),
        max_iterations=iterations,
        dtype=stored,
    )
    before = pool_stages(n_rows, width, hardware, embedder, image_size, not no_dedup, stored)
    found = with_pool(found, before, 0.0 if no_dedup else index_bytes(n_rows, width))
    if json:
        print_json({**found.as_dict(), "proposed_levels": proposed_levels(n_rows)})
        return
    typer.echo(f"{n_rows:,} row{'s' * (n_rows != 1)} of {width} x {stored}\n\n{found.table()}\n{proposal(n_rows)}")


def run(
    pool: Annotated[
        str,
        typer.Argument(
            help="Folder or pattern of images, parquet, JSONL, text, WebDataset .tar, GeoTIFF; or Hub name."
        ),
    ],
    *,
    output: Output,
    size: Annotated[int, number("Rows of the subset.", ge=1)],
    embedder: Embedder = "auto",
    weights: Weights = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="Of the pool's rows, in their order, where you have them already.")
    ] = None,
    column: Column = None,
    image_size: Annotated[int | None, PIXELS] = None,
    levels: Levels = "auto",
    resamples: Resamples = None,
    sample_sizes: Sizes = None,
    metric: TreeDistance = TreeMetric("auto"),
    max_copies: Annotated[int, number("How often one row may be taken.", ge=1, le=1_000_000)] = 1,
    labels: Annotated[str | None, typer.Option(help="Column of the pool with true concepts, for the report.")] = None,
    no_prepare: Annotated[
        bool, typer.Option("--no-prepare", help="Keep near-duplicates and junk; else they are left out and counted.")
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    no_check: NoCheck = False,
    no_verify: NoVerify = False,
    json: Json = False,
) -> None:
    """All steps, pool to report, in one folder. Steps already done with the same settings are skipped."""
    from curation.pipeline import DEFAULT_PREPARATION, run_pipeline
    from curation.pools.pool import open_pool

    result = run_pipeline(
        pool if column is None else open_pool(pool, column=column),
        output,
        size,
        named_embedder(embedder, weights),
        embeddings=embeddings,
        levels=levels_of(levels),
        n_resamples=one_or_each(resamples, "--resamples"),
        sample_sizes=one_or_each(sample_sizes, "--sample-sizes"),
        image_size=image_size,
        metric=metric.value,
        max_copies=max_copies,
        labels=labels,
        seed=seed,
        device=device,
        commands=[typed()],
        prepare=None if no_prepare else DEFAULT_PREPARATION,
        overwrite=overwrite,
        say=say,
        check=not no_check,
    )
    warn(result.findings)
    if result.skipped:
        say(f"already there, not done again: {', '.join(result.skipped)}")
    if labels is not None:
        say(result.verdict.line())
    say(f"subset in {output}/subset/subset.parquet; open {result.report} in a browser")
    if json:
        found = [vars(finding) for finding in result.findings]
        made = {"subset": output / "subset/subset.parquet", "report": result.report, "tree": output / "tree"}
        counts = {"rows": len(result.subset), "distinct": len(result.subset.ids), "seconds": result.seconds}
        print_json(
            {**made, **counts, "preparation": result.preparation, "verdict": vars(result.verdict), "findings": found}
        )


def demo(
    output: Output = Path("demo"),
    size: Annotated[int, number("Rows of the subset.", ge=1)] = 1000,
    overwrite: Overwrite = False,
) -> None:
    """Curate 6,900 pictures that come with the project (extra demo): a minute or two, no network."""
    from foundation.threads import use_free_cores

    use_free_cores()
    from curation.demo import run_demo

    result = run_demo(output, size, say, overwrite=overwrite)
    warn(result.findings)
    say(result.verdict.line())
    say(f"open {result.report} in a browser")
