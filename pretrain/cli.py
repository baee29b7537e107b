"""The command ``python -m pretrain``: a thin shell over the functions of this package."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from foundation.command import run_command
from foundation.options import App, number, output_option

app = App(
    help="Pretrain a vision model on your own images by self-distillation (DINOv2), on any machine.\n\n"
    "A run can be killed and started again: it goes on where it was. Any timm backbone; the result loads with timm.",
    epilog="Is it learning? Watch knn or effective_rank in probe.jsonl: the loss may rise while features get better.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Recipe = Annotated[Path | None, typer.Option("--recipe", "-r", help="YAML file of settings; see configs/pretrain.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings as key=value: steps=1000 crops.n_local=4.")]


@app.command(
    epilog="Example:  python -m pretrain train images/ -o runs/vits -r configs/pretrain/vits16_one_gpu.yaml "
    "--subset subset/ batch_size=128"
)
def train(
    pool: Annotated[str, typer.Argument(help="Pool of images: folder, parquet, WebDataset shards, Hub name.")],
    output: Annotated[Path, output_option("Folder of the run.")],
    settings: Overrides = None,
    recipe: Recipe = None,
    subset: Annotated[
        Path | None, typer.Option(help="Subset folder of `curate sample`; default: the whole pool.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it costs and stop.")] = False,
) -> None:
    """Train on a pool, or on a subset of it; run the same again to go on after a kill."""
    from curation.embedding.small_pictures import small_for
    from curation.pools.pool import open_pool
    from curation.trees.subset import Subset
    from pretrain.settings import load_settings
    from pretrain.train import pretrain, subset_rows
    from training.run_folder import is_finished, is_first_process

    given = load_settings(recipe, settings)
    opened = open_pool(pool)
    chosen = None if subset is None else Subset.load(subset)
    rows = None if chosen is None else subset_rows(opened, chosen)
    if dry_run:
        _print_plan(recipe, settings, "H100", 0.4, len(opened) if rows is None else len(rows))
        return
    there = is_finished(output)
    if not there and is_first_process() and (line := small_for(opened, given.crops.global_size)):
        _say(f"{line}: see -r configs/pretrain/vits8_64px.yaml, or set crops.global_size and crops.local_size")
    source = str(Path(pool).resolve()) if Path(pool).exists() else pool
    result = pretrain(given, opened, output, rows, origin=None if chosen is None else chosen.metadata, source=source)
    if not result.finished:
        _say(f"stopped at step {result.step:,} of {given.steps:,}; run the same again to go on")
        raise typer.Exit(143)
    if there:
        _say(f"already there, nothing to do: {result.folder}")
        return
    seen = result.coverage
    found = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
    _say(f"{result.samples:,} images seen, {seen['unique_samples']:,.0f} different ones; {found}")
    if result.bad_images:
        _say(f"{result.bad_images} images could not be read, see {output}/bad_images.jsonl")
    _say(f"teacher in {result.folder}; load it with timm.create_model('local-dir:{result.folder}', pretrained=True)")


@app.command(epilog="Example:  python -m pretrain plan -r configs/pretrain/vitl16_short.yaml --device H100")
def plan(
    settings: Overrides = None,
    recipe: Recipe = None,
    device: Annotated[str, typer.Option(help="H100, A100, ...; or give speed.peak_flops=.")] = "H100",
    utilisation: Annotated[float, number("Share of the peak that is reached.", gt=0, le=1)] = 0.4,
) -> None:
    """What a run costs: weights, operations, memory, device hours. Nothing is trained."""
    _print_plan(recipe, settings, device, utilisation)


def _print_plan(
    recipe: Path | None, settings: list[str] | None, device: str, utilisation: float, rows: int | None = None
) -> None:
    from foundation.numbers import figure
    from pretrain.plan import plan as make_plan
    from pretrain.settings import load_settings

    given = load_settings(recipe, settings)
    found = make_plan(given, device, utilisation)
    lines = [
        ("backbone", f"{given.backbone.name}, {found.backbone_weights / 1e6:,.1f} M weights"),
        ("heads", f"{found.head_weights / 1e6:,.1f} M weights"),
        ("budget", f"{given.steps:,} steps x {given.batch_size:,} images = {found.images:,} images"),
        *([] if rows is None else [("data", f"{rows:,} rows, each seen {figure(found.images / rows)} times")]),
        ("learning rate", f"{given.peak_rate:.3g} at its peak, for this batch size"),
        ("operations", f"{found.flops_per_image:.3g} FLOP per image, {found.flops:.3g} in all"),
        ("state", f"{figure(found.state_gb)} GB for weights, gradients, moments and teacher; activations come on top"),
        ("checkpoint", f"{figure(found.checkpoint_gb)} GB"),
    ]
    if found.device_hours is not None:
        hours = "under 0.01" if found.device_hours < 0.01 else figure(found.device_hours)
        lines.append((f"{device} hours", f"{hours} at {utilisation:.0%} of the peak (an assumption)"))
    for name, text in lines:
        typer.echo(f"{name:14} {text}")


def _say(text: str) -> None:
    typer.echo(text, err=True)


def main(arguments: list[str] | None = None) -> None:
    """The command; see `foundation.command.run_command` for how it ends."""
    body = partial(app, args=arguments, prog_name="python -m pretrain", standalone_mode=False)
    run_command("pretrain", body, extra="train")
