"""The `curate` command: a thin shell over the functions of this package, one file for each kind of command."""

from functools import partial
from typing import Annotated

import typer

from curation.cli.pool import dedup, embed, filter_rows
from curation.cli.results import compare, export, report
from curation.cli.run import demo, plan, run
from curation.cli.tree import assign, baseline, cluster, give_advice, sample
from foundation.command import run_command
from foundation.options import App

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

# in the order of `curate --help`, each with an example of its use
for _name, _command, _example in (
    ("run", run, "images/ -o curated/ --size 10000 --embedder timm:vit_small_patch14_dinov2"),
    ("demo", demo, "-o demo/"),
    ("plan", plan, "--rows 743e6 --dim 1024 --levels 100000x100,500000,50000,10000 --gpus 8"),
    ("embed", embed, "images/ -o embeddings/ --embedder timm:vit_small_patch14_dinov2"),
    ("dedup", dedup, "embeddings/ -o kept/ --pool images/"),
    ("filter", filter_rows, "images/ -o kept/ --min-side 64 --nsfw 0.5"),
    ("advise", give_advice, "embeddings/ --size 100000"),
    ("cluster", cluster, "embeddings/ -o tree/ --levels 10000,1000,100 --resamples 0,10,10"),
    ("sample", sample, "tree/ -o subset/ --size 100000"),
    ("baseline", baseline, "semdedup embeddings/ -o subset/ --size 100000 --clusters 1000"),
    ("assign", assign, "tree/ more_embeddings/ -o placed.parquet"),
    ("report", report, "tree/ subset/ -o report.html --pool images/ --labels label"),
    ("compare", compare, "tree/ subset_a/ subset_b/ -o compare.html --pool images/ --labels label"),
    ("export", export, "images/ curated/subset -o train/ --format webdataset"),
):
    app.command(_name, epilog=f"Example:  curate {_name} {_example}")(_command)


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


def main(arguments: list[str] | None = None) -> None:
    """The command; see `foundation.command.run_command` for how it ends."""
    run_command("curate", partial(app, args=arguments, prog_name="curate", standalone_mode=False))
