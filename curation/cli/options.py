"""Options that several commands of `curate` share, and what their text stands for."""

import os
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from foundation.errors import CurationError
from foundation.options import number, output_option, seed_option, whole_numbers
from foundation.paths import meant
from foundation.settings import Range


def existing(given: Path | list[Path]) -> Path | list[Path]:
    """Refuse a mistyped path at once: a command that would find out imports torch first."""
    for path in given if isinstance(given, list) else [given]:
        if not os.path.lexists(path):
            raise CurationError(f"{path} does not exist{meant(path)}")
    return given


Embedded = Annotated[Path, typer.Argument(help="Folder of shards, .npy, parquet or Arrow file.", callback=existing)]
Tree = Annotated[Path, typer.Argument(help="Folder of the tree.", callback=existing)]
Drawn = Annotated[Path, typer.Argument(help="Folder of the subset.", callback=existing)]
Metric = Enum("Metric", {"l2": "l2", "cosine": "cosine"}, type=str)
TreeMetric = Enum("TreeMetric", {"auto": "auto", "l2": "l2", "cosine": "cosine"}, type=str)

EMBEDDERS = (
    "auto: a DINOv2 for images, a sentence model for text. timm:NAME, torchvision:NAME; without a network: "
    "efficientnet_lite0 (extra demo), checkpoint:PATH, timm:NAME with --weights; of text sentence[:NAME or folder] "
    "(extra text), char_svd[:DIMENSIONS], byte_histogram; char_svd:FOLDER of embeddings: later texts on the same axes."
)
Embedder = Annotated[str, typer.Option(help=EMBEDDERS)]
Weights = Annotated[Path | None, typer.Option(help="Local .safetensors weights of timm:NAME; no network is asked.")]
Column = Annotated[str | None, typer.Option(help="Column of images or text; default: found by its type and name.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on the standard output.")]

Output = Annotated[Path, output_option(outside=True)]
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
Rows = Annotated[
    Path | None, typer.Option("--rows", help="Only the rows that curate dedup, filter or run kept: that folder.")
]
NoCheck = Annotated[bool, typer.Option("--no-check", help="Do not say whether the tree is sound; saves seconds.")]
Beside = Annotated[
    Path | None, typer.Option("--embeddings", help="Of the tree, for its check; default: embeddings/ beside it.")
]


def verify(skip: bool) -> None:
    """Callback of --no-verify: checksums of what is read are compared, or not."""
    from foundation.files import verify_checksums

    verify_checksums(not skip)


NoVerify = Annotated[
    bool,
    typer.Option(
        "--no-verify", callback=verify, help="Do not compare checksums of what is read: saves a read of huge inputs."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and stop.")]


def levels_of(text: str) -> str | list[str]:
    """--levels: "auto", or the clusters of each level, finest first."""
    return text if text == "auto" else text.split(",")


def one_or_each(text: str | None, option: str) -> Any:
    """--resamples and --sample-sizes: one number for all levels, or a list with one for each; None: not given.

    Raises:
        CurationError: no whole numbers from 0 on.
    """
    if text is None:
        return None
    numbers = whole_numbers(text, option, Range(ge=0))
    return numbers[0] if len(numbers) == 1 else numbers


def named_embedder(embedder: str, weights: Path | None) -> str:
    """The embedder with the file of its weights, as `open_embedder` takes it."""
    return embedder if weights is None else f"{embedder}?weights={weights}"


def opened_pool(pool: str | None, column: str | None) -> Any:
    """The pool of --pool and --column; None: not given.

    Raises:
        CurationError: a column without a pool, or no pool there.
    """
    from curation.pools.pool import open_pool

    if pool is None and column is not None:
        raise CurationError("--column is a column of the pool; give --pool too")
    return None if pool is None else open_pool(pool, column=column)
