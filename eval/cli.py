"""The command ``python -m eval``: a thin shell over `eval.run`; each evaluation's dataclass is its help."""

from dataclasses import fields
from functools import partial
from inspect import getdoc
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from eval.settings import RunSettings
from foundation.command import run_command
from foundation.locks import locked_folder
from foundation.options import App, number, output_option, overwrite_option
from foundation.settings import describe, read_settings

app = App(
    help="Measure a frozen image model.\n\n"
    "python -m eval knn model=timm:vit_small_patch14_dinov2 train=imagenet-1k -o results/",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Settings = Annotated[list[str] | None, typer.Argument(help="Settings as key=value.", show_default=False)]
Output = Annotated[Path, output_option("Folder of the results.")]
Overwrite = Annotated[bool, overwrite_option("Replace results of other settings, of another model or of other data.")]


def _register(name: str, task: type) -> None:
    own, shared = describe(task), describe(RunSettings)
    text = f"{getdoc(task)}\n\n\b\nSettings of {name}:\n{own}\n\n\b\nSettings of every run:\n{shared}"

    @app.command(name=name, help=text, short_help=getdoc(task))
    def command(settings: Settings = None, output: Output = Path("results"), overwrite: Overwrite = False) -> None:
        given = read_settings(None, settings)
        shared = {entry.name for entry in fields(RunSettings)}
        own = {key: value for key, value in given.items() if key not in shared}
        _run([(name, own)], {key: value for key, value in given.items() if key in shared}, output, overwrite)


def _run(tasks: list[tuple[str, dict[str, Any]]], shared: dict[str, Any], output: Path, overwrite: bool) -> None:
    from eval.results import table
    from eval.run import run

    results = run(tasks, shared, output, overwrite)
    typer.echo(table(results.rows))
    for dataset, skipped in results.skipped.items():
        typer.echo(f"{dataset}: {len(skipped)} images could not be read, see skipped in metrics.json", err=True)
    for line in results.warnings:
        typer.echo(f"warning: {line}", err=True)
    cost = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in results.seconds.items())
    typer.echo(f"{cost}; results in {output / 'metrics.json'}", err=True)


@app.command(epilog="Example:  python -m eval suite imagenet model=checkpoint/ -o results/")
def suite(
    path: Annotated[
        Path,
        typer.Argument(
            help="YAML with a list `tasks` and settings of the run; or small, imagenet, fine_grained, dense."
        ),
    ],
    settings: Settings = None,
    output: Output = Path("results"),
    overwrite: Overwrite = False,
) -> None:
    """Run several evaluations of one model; features are computed once."""
    from eval.run import read_suite

    tasks, shared = read_suite(path)
    _run(tasks, {**shared, **read_settings(None, settings)}, output, overwrite)


@app.command(epilog="Example:  python -m eval compare results/curated results/raw")
def compare(
    folder: Annotated[Path, typer.Argument(help="Results of a model.")],
    base: Annotated[Path, typer.Argument(help="Results of the model it is compared with.")],
) -> None:
    """Paired differences of two models on the same test rows."""
    from eval.results import compare as compare_results
    from eval.results import not_compared

    differences = compare_results(folder, base)
    typer.echo(f"{base} -> {folder}, 95 % interval of the difference:", err=True)
    for found in differences:
        interval = f"{found.difference.low:+.4f} ... {found.difference.high:+.4f}"
        typer.echo(f"{found.key}: {found.base:.4f} -> {found.value:.4f}, {interval}: {found.verdict}")
    typer.echo(
        "intervals are over test rows, of one training each: other seeds of training move figures, too", err=True
    )
    if left_out := not_compared(folder, base):
        typer.echo(f"not compared, since they have no value for each test row: {', '.join(left_out)}", err=True)


@app.command(epilog="Example:  python -m eval language model=run/model tasks=hellaswag,arc_easy limit=300 bos=true")
def language(settings: Settings = None, output: Output = Path("results"), overwrite: Overwrite = False) -> None:
    """Benchmarks of a causal language model through lm_eval, without a network."""
    from eval.language import BENCHMARKS, LanguageSettings, run_language
    from eval.results import table

    if not settings:
        typer.echo(f"Settings of language:\n{describe(LanguageSettings)}")
        return
    with locked_folder(output):
        results = run_language(read_settings(None, settings), output, overwrite)
    typer.echo(table(results.rows))
    shown = {row.dataset: BENCHMARKS[row.dataset].chance for row in results.rows if row.dataset in BENCHMARKS}
    for line in results.warnings:
        typer.echo(f"warning: {line}", err=True)
    typer.echo("chance: " + ", ".join(f"{name} {value:.2f}" for name, value in shown.items() if value), err=True)
    typer.echo(f"{results.seconds['language']:.1f} s; results in {output / 'metrics.json'}", err=True)


@app.command(epilog="Example:  python -m eval ngram train=subset.parquet test=held_out.parquet pool=pool.parquet")
def ngram(settings: Settings = None, output: Output = Path("results"), overwrite: Overwrite = False) -> None:
    """Bits per byte of held-out texts under a byte n-gram model of the training texts: a judge of data in seconds."""
    from eval.ngram_task import NgramSettings, run_ngram
    from eval.results import table

    if not settings:
        typer.echo(f"Settings of ngram:\n{describe(NgramSettings)}")
        return
    with locked_folder(output):
        results = run_ngram(read_settings(None, settings), output, overwrite)
    typer.echo(table(results.rows))
    units = f"n: texts; intervals over {results.settings['documents']:,} documents"
    typer.echo(f"{results.seconds['ngram']:.1f} s; {units}; results in {output / 'metrics.json'}", err=True)


@app.command(epilog="Example:  python -m eval canopy heights.tif lidar.tif --block 100 -o results/")
def canopy(
    predicted: Annotated[Path, typer.Argument(help="Raster of predicted heights, metres.")],
    truth: Annotated[Path, typer.Argument(help="Raster of lidar heights on the same grid, metres.")],
    block: Annotated[float, number("Metres, side of the blocks that are resampled.", gt=0)] = 100.0,
    output: Output = Path("results"),
    overwrite: Overwrite = False,
) -> None:
    """Canopy height against lidar: errors, by height class, cover, edges; intervals over blocks (extra satellite)."""
    from eval.canopy_rasters import measure_maps

    with locked_folder(output):
        found = measure_maps(
            predicted, truth, block, output, overwrite, lambda line: typer.echo(f"warning: {line}", err=True)
        )
    for name, interval in found.items():
        value = f"{interval.value:.3f}" if isfinite(interval.value) else "-"
        edges = f"{interval.low:.3f} ... {interval.high:.3f}" if isfinite(interval.low) else "-"
        typer.echo(f"{name:16} {value:>8}   {edges:18} n {interval.n}")


@app.command()
def datasets() -> None:
    """List the registered datasets and where to get them."""
    from eval.registry import LAYOUTS, REGISTRY

    for name, entry in REGISTRY.items():
        hub = f"  hub:{entry.hub}" if entry.hub else ""
        typer.echo(f"{name:18} {entry.layout:10} {entry.page}{hub}")
    for layout, meaning in LAYOUTS.items():
        typer.echo(f"{layout}: {meaning}")


def main(arguments: list[str] | None = None) -> None:
    """The command; see `foundation.command.run_command` for how it ends."""
    from eval.tasks import TASKS

    for name, task in TASKS.items():
        _register(name, task)
    run_command("eval", partial(app, args=arguments, prog_name="python -m eval", standalone_mode=False))
