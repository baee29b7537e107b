"""The `curate` command: a thin shell over the functions of this package."""

import os
import shlex
import sys
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from foundation.command import run_command
from foundation.devices import open_device
from foundation.errors import CurationError
from foundation.locks import locked_folder
from foundation.options import App, number, output_option, overwrite_option, refuse_unused, seed_option, whole_numbers
from foundation.paths import meant
from foundation.settings import Range

app = App(
    help="Curate a huge uncurated pool: embed it, cluster it, draw a balanced subset, see that it is balanced.\n\n"
    "Every step reads and writes plain files, can be killed and run again, and prints one clear line on bad input.",
    epilog="Start with:  curate demo -o demo/   then:  curate run YOUR_IMAGES/ -o curated/ --size 10000\n\n"
    "Without a network: efficientnet_lite0, checkpoint:PATH and timm:NAME --weights FILE for images;\n"
    "sentence (extra text), char_svd and byte_histogram for text.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _there(given: Path | list[Path]) -> Path | list[Path]:
    """Refuse a mistyped path at once: a command that would find out imports torch first."""
    for path in given if isinstance(given, list) else [given]:
        if not os.path.lexists(path):
            raise CurationError(f"{path} does not exist{meant(path)}")
    return given


Embedded = Annotated[Path, typer.Argument(help="Folder of shards, .npy, parquet or Arrow file.", callback=_there)]
Tree = Annotated[Path, typer.Argument(help="Folder of the tree.", callback=_there)]
Drawn = Annotated[Path, typer.Argument(help="Folder of the subset.", callback=_there)]
Metric = Enum("Metric", {"l2": "l2", "cosine": "cosine"}, type=str)
TreeMetric = Enum("TreeMetric", {"auto": "auto", "l2": "l2", "cosine": "cosine"}, type=str)
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

EMBEDDERS = (
    "auto: a DINOv2 for images, a sentence model for text. timm:NAME, torchvision:NAME; without a network: "
    "efficientnet_lite0 (extra demo), checkpoint:PATH, timm:NAME with --weights; of text sentence[:NAME or folder] "
    "(extra text), char_svd[:DIMENSIONS], byte_histogram; char_svd:FOLDER of embeddings: later texts on the same axes."
)
Embedder = Annotated[str, typer.Option(help=EMBEDDERS)]
Weights = Annotated[Path | None, typer.Option(help="Local .safetensors weights of timm:NAME; no network is asked.")]
Column = Annotated[str | None, typer.Option(help="Column of images or text; default: found by its type and name.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on the standard output.")]
ExportFormat = Enum(
    "ExportFormat",
    {
        "parquet": "parquet",
        "jsonl": "jsonl",
        "files": "files",
        "webdataset": "webdataset",
        "datasets": "datasets",
        "folder": "folder",
    },
    type=str,
)

Output = Annotated[Path, output_option()]
Page = Annotated[Path, output_option(endings=(".html", ".htm"))]
Levels = Annotated[
    str,
    typer.Option(
        help="auto: level 1 by k-means, the others from communities. 10000,1000,100: the paper's method, clusters of "
        "each level, finest first; 100000x100 splits each of 100000 in 100."
    ),
]
Resamples = Annotated[
    str | None,
    typer.Option(help="Paper's levels: resampled k-means runs after the first; one number or one per level. [10]"),
]
Sizes = Annotated[
    str | None,
    typer.Option(help="Paper's levels: members of each cluster in a resampled set. [half the mean cluster size]"),
]
Iterations = Annotated[
    int | None, number("Lloyd iterations of each k-means. [20; of the paper's levels 50]", ge=1, le=1_000_000)
]
TreeDistance = Annotated[
    TreeMetric, typer.Option(help="Distance. auto: cosine from 16 dimensions on, else l2; paper's levels: l2.")
]
Seed = Annotated[int, seed_option()]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU where there is one.")]
PIXELS = number("Side of the input in pixels; default: the network's.", ge=1, le=16_384)
WORKERS = number("Decoding processes; default: from the cores.", ge=0, le=1024)
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a finished result with other settings.")]
ReplacePage = Annotated[bool, overwrite_option()]
Rows = Annotated[
    Path | None, typer.Option("--rows", help="Only the rows that curate dedup, filter or run kept: that folder.")
]
NoCheck = Annotated[bool, typer.Option("--no-check", help="Do not say whether the tree is sound; saves seconds.")]
Beside = Annotated[
    Path | None, typer.Option("--embeddings", help="Of the tree, for its check; default: embeddings/ beside it.")
]


def _verify(skip: bool) -> None:
    from foundation.files import verify_checksums

    verify_checksums(not skip)


NoVerify = Annotated[
    bool,
    typer.Option(
        "--no-verify", callback=_verify, help="Do not compare checksums of what is read: saves a read of huge inputs."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and stop.")]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"curate {version('curated-ssl')}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """What stands before the name of a command."""


def _levels(text: str) -> str | list[str]:
    return text if text == "auto" else text.split(",")


def _one_or_each(text: str | None, option: str) -> Any:
    if text is None:
        return None
    numbers = whole_numbers(text, option, Range(ge=0))
    return numbers[0] if len(numbers) == 1 else numbers


def _named(embedder: str, weights: Path | None) -> str:
    """The embedder with the file of its weights, as `open_embedder` takes it."""
    return embedder if weights is None else f"{embedder}?weights={weights}"


def _print_json(content: dict[str, Any]) -> None:
    from json import dumps

    typer.echo(dumps(content, indent=2, default=str))


def _pool(pool: str | None, column: str | None) -> Any:
    from curation.pool import open_pool

    if pool is None and column is not None:
        raise CurationError("--column is a column of the pool; give --pool too")
    return None if pool is None else open_pool(pool, column=column)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _warn(findings: list[Any]) -> None:
    """One line for each thing that speaks against a tree or subset, or that is to be known of it."""
    for finding in findings:
        if finding.severity != "ok" or finding.remedy:
            word = {"bad": "BAD", "warn": "warning", "ok": "note"}[finding.severity]
            _say(f"{word}: {finding.sentence} {finding.remedy}".rstrip())


def _embeddings_of(tree: Any, folder: Path, given: Path | None) -> Any:
    from curation.soundness import find_embeddings, rows_of_tree

    found = find_embeddings(tree, folder) if given is None else rows_of_tree(tree, given)
    if found is None:
        _say(f"note: the rows of {folder} were not checked, for want of its embeddings; --embeddings FILE names them")
    return found


@app.command(epilog="Example:  curate embed images/ -o embeddings/ --embedder timm:vit_small_patch14_dinov2")
def embed(
    pool: Annotated[
        str,
        typer.Argument(help="Folder or pattern of images, parquet, JSONL, WebDataset .tar or GeoTIFF; or Hub name."),
    ],
    *,
    output: Output,
    embedder: Embedder = "auto",
    weights: Weights = None,
    column: Column = None,
    image_size: Annotated[int | None, PIXELS] = None,
    batch_size: Annotated[int, number("Images per forward pass.", ge=1, le=100_000)] = 64,
    workers: Annotated[int | None, WORKERS] = None,
    dtype: Annotated[str, typer.Option(help="Stored: float16, bfloat16 or float32.")] = "float16",
    device: Device = "auto",
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Embed the images or texts of a pool into shards. Resumes after a kill; unreadable rows are skipped and listed."""
    from curation.pipeline import skipped_lines
    from curation.pool import open_pool
    from curation.text_embedders import embed_any, has_text_only

    found, chosen = open_pool(pool, column=column), _named(embedder, weights)
    for_images: dict[str, Any] = {} if has_text_only(found) else {"n_workers": workers}
    result = embed_any(
        found, chosen, output, image_size, batch_size, device, say=_say, dtype=dtype, overwrite=overwrite, **for_images
    )
    _say(f"{result.n_rows:,} embeddings in {output}")
    for line in skipped_lines(found, result.skipped, output):
        _say(line)
    if json:
        _print_json({"embeddings": output, "rows": result.n_rows, "skipped": result.skipped})


@app.command(epilog="Example:  curate dedup embeddings/ -o kept/ --pool images/")
def dedup(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="Embeddings, or a pool of images or text.")],
    *,
    output: Output,
    pool: Annotated[str | None, typer.Option(help="The pool of the embeddings: bytes, hashes, pictures shown.")] = None,
    by: Annotated[
        str, typer.Option(help="exact, perceptual, embedding, text, separated by commas; default: all that apply.")
    ] = "",
    threshold: Annotated[float, number("Least cosine, after the mean of the pool is taken off.", gt=0, le=1)] = 0.95,
    ratio: Annotated[float, number("Greatest share of the distance to the 40th neighbour.", gt=0, le=1)] = 0.5,
    largest_group: Annotated[
        int, number("Rows up to which a group is taken for one row and its copies; of more, equal rows go.", ge=1)
    ] = 4,
    max_bits: Annotated[int, number("Bits of 64 in which perceptual hashes may differ.", ge=0, le=16)] = 2,
    overlap: Annotated[float, number("Least Jaccard similarity of the word n-grams of texts.", gt=0, le=1)] = 0.7,
    held_out: Annotated[Path | None, typer.Option(help="Embeddings that no kept row may repeat: a test set.")] = None,
    metric: Annotated[Metric, typer.Option(help="cosine: rows are brought to unit length first.")] = Metric("cosine"),
    rows: Rows = None,
    column: Annotated[str | None, typer.Option(help="Column of images or text, or of a parquet's embeddings.")] = None,
    workers: Annotated[int | None, WORKERS] = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and write nothing.")] = False,
    no_verify: NoVerify = False,
) -> None:
    """Leave out near-duplicates: which pool rows to keep, and a page that shows the others next to what they repeat."""
    from curation.group import joined
    from curation.near_duplicates import NearRule
    from curation.prepare import Preparation, keep_in_folder, open_sources

    found, embeddings = open_sources(source, pool, column)
    if held_out is not None and embeddings is None:
        raise CurationError("--held-out compares embeddings; give those of the pool instead of the pool (and --pool)")
    names = tuple(by.replace(" ", "").split(",")) if by else ("exact", "perceptual", "embedding", "text")
    if embeddings is None:
        if "embedding" in by:
            raise CurationError("--by embedding needs embeddings: curate dedup EMBEDDINGS --pool POOL")
        names = tuple(name for name in names if name != "embedding")
    elif found is None and set(names) & {"exact", "perceptual", "text"} and by:
        raise CurationError(f"--by {by} needs the pool of the embeddings: give --pool")
    used = (*names, "--held-out") if held_out is not None else names
    near = dict.fromkeys(("threshold", "ratio", "metric"), ("embedding", "--held-out"))
    other = {"largest_group": ("embedding",), "max_bits": ("perceptual",), "overlap": ("text",)}
    refuse_unused(context, used, {**near, **other})
    rule = NearRule(threshold=threshold, ratio=ratio, largest_group=largest_group)
    wanted = Preparation(names, rule, metric.value, max_bits, overlap=overlap, junk=None)
    with joined() as (group, _device):
        kept, there = keep_in_folder(
            found,
            embeddings,
            output,
            wanted,
            rows=rows,
            held_out=held_out,
            workers=workers,
            overwrite=overwrite,
            dry_run=dry_run,
            commands=[_typed()],
            group=group,
        )
    if group.first:
        _tell(kept, output, dry_run, there)


@app.command("filter", epilog="Example:  curate filter images/ -o kept/ --min-side 64 --nsfw 0.5")
def filter_rows(
    context: typer.Context,
    pool: Annotated[str, typer.Argument(help="A pool of images or text.")],
    *,
    output: Output,
    min_side: Annotated[int, number("Images: shorter side, pixels.", ge=0)] = 16,
    max_aspect: Annotated[float, number("Images: longer side by shorter; 0: any.", ge=0)] = 10.0,
    min_spread: Annotated[float, number("Images: standard deviation of a channel, 0 to 255.", ge=0, le=255)] = 4.0,
    min_detail: Annotated[float, number("Images: share of the variance that is no bare gradient.", ge=0, le=1)] = 0.01,
    max_grain: Annotated[float, number("Images: difference of neighbouring pixels; 1 is noise.", ge=0, le=2)] = 0.8,
    nsfw: Annotated[float, number("Images: greatest NSFW probability (extra filters); 0: any.", ge=0, le=1)] = 0.0,
    min_characters: Annotated[int, number("Text: characters.", ge=0)] = 20,
    min_letters: Annotated[float, number("Text: share of letters.", ge=0, le=1)] = 0.4,
    max_repeat: Annotated[float, number("Text: share of the most frequent character; 0: any.", ge=0, le=1)] = 0.4,
    rows: Rows = None,
    column: Annotated[str | None, typer.Option(help="Column of images or text.")] = None,
    workers: Annotated[int | None, WORKERS] = None,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and write nothing.")] = False,
) -> None:
    """Leave out junk: blank, tiny, noise, unreadable, or text without words. 0 leaves a rule out."""
    from curation.filters.junk import JunkFilter
    from curation.filters.text import TextJunk
    from curation.pool import open_pool
    from curation.prepare import Preparation, keep_in_folder
    from curation.text_embedders import has_text_only

    wanted = Preparation(
        by=(),
        junk=JunkFilter(min_side, max_aspect, min_spread, min_detail, max_grain),
        text_junk=TextJunk(min_characters, min_letters, max_repeat),
        nsfw=nsfw,
    )
    found = open_pool(pool, column=column)
    of_images = ("min_side", "max_aspect", "min_spread", "min_detail", "max_grain", "nsfw")
    of_text = ("min_characters", "min_letters", "max_repeat")
    kinds = dict.fromkeys(of_images, ("a pool of images",)) | dict.fromkeys(of_text, ("a pool of text",))
    refuse_unused(context, "a pool of text" if has_text_only(found) else "a pool of images", kinds)
    kept, there = keep_in_folder(
        found,
        None,
        output,
        wanted,
        rows=rows,
        workers=workers,
        overwrite=overwrite,
        dry_run=dry_run,
        commands=[_typed()],
    )
    _tell(kept, output, dry_run, there)


def _typed() -> str:
    return "curate " + " ".join(sys.argv[1:])


def _tell(kept: Any, output: Path, dry_run: bool, there: bool) -> None:
    _say(kept.line() + ", as before" * there)
    for note in kept.report["notes"]:
        _say(note)
    _say("nothing was written (--dry-run)" if dry_run else f"open {output}/dropped.html to see what was left out")


@app.command(epilog="Example:  curate baseline semdedup embeddings/ -o subset/ --size 100000 --clusters 1000")
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
    from curation.embeddings import has_columns, open_embeddings
    from curation.kept import kept_rows
    from curation.pool import open_pool

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
        commands=[_typed()],
    )
    _say(f"{len(subset):,} rows by {method.value} in {output}/subset.parquet{', as before' * there}")


@app.command(epilog="Example:  curate cluster embeddings/ -o tree/ --levels 10000,1000,100 --resamples 0,10,10")
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
    from contextlib import ExitStack

    from curation.embeddings import open_embeddings
    from curation.group import joined
    from curation.kept import kept_rows
    from curation.pipeline import finished_tree, tree_fit
    from curation.plan import calibrate, plan_tree

    source = open_embeddings(embeddings, column)
    source = source if rows is None else kept_rows(source, rows)
    settings: dict[str, Any] = {
        "levels": _levels(levels),
        "n_resamples": _one_or_each(resamples, "--resamples"),
        "sample_sizes": _one_or_each(sample_sizes, "--sample-sizes"),
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
        _say(f"{output} holds this tree already, with these settings of these embeddings")
    if dropped := tree.settings.get("dropped_rows"):
        _say(f"left out {dropped:,} rows that are NaN, infinite, too large or zero")
    for row in tree.statistics():
        _say(
            f"level {row['level']}: {row['k']:,} clusters of {row['points']:,} points, "
            f"{row['min_size']} to {row['max_size']} in one"
        )
    if not no_check:
        from curation.soundness import check_tree, rows_of_tree

        _warn(check_tree(tree, rows_of_tree(tree, source)))
    _say(f"tree {tree.checksum} in {output}")


@app.command("advise", epilog="Example:  curate advise embeddings/ --size 100000")
def give_advice(
    embeddings: Embedded,
    size: Annotated[int, number("Rows of the subset that is wanted.", ge=1)],
    column: Annotated[str | None, typer.Option(help="Column of a parquet or Arrow file.")] = None,
    rows: Rows = None,
    seed: Seed = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    no_verify: NoVerify = False,
) -> None:
    """Say which preparation, metric and levels to take, why, and what to type. Looks at a sample; no labels needed."""
    from json import dumps

    from curation.advise import advise
    from curation.embeddings import open_embeddings
    from curation.kept import kept_rows

    source = open_embeddings(embeddings, column)
    source = source if rows is None else kept_rows(source, rows)
    found = advise(source, size, str(embeddings), seed, None if rows is None else str(rows))
    typer.echo(dumps(found.as_dict(), indent=2) if json else found.table())


@app.command(epilog="Example:  curate sample tree/ -o subset/ --size 100000")
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
    from curation.subset import WEIGHTS
    from curation.tree import ClusterTree
    from foundation.files import save_array

    refuse_unused(context, method.value, {"strategy": ["balanced", "flat"]})
    found = ClusterTree.load(tree)
    opened = _pool(pool, column)
    if opened is not None:
        found.check_pool(opened)
    checked = not no_check and method is Method("balanced")
    beside = _embeddings_of(found, tree, embeddings) if checked or embeddings is not None else None
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

        _warn(check_subset(found, subset, beside))
    _say(f"{len(subset):,} rows ({len(subset.ids):,} distinct) in {output}/subset.parquet{', as before' * there}")
    if json:
        _print_json({"subset": output / "subset.parquet", "rows": len(subset), "distinct": len(subset.ids)})


@app.command(epilog="Example:  curate export images/ curated/subset -o train/ --format webdataset")
def export(
    context: typer.Context,
    pool: Annotated[str, typer.Argument(help="The pool that the subset was drawn from.")],
    subset: Drawn,
    *,
    output: Output,
    format: Annotated[
        ExportFormat,
        typer.Option(
            help="parquet, jsonl (text): one file of the rows. files: a list of paths. webdataset: a folder of tar "
            "shards. datasets: for load_from_disk. folder: of pictures, hard links where the disk allows them."
        ),
    ] = ExportFormat("parquet"),
    rows_per_shard: Annotated[int, number("webdataset: samples of a shard.", ge=1)] = 10_000,
    copy: Annotated[bool, typer.Option("--copy", help="folder: copies, and no hard links.")] = False,
    column: Column = None,
    json: Json = False,
) -> None:
    """Write the rows of a subset, as trainers take them."""
    from curation.export import OF_SOME, export_subset, row_names
    from curation.pool import open_pool
    from curation.subset import Subset
    from foundation.paths import require_outside

    refuse_unused(context, format.value, OF_SOME)
    require_outside(output, pool)
    opened, drawn = open_pool(pool, column=column), Subset.load(subset)
    rows = export_subset(opened, drawn, output, format.value, rows_per_shard, copy)
    _say(f"{rows:,} rows in {output}")
    if format.value == "parquet" and "path" in row_names(opened, drawn.ids[:1]):
        _say("the pictures are not inside: it names their files; --format webdataset, datasets or folder has them")
    if json:
        _print_json({"output": output, "format": format.value, "rows": rows})


@app.command(epilog="Example:  curate demo -o demo/")
def demo(
    output: Output = Path("demo"),
    size: Annotated[int, number("Rows of the subset.", ge=1)] = 1000,
    overwrite: Overwrite = False,
) -> None:
    """Curate 6,900 pictures that come with the project (extra demo): a minute or two, no network."""
    from foundation.threads import use_free_cores

    use_free_cores()
    from curation.demo import run_demo

    result = run_demo(output, size, _say, overwrite=overwrite)
    _warn(result.findings)
    _say(result.verdict.line())
    _say(f"open {result.report} in a browser")


@app.command(epilog="Example:  curate assign tree/ more_embeddings/ -o placed.parquet")
def assign(
    tree: Tree,
    embeddings: Annotated[Path, typer.Argument(help="New rows, embedded by the same network.", callback=_there)],
    output: Annotated[Path, output_option(endings=(".parquet", ".pq"))],
    column: Annotated[str | None, typer.Option(help="Column of a parquet or Arrow file.")] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    no_verify: NoVerify = False,
) -> None:
    """Place new rows in an old tree, without fitting again: a parquet file with one cluster column per level."""
    from curation.embeddings import open_embeddings
    from curation.pipeline import place_in_file
    from curation.tree import ClusterTree

    rows, there = place_in_file(
        ClusterTree.load(tree), open_embeddings(embeddings, column), output, str(open_device(device)), overwrite
    )
    _say(f"{rows:,} rows placed in {output}{', as before' * there}")


@app.command(epilog="Example:  curate report tree/ subset/ -o report.html --pool images/ --labels label")
def report(
    tree: Tree,
    subset: Drawn,
    *,
    output: Page,
    pool: Annotated[str | None, typer.Option(help="The pool, for galleries of pictures or texts.")] = None,
    labels: Annotated[str | None, typer.Option(help="Column of the pool with true concepts.")] = None,
    column: Column = None,
    title: Annotated[str, typer.Option(help="Headline of the page.")] = "Curation report",
    embeddings: Beside = None,
    overwrite: ReplacePage = False,
    no_check: NoCheck = False,
    no_verify: NoVerify = False,
) -> None:
    """Write the report: a verdict, balance before and after, a map, galleries of clusters, one HTML file."""
    from curation.report import PAGE, write_report
    from curation.subset import Subset
    from curation.tree import ClusterTree
    from foundation.files import require_own

    require_own(output, PAGE, overwrite)
    found, drawn = ClusterTree.load(tree), Subset.load(subset)
    findings = None
    if not no_check:
        from curation.soundness import check_subset

        findings = check_subset(found, drawn, _embeddings_of(found, tree, embeddings))
    verdict = write_report(
        found,
        drawn,
        output,
        pool=_pool(pool, column),
        labels=labels,
        title=title,
        commands=["curate " + " ".join(sys.argv[1:])],
        findings=findings,
        overwrite=overwrite,
    )
    if labels is not None:
        _say(verdict.line())
    _say(f"open {output} in a browser")


@app.command(epilog="Example:  curate compare tree/ subset_a/ subset_b/ -o compare.html --pool images/ --labels label")
def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of trees and of 2 to 6 subsets drawn from them.", callback=_there)
    ],
    output: Page,
    *,
    pool: Annotated[str | None, typer.Option(help="The pool, for pictures or texts.")] = None,
    labels: Annotated[str | None, typer.Option(help="Column of the pool with true concepts.")] = None,
    column: Column = None,
    title: Annotated[str, typer.Option(help="Headline of the page.")] = "Subsets side by side",
    names: Annotated[str | None, typer.Option(help="Of the subsets, in their order, as default,paper.")] = None,
    embeddings: Beside = None,
    overwrite: ReplacePage = False,
    no_check: NoCheck = False,
    no_verify: NoVerify = False,
    json: Json = False,
) -> None:
    """Subsets of one pool side by side, of one tree or of several: balance, soundness, overlap, maps, one HTML file."""
    from curation.comparison import open_candidates, write_comparison
    from curation.report import PAGE
    from foundation.files import require_own

    require_own(output, PAGE, overwrite)
    candidates = open_candidates(folders, [name.strip() for name in names.split(",")] if names else ())
    found = _pool(pool, column)
    findings = None
    if not no_check:
        from curation.soundness import check_subset

        findings = [
            check_subset(item.tree, item.subset, _embeddings_of(item.tree, item.tree_folder or Path(), embeddings))
            for item in candidates
        ]
    commands = ["curate " + shlex.join(sys.argv[1:])]
    compared = write_comparison(
        candidates, output, found, labels, title=title, commands=commands, findings=findings, overwrite=overwrite
    )
    _say(compared.verdict.line())
    _say(f"open {output} in a browser")
    if json:
        _print_json({"page": output, "verdict": vars(compared.verdict), "subsets": compared.subsets})


@app.command(epilog="Example:  curate plan --rows 743e6 --dim 1024 --levels 100000x100,500000,50000,10000 --gpus 8")
def plan(
    *,
    rows: Annotated[float, number("Rows of the pool; 743e6 is fine.", ge=1, le=1e15)],
    dim: Annotated[int, number("Dimensions of an embedding.", ge=1, le=1_000_000)],
    levels: Levels = "auto",
    resamples: Resamples = None,
    sample_sizes: Sizes = None,
    iterations: Iterations = None,
    dtype: Annotated[str, typer.Option(help="Stored: float16, bfloat16 or float32.")] = "float16",
    gpus: Annotated[
        int, number("GPUs that share the rows; 0: this machine, measured for 3 seconds.", ge=0, le=1_000_000)
    ] = 0,
    gpu: Annotated[str, typer.Option(help="h100 or a100.")] = "h100",
    embedder: Annotated[str | None, typer.Option(help="Count embedding too: timm:NAME, sentence, char_svd.")] = None,
    image_size: Annotated[int | None, PIXELS] = None,
    no_dedup: Annotated[bool, typer.Option("--no-dedup", help="Leave out the search for near-duplicates.")] = False,
    json: Json = False,
) -> None:
    """Operations, bytes, memory and hours of a run before it starts, and levels for so many rows."""
    from dataclasses import replace

    from curation.plan import PROFILES, calibrate, plan_tree
    from curation.plan_pool import pool_stages, proposed_levels, with_pool

    if gpus and gpu not in PROFILES:
        raise CurationError(f"--gpu {gpu!r} is unknown; use one of {', '.join(PROFILES)}")
    hardware = replace(PROFILES[gpu], n_devices=gpus) if gpus else calibrate()
    found = plan_tree(
        rows,
        dim,
        _levels(levels),
        hardware,
        n_resamples=_one_or_each(resamples, "--resamples"),
        sample_sizes=_one_or_each(sample_sizes, "--sample-sizes"),
        max_iterations=iterations,
        dtype=dtype,
    )
    found = with_pool(found, pool_stages(rows, dim, hardware, embedder, image_size, not no_dedup, dtype))
    proposed = proposed_levels(rows)
    if json:
        _print_json({**found.as_dict(), "proposed_levels": proposed})
        return
    typer.echo(found.table())
    typer.echo(
        f"levels for {rows:,.0f} rows: auto (level 1 of {proposed['auto']:,} clusters), "
        f"or the paper's method with --levels {proposed['paper']}"
    )


@app.command(epilog="Example:  curate run images/ -o curated/ --size 10000 --embedder timm:vit_small_patch14_dinov2")
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
    from curation.pool import open_pool

    result = run_pipeline(
        pool if column is None else open_pool(pool, column=column),
        output,
        size,
        _named(embedder, weights),
        embeddings=embeddings,
        levels=_levels(levels),
        n_resamples=_one_or_each(resamples, "--resamples"),
        sample_sizes=_one_or_each(sample_sizes, "--sample-sizes"),
        image_size=image_size,
        metric=metric.value,
        max_copies=max_copies,
        labels=labels,
        seed=seed,
        device=device,
        commands=["curate " + " ".join(sys.argv[1:])],
        prepare=None if no_prepare else DEFAULT_PREPARATION,
        overwrite=overwrite,
        say=_say,
        check=not no_check,
    )
    _warn(result.findings)
    if result.skipped:
        _say(f"already there, not done again: {', '.join(result.skipped)}")
    if labels is not None:
        _say(result.verdict.line())
    _say(f"subset in {output}/subset/subset.parquet; open {result.report} in a browser")
    if json:
        found = [vars(finding) for finding in result.findings]
        made = {"subset": output / "subset/subset.parquet", "report": result.report, "tree": output / "tree"}
        counts = {"rows": len(result.subset), "distinct": len(result.subset.ids), "seconds": result.seconds}
        _print_json(
            {**made, **counts, "preparation": result.preparation, "verdict": vars(result.verdict), "findings": found}
        )


def main(arguments: list[str] | None = None) -> None:
    """The command; see `foundation.command.run_command` for how it ends."""
    run_command("curate", partial(app, args=arguments, prog_name="curate", standalone_mode=False))


if __name__ == "__main__":
    main()
