"""The command ``python -m satellite``: a thin shell over the functions of this package."""

import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from foundation.command import run_command, warn_in_one_line
from foundation.errors import CurationError
from foundation.options import App, number, output_option, overwrite_option, whole_numbers
from foundation.settings import Range
from satellite.errors import HeightWarning

app = App(
    help="Canopy height from pictures taken from above: cut tiles, train a head, predict maps, look at them.\n\n"
    "`python -m eval canopy` measures a map against lidar; `python -m pretrain` takes the pool of `pool`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Tiles = Annotated[Path, typer.Argument(help="Table that `tiles` wrote.")]
Output = Annotated[Path, output_option()]
Table = Annotated[Path, output_option(endings=(".parquet", ".pq"))]
Map = Annotated[Path, output_option(endings=(".tif", ".tiff"))]
Picture = Annotated[Path, output_option(endings=(".png",))]
Overwrite = Annotated[bool, overwrite_option()]
Crs = Annotated[str, typer.Option("--crs", help="Reproject to it, as EPSG:32610; default: the raster's own.")]
Units = Annotated[str, typer.Option(help="Of the heights: m, dm, cm, ft, us-ft.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings as key=value: head.kind=linear steps=500.")]


@app.command(epilog="Example:  python -m satellite tiles rgb.tif --heights chm.tif -o tiles.parquet --size 256")
def tiles(
    images: Annotated[list[Path], typer.Argument(help="Rasters of colour.")],
    output: Table,
    *,
    heights: Annotated[list[Path] | None, typer.Option(help="A raster of heights for each; repeat it.")] = None,
    size: Annotated[int, number("Side of a tile, pixels.", ge=8, le=16_384)] = 256,
    stride: Annotated[int, number("Pixels from tile to tile; 0: no overlap.", ge=0)] = 0,
    min_valid: Annotated[float, number("Least share of valid pixels.", ge=0, le=1)] = 0.5,
    resolution: Annotated[float, number("Metres per pixel; 0: as it is.", ge=0)] = 0.0,
    crs: Crs = "",
    bands: Annotated[str, typer.Option(help="Such as 1,2,3; default: all.")] = "",
    units: Units = "m",
    align: Annotated[bool, typer.Option("--align", help="Put heights on the grid of their picture.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Cut rasters into a pool of tiles, each with its footprint."""
    from foundation.files import require_own
    from satellite.tiles import MADE_BY, TileSettings, cut_tiles, save_tiles

    require_own(output, MADE_BY, overwrite)
    chosen = tuple(whole_numbers(bands, "--bands", Range(ge=1))) if bands else ()
    settings = TileSettings(size, stride, min_valid, resolution, crs, chosen, units, align)
    table = cut_tiles(images, heights, settings)
    save_tiles(table, output, settings)
    _say(f"{len(table):,} tiles in {output}")


@app.command(epilog="Example:  python -m satellite pool tiles.parquet -o pool.parquet; curate embed pool.parquet ...")
def pool(
    table: Tiles,
    output: Table,
    white: Annotated[float, number("Value that is white; 0: of the type.", ge=0)] = 0.0,
    overwrite: Overwrite = False,
) -> None:
    """Tiles as a pool of pictures, for `curate` and `python -m pretrain`."""
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature
    from datasets.exceptions import DatasetGenerationError

    from curation.pools.pool import save_pool
    from foundation.files import require_own, write_atomically
    from satellite.data import TileReader
    from satellite.pretraining import tile_images
    from satellite.tiles import load_tiles

    made_by = "made by satellite pool"
    require_own(output, made_by, overwrite)
    reader = TileReader(*load_tiles(table))
    rows = partial(tile_images, reader, white)
    # a cache of its own: the shared one would give old pictures of a raster that has changed
    with tempfile.TemporaryDirectory() as cache:
        try:
            made = Dataset.from_generator(rows, features=Features(image=ImageFeature()), cache_dir=cache)
        except DatasetGenerationError as error:
            raise error.__cause__ or error from None
        write_atomically(output, partial(save_pool, made, made_by=made_by))
    _say(f"{len(made):,} pictures in {output}")


@app.command(epilog="Example:  python -m satellite train tiles.parquet -o run/ backbone.name=pretrained/teacher")
def train(
    table: Tiles,
    overrides: Overrides = None,
    output: Output = Path("run"),
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file of settings.")] = None,
    block: Annotated[float, number("Metres; hold out a spatial fold of blocks of this side.", ge=0)] = 0.0,
    folds: Annotated[int, number("How many folds.", ge=2)] = 5,
    fold: Annotated[int, number("Which is held out.", ge=0)] = 0,
    margin: Annotated[float, number("Metres between train and held-out tiles.", ge=0)] = 30.0,
) -> None:
    """Train a head (or all of it); the same command after a kill goes on. Exits with 143 where SIGTERM stopped it."""
    from satellite.settings import load_settings
    from satellite.tiles import footprints, load_tiles, spatial_split

    if fold >= folds:
        raise CurationError(f"--fold is {fold}; of {folds} folds it must be below {folds}")
    settings = load_settings(config, overrides)
    known, cut = load_tiles(table)
    rows = spatial_split(footprints(known), block, folds, fold, margin).train if block else None
    from satellite.train import train as run  # loads the frameworks: a mistake above is said at once
    from training.run_folder import is_finished

    there = is_finished(output)
    result = run(settings, known, cut, output, rows)
    if not result.finished:
        _say(f"stopped at step {result.step} of {settings.steps}; the same command goes on from there")
        raise typer.Exit(143)
    if there:
        _say(f"already there, nothing to do: {result.folder}")
        return
    _say(f"{result.tiles:,} tiles, loss {result.loss:.4f}; {result.folder}")


@app.command(epilog="Example:  python -m satellite predict run/model rgb.tif -o heights.tif")
def predict(
    model: Annotated[Path, typer.Argument(help="Folder model/ of a run.")],
    image: Annotated[Path, typer.Argument(help="Raster of colour.")],
    output: Map,
    *,
    overlap: Annotated[int, number("Pixels that tiles share; -1: a quarter.", ge=-1)] = -1,
    resample: Annotated[bool, typer.Option("--resample", help="Bring it to the model's resolution.")] = False,
    match_colours: Annotated[bool, typer.Option("--match-colours", help="Another sensor than in training.")] = False,
    white: Annotated[float, number("Value that is white; 0: as in training, or of the type.", ge=0)] = 0.0,
    crs: Crs = "",
    batch_size: Annotated[int, number("Tiles at a time.", ge=1, le=65_536)] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    overwrite: Overwrite = False,
) -> None:
    """A map of heights (cloud-optimised GeoTIFF, metres); the same command after a kill goes on."""
    from foundation.files import require_own
    from satellite.infer import PredictSettings, predict_raster
    from satellite.rasters import PREDICTED

    require_own(output, PREDICTED, overwrite)
    settings = PredictSettings(overlap, resample, match_colours, white, batch_size=batch_size, device=device)
    _say(f"heights in {predict_raster(model, image, output, settings, crs or None)}")


@app.command(epilog="Example:  python -m satellite picture rgb.tif heights.tif --truth chm.tif -o side_by_side.png")
def picture(
    image: Annotated[Path, typer.Argument(help="Raster of colour.")],
    predicted: Annotated[Path, typer.Argument(help="Map that `predict` wrote.")],
    output: Picture,
    truth: Annotated[Path | None, typer.Option(help="Raster of lidar heights.")] = None,
    units: Units = "m",
    window: Annotated[str, typer.Option(help="row,column,height,width in pixels of the map; default: all.")] = "",
    overwrite: Overwrite = False,
) -> None:
    """Colour, prediction, truth and error side by side."""
    from foundation.files import require_own
    from satellite.pictures import MADE_BY, save_side_by_side

    require_own(output, MADE_BY, overwrite)
    box = None
    if window:
        numbers = whole_numbers(window, "--window", Range(ge=0))
        if len(numbers) != 4:
            raise CurationError(f"--window {window!r}: write it as row,column,height,width")
        box = (numbers[0], numbers[1], numbers[2], numbers[3])
    save_side_by_side(image, predicted, truth, output, box, units)
    _say(f"picture in {output}")


def _say(text: str) -> None:
    typer.echo(text, err=True)


def main(arguments: list[str] | None = None) -> None:
    """The command; see `foundation.command.run_command` for how it ends."""
    with warnings.catch_warnings():
        warn_in_one_line(HeightWarning)
        body = partial(app, args=arguments, prog_name="python -m satellite", standalone_mode=False)
        run_command("satellite", body, extra="satellite")
