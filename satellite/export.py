"""A trained model in a folder: ``model.safetensors`` (backbone and head) and ``config.json`` (all else)."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from foundation.errors import CurationError, one_line
from foundation.files import check_files, checksum, load_json, save_json, whole_folder
from foundation.settings import Count, Pixels, Positive, Range
from satellite.model import CanopyModel
from satellite.normalise import BandStatistics
from satellite.settings import TrainSettings, settings_from

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class Seen:
    """The pictures that a model was trained on.

    Attributes:
        bands: 1-based bands of a raster; () takes all.
        tile: side, pixels.
        resolution: metres per pixel.
        dtype: of the files; "" in models of before.
    """

    bands: tuple[int, ...]
    tile: int
    resolution: float
    dtype: str = ""


@dataclass
class TrainedModel:
    """What a prediction needs.

    Attributes:
        model: in evaluation mode.
        statistics: of its training pictures.
        seen: what else is known of them.
        checksum: of the weights.
    """

    model: CanopyModel
    statistics: BandStatistics
    seen: Seen
    checksum: str


@dataclass
class StatisticsFile:
    """Of `BandStatistics`, as JSON."""

    mean: list[float]
    std: list[Positive]
    low: list[float]
    high: list[float]
    white: Positive
    name: str


@dataclass
class ConfigFile:
    """What ``config.json`` must hold; folders of before have no type of the files, or no checksum of the weights."""

    resolution: Positive
    tile: Pixels
    bands: list[Count]
    n_bands: Annotated[int, Range(ge=1, le=10_000)]
    statistics: StatisticsFile
    settings: dict[str, Any]
    checksum: str | None = None
    dtype: str = ""


def save_model(
    folder: Path,
    state: dict[str, Tensor],
    settings: TrainSettings,
    statistics: BandStatistics,
    seen: Seen,
) -> None:
    """Write the folder, whole or not at all; ``settings.backbone`` must not refer to another folder.

    Args:
        state: of the `CanopyModel`.
    """
    from safetensors.torch import save_file

    config: dict[str, Any] = {
        "format": 1,
        "units": "m",
        "resolution": seen.resolution,
        "tile": seen.tile,
        "bands": list(seen.bands),
        "dtype": seen.dtype,
        "n_bands": len(statistics.mean),
        "statistics": statistics.as_json(),
        "settings": asdict(settings),
    }
    with whole_folder(folder) as fresh:
        save_file({name: value.contiguous() for name, value in state.items()}, fresh / WEIGHTS)
        save_json(fresh / CONFIG, {**config, "checksum": checksum(fresh / WEIGHTS)}, seal=True)


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> TrainedModel:
    """What `save_model` wrote.

    Raises:
        CurationError: the folder is not whole, or weights and config do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    again = "train it again or copy it again"
    config = load_json(folder / CONFIG, ConfigFile, again)
    check_files([(folder / WEIGHTS, config.get("checksum"))], again)
    n = config["n_bands"]
    lengths = [len(config["statistics"][name]) for name in ("mean", "std")]
    maybe = [len(config["bands"]), *(len(config["statistics"][name]) for name in ("low", "high"))]
    if set(lengths) != {n} or not {0, n}.issuperset(maybe):
        raise CurationError(f"{folder / CONFIG} has other numbers of bands and of their statistics; {again}")
    try:
        model = CanopyModel(settings_from(config["settings"]), config["n_bands"], config["tile"])
        model.load_state_dict(load_file(folder / WEIGHTS))
        statistics = BandStatistics.from_json(config["statistics"])
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        reason = one_line(error)
        raise CurationError(f"{folder} is no whole model ({reason}); {again}") from error
    seen = Seen(tuple(config["bands"]), int(config["tile"]), float(config["resolution"]), config.get("dtype", ""))
    return TrainedModel(model.eval().requires_grad_(False).to(device), statistics, seen, checksum(folder / WEIGHTS))
