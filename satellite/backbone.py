"""Feature maps of several blocks of any timm model."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foundation.errors import CurationError, one_line
from foundation.files import checksum, load_json
from foundation.paths import is_regular
from foundation.settings import Positive
from foundation.timm_models import create_timm_model
from pretrain.export import WEIGHTS, load_teacher
from satellite.normalise import BandStatistics
from satellite.settings import BackboneSettings

Maps = list[tuple[Float[Tensor, "b d h w"], Float[Tensor, "b d"] | None]]


@dataclass
class Preprocessing:
    """What ``pretrained_cfg`` of a teacher must hold."""

    mean: list[float]
    std: list[Positive]


@dataclass
class TeacherFile:
    """What ``config.json`` of a teacher must hold."""

    architecture: str
    pretrained_cfg: Preprocessing
    model_args: dict[str, Any] = field(default_factory=dict)


class Backbone(nn.Module):
    """A timm model that returns feature maps and, where it has one, the class token, of the chosen blocks.

    Attributes:
        channels: of the map of each chosen block.
        has_token: the model has a class token.
    """

    def __init__(self, model: Any, blocks: list[int], n_bands: int, image_size: int):
        super().__init__()
        self.model, self.blocks = model, blocks
        self.is_transformer = hasattr(model, "blocks") and hasattr(model, "patch_embed")
        patch = getattr(getattr(model, "patch_embed", None), "patch_size", None) or (1, 1)
        if image_size % patch[0] or image_size % patch[1]:
            raise CurationError(
                f"tiles of {image_size} pixels are no multiple of the {patch[0]}-pixel patches of the backbone; cut "
                f"them at {max(round(image_size / patch[0]), 1) * patch[0]}: --size"
            )
        with torch.no_grad():
            maps = self.eval()(torch.zeros(1, n_bands, image_size, image_size))
        self.channels = [features.shape[1] for features, _ in maps]
        self.has_token = maps[0][1] is not None

    def forward(self, images: Float[Tensor, "b c h w"]) -> Maps:
        options: dict[str, Any] = {"indices": self.blocks, "intermediates_only": True}
        if not self.is_transformer:
            return [(features, None) for features in self.model.forward_intermediates(images, **options)]
        found = self.model.forward_intermediates(
            images, norm=True, output_fmt="NCHW", return_prefix_tokens=True, **options
        )
        maps: Maps = []
        for item in found:
            features, prefix = item if isinstance(item, (tuple, list)) else (item, None)
            maps.append((features, prefix[:, 0] if prefix is not None and prefix.shape[1] else None))
        return maps


def open_backbone(settings: BackboneSettings, n_bands: int, image_size: int, n_blocks: int = 4) -> Backbone:
    """The model with its weights.

    Args:
        n_blocks: how many to take where ``settings.blocks`` names none.

    Raises:
        CurationError: timm does not know it, weights do not fit, or a block is not there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if Path(settings.name).is_dir():
        if n_bands != 3:
            raise CurationError(f"{settings.name} was pretrained on 3 bands, the tiles have {n_bands}; choose 3 bands")
        model = load_teacher(settings.name, image_size)
    else:
        args = {**settings.args, "in_chans": n_bands, "num_classes": 0}
        model = create_timm_model(settings.name, image_size, pretrained=settings.weights == "timm", **args)
        if settings.weights not in ("", "timm"):
            try:
                model.load_state_dict(load_file(settings.weights))
            except (OSError, SafetensorError, RuntimeError) as error:
                reason = one_line(error)
                raise CurationError(f"weights {settings.weights} do not fit {settings.name}: {reason}") from error
    total = len(model.blocks) if hasattr(model, "blocks") else len(model.feature_info)
    blocks = list(settings.blocks) or spread(total, n_blocks)
    for block in blocks:
        if not 0 <= block < total:
            raise CurationError(f"backbone.blocks has {block}, but {settings.name} has blocks 0..{total - 1}")
    return Backbone(model, blocks, n_bands, image_size)


def initial_weights(settings: BackboneSettings) -> str | None:
    """Checksum of the file of weights that the backbone starts from; None: it is no file, or gone since."""
    path = Path(settings.name) / WEIGHTS if Path(settings.name).is_dir() else Path(settings.weights)
    return checksum(path) if is_regular(path) else None


def spread(total: int, n: int) -> list[int]:
    """n of the blocks 0 .. total - 1, evenly, the last among them (24 blocks, 4: 5, 11, 17, 23)."""
    n = min(n, total)
    return [(i + 1) * total // n - 1 for i in range(n)]


def self_contained(settings: BackboneSettings) -> BackboneSettings:
    """The same architecture without a reference to a folder: its weights go into the checkpoint of the head."""
    if not Path(settings.name).is_dir():
        return replace(settings, weights="")
    config = load_json(Path(settings.name) / "config.json", TeacherFile, "give the folder teacher/ of a finished run")
    args = {name: value for name, value in config.get("model_args", {}).items() if name != "img_size"}
    return replace(settings, name=config["architecture"], weights="", args=args)


def statistics_of(settings: BackboneSettings, white: float) -> BandStatistics:
    """Mean and deviation that a teacher was pretrained with.

    Raises:
        CurationError: the backbone is no such folder.
    """
    path = Path(settings.name) / "config.json"
    if not path.exists() or not (path.parent / WEIGHTS).exists():
        raise CurationError(f"statistics=backbone needs the folder teacher/ of a pretraining run, not {settings.name}")
    config = load_json(path, TeacherFile, "give the folder teacher/ of a finished run")["pretrained_cfg"]
    return BandStatistics(tuple(config["mean"]), tuple(config["std"]), white=white, name="backbone")
