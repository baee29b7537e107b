"""Commands for what comes out: `export`, `report`, `compare`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from curation.cli.options import Beside, Column, Drawn, Json, NoCheck, NoVerify, Output, Tree, existing, opened_pool
from curation.cli.say import embeddings_of, print_json, say, typed
from foundation.options import number, output_option, overwrite_option, refuse_unused

Page = Annotated[Path, output_option(endings=(".html", ".htm"))]
ReplacePage = Annotated[bool, overwrite_option()]
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
    from curation.pools.pool import open_pool
    from curation.trees.subset import Subset

    refuse_unused(context, format.value, OF_SOME)
    opened, drawn = open_pool(pool, column=column), Subset.load(subset)
    rows = export_subset(opened, drawn, output, format.value, rows_per_shard, copy)
    say(f"{rows:,} rows in {output}")
    if format.value == "parquet" and "path" in row_names(opened, drawn.ids[:1]):
        say("the pictures are not inside: it names their files; --format webdataset, datasets or folder has them")
    if json:
        print_json({"output": output, "format": format.value, "rows": rows})


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
    from curation.pages.report import PAGE, write_report
    from curation.trees.subset import Subset
    from curation.trees.tree import ClusterTree
    from foundation.files import require_own

    require_own(output, PAGE, overwrite)
    found, drawn = ClusterTree.load(tree), Subset.load(subset)
    findings = None
    if not no_check:
        from curation.soundness import check_subset

        findings = check_subset(found, drawn, embeddings_of(found, tree, embeddings))
    verdict = write_report(
        found,
        drawn,
        output,
        pool=opened_pool(pool, column),
        labels=labels,
        title=title,
        commands=[typed()],
        findings=findings,
        overwrite=overwrite,
    )
    if labels is not None:
        say(verdict.line())
    say(f"open {output} in a browser")


def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of trees and of 2 to 12 subsets drawn from them.", callback=existing)
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
    from curation.pages.comparison import open_candidates, write_comparison
    from curation.pages.report import PAGE
    from foundation.files import require_own

    require_own(output, PAGE, overwrite)
    candidates = open_candidates(folders, () if names is None else [name.strip() for name in names.split(",")])
    found = opened_pool(pool, column)
    findings = None
    if not no_check:
        from curation.soundness import check_subset

        findings = [
            check_subset(item.tree, item.subset, embeddings_of(item.tree, item.tree_folder or Path(), embeddings))
            for item in candidates
        ]
    compared = write_comparison(
        candidates, output, found, labels, title=title, commands=[typed()], findings=findings, overwrite=overwrite
    )
    say(compared.verdict.line())
    say(f"open {output} in a browser")
    if json:
        print_json({"page": output, "verdict": vars(compared.verdict), "subsets": compared.subsets})
