"""A trained model in a folder: ``model.safetensors`` (backbone and head) and ``config.json`` (all else)."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from foundation.errors import CurationError
from foundation.files import checksum, load_json, save_json, whole_folder
from satellite.module import CanopyModel
from satellite.normalise import BandStatistics
from satellite.settings import TrainSettings, settings_from

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass
class TrainedModel:
    """What a prediction needs.

    Attributes:
        model: in evaluation mode.
        statistics: of its training pictures.
        bands: 1-based bands of a picture that it takes; () takes all.
        tile: side of its pictures, pixels.
        resolution: metres per pixel.
        checksum: of the weights.
    """

    model: CanopyModel
    statistics: BandStatistics
    bands: tuple[int, ...]
    tile: int
    resolution: float
    checksum: str


def save_model(
    folder: Path,
    model: CanopyModel,
    settings: TrainSettings,
    statistics: BandStatistics,
    bands: tuple[int, ...],
    tile: int,
    resolution: float,
) -> None:
    """Write the folder, whole or not at all; ``settings.backbone`` must not refer to another folder."""
    from safetensors.torch import save_file

    config: dict[str, Any] = {
        "format": 1,
        "units": "m",
        "resolution": resolution,
        "tile": tile,
        "bands": list(bands),
        "n_bands": len(statistics.mean),
        "statistics": statistics.as_json(),
        "settings": asdict(settings),
    }
    with whole_folder(folder) as fresh:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, fresh / WEIGHTS)
        save_json(fresh / CONFIG, config)


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> TrainedModel:
    """What `save_model` wrote.

    Raises:
        CurationError: the folder is not whole, or weights and config do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    config = load_json(folder / CONFIG)
    try:
        model = CanopyModel(settings_from(config["settings"]), config["n_bands"], config["tile"])
        model.load_state_dict(load_file(folder / WEIGHTS))
        statistics = BandStatistics.from_json(config["statistics"])
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CurationError(f"{folder} is no whole model ({reason}); train it again or copy it again") from error
    return TrainedModel(
        model.eval().requires_grad_(False).to(device),
        statistics,
        tuple(config["bands"]),
        int(config["tile"]),
        float(config["resolution"]),
        checksum(folder / WEIGHTS),
    )
