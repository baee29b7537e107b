"""Commands that read a pool: `embed`, `dedup`, `filter`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from curation.cli.options import (
    PIXELS,
    WORKERS,
    Column,
    Device,
    Embedder,
    Json,
    Metric,
    NoVerify,
    Output,
    Overwrite,
    Rows,
    Weights,
    named_embedder,
)
from curation.cli.say import print_json, say, typed
from foundation.errors import CurationError
from foundation.options import number, refuse_unused


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
    from curation.embedding.text_embedders import embed_any, has_text_only
    from curation.pipeline import skipped_lines
    from curation.pools.pool import open_pool

    found, chosen = open_pool(pool, column=column), named_embedder(embedder, weights)
    for_images: dict[str, Any] = {} if has_text_only(found) else {"n_workers": workers}
    result = embed_any(
        found, chosen, output, image_size, batch_size, device, say=say, dtype=dtype, overwrite=overwrite, **for_images
    )
    say(f"{result.n_rows:,} embeddings in {output}")
    for line in skipped_lines(found, result.skipped, output):
        say(line)
    if json:
        print_json({"embeddings": output, "rows": result.n_rows, "skipped": result.skipped})


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
        int,
        number(
            "Rows up to which a group is taken for one row and its copies; of more, equal rows go. Not asked, and "
            "--ratio not either, where pictures are compared by their looks (perceptual).",
            ge=1,
            le=40,
        ),
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
    from curation.preparation.near_duplicates import NearRule
    from curation.preparation.prepare import Preparation, keep_in_folder, open_sources

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
            commands=[typed()],
            group=group,
        )
    if group.first:
        _tell(kept, output, dry_run, there)


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
    from curation.embedding.text_embedders import has_text_only
    from curation.pools.pool import open_pool
    from curation.preparation.filters.junk import JunkFilter
    from curation.preparation.filters.text import TextJunk
    from curation.preparation.prepare import Preparation, keep_in_folder

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
        commands=[typed()],
    )
    _tell(kept, output, dry_run, there)


def _tell(kept: Any, output: Path, dry_run: bool, there: bool) -> None:
    say(kept.line() + ", as before" * there)
    for note in kept.report["notes"]:
        say(note)
    say("nothing was written (--dry-run)" if dry_run else f"open {output}/dropped.html to see what was left out")
