"""Settings of a canopy-height run, filled from YAML or the command line."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from foundation.errors import CurationError
from satellite.normalise import PUBLISHED

HEADS = ("linear", "dpt")
OUTPUTS = ("linear_bins", "mixed_log", "regression")


@dataclass(frozen=True)
class BackboneSettings:
    """Where features come from.

    Attributes:
        name: of a timm model, or the folder ``teacher/`` of a pretraining run.
        weights: safetensors for a timm name; "" starts untrained, "timm" takes those that timm offers.
        args: further arguments of timm.
        blocks: whose outputs the head reads, from 0; [] spreads four evenly (the linear head: the last).
        trainable: fine-tune it, at ``backbone_rate`` times the learning rate.
    """

    name: str = "vit_small_patch16_224"
    weights: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    blocks: list[int] = field(default_factory=list)
    trainable: bool = False


@dataclass(frozen=True)
class HeadSettings:
    """From features to metres.

    Attributes:
        kind: "linear" (one layer) or "dpt" (decoder of Ranftl et al. 2021).
        output: "linear_bins" (Tolan et al. 2024: 256 bins, 0 to 100 m), "mixed_log" (CHMv2: finer near the ground), or
            "regression" (softplus of one number).
        n_bins: of the first two.
        lowest, highest: metres, of the first and the last bin.
        width: channels of the decoder.
        readout: give the class token to the decoder too, where there is one.
    """

    kind: str = "dpt"
    output: str = "linear_bins"
    n_bins: int = 256
    lowest: float = 0.01
    highest: float = 100.0
    width: int = 128
    readout: bool = True

    def __post_init__(self) -> None:
        for name, known in (("kind", HEADS), ("output", OUTPUTS)):
            if getattr(self, name) not in known:
                raise CurationError(f"head.{name} {getattr(self, name)!r} is unknown; use {', '.join(known)}")
        if not 0 < self.lowest < self.highest or self.n_bins < 2:
            raise CurationError(f"head: {self.n_bins} bins from {self.lowest} to {self.highest} m make no sense")


@dataclass(frozen=True)
class LossSettings:
    """Weights of the losses (satellite/losses.py); 0 leaves one out.

    Attributes:
        sig: scale-invariant log loss.
        gradient: of log heights, at four scales.
        l1, huber: of metres.
        offset: metres added before a logarithm: below it differences count little.
        delta: metres from which Huber is linear.
        sig_warmup: steps, or below 1 share of the run, without the variance part of the scale-invariant loss.
    """

    sig: float = 1.0
    gradient: float = 0.0
    l1: float = 0.0
    huber: float = 0.0
    offset: float = 1.0
    delta: float = 2.0
    sig_warmup: float = 0.02

    def __post_init__(self) -> None:
        weights = (self.sig, self.gradient, self.l1, self.huber)
        if min(weights) < 0 or not any(weights) or self.offset <= 0 or self.delta <= 0:
            raise CurationError("loss: weights must not be negative nor all 0; offset and delta must be above 0")


@dataclass(frozen=True)
class SpeedSettings:
    """Where it computes; never changes the numbers.

    Attributes:
        accelerator: auto, cpu, gpu.
        devices, nodes: how many; 0 devices takes all.
        strategy: of Lightning.
        micro_batch_size: tiles per forward pass; 0: the whole share.
        n_workers: processes that read.
        cache_gb: tiles are kept in memory up to this (with n_workers=0).
        checkpoint_every, log_every: steps.
    """

    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    micro_batch_size: int = 0
    n_workers: int = 0
    cache_gb: float = 1.0
    checkpoint_every: int = 500
    log_every: int = 50


@dataclass(frozen=True)
class TrainSettings:
    """A run.

    Attributes:
        steps, batch_size: of the optimiser; tiles over all processes.
        learning_rate, weight_decay, warmup, clip: AdamW; warm-up in steps, or below 1 as a share; cosine to 0.
        backbone_rate: factor of the learning rate for a trainable backbone.
        seed: of weights, order and augmentation.
        precision: "32-true", "bf16-mixed".
        symmetries: turn and mirror tiles, all eight ways alike.
        jitter: each band is multiplied by 1 +- this and shifted by +- this many standard deviations.
        statistics: "data" takes those of the training tiles; or tolan, chmv2, imagenet; "backbone": of the teacher.
        white: value of the file that is 1; 0: 255 or 65535 for integers, 1 for floats.
        min_valid: least share of pixels with a height for a tile to be trained on.
    """

    steps: int = 2000
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup: float = 0.05
    clip: float = 1.0
    backbone_rate: float = 0.1
    seed: int = 0
    precision: str = "32-true"
    symmetries: bool = True
    jitter: float = 0.0
    statistics: str = "data"
    white: float = 0.0
    min_valid: float = 0.05
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    head: HeadSettings = field(default_factory=HeadSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    speed: SpeedSettings = field(default_factory=SpeedSettings)

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size) < 1 or self.learning_rate <= 0:
            raise CurationError("steps, batch_size and learning_rate must be above 0")
        known = ("data", "backbone", *PUBLISHED)
        if self.statistics not in known:
            raise CurationError(f"statistics {self.statistics!r} is unknown; use {', '.join(known)}")

    def science(self) -> dict[str, Any]:
        """The settings that change the numbers."""
        content = asdict(self)
        content.pop("speed")
        return content


PARTS = {"backbone": BackboneSettings, "head": HeadSettings, "loss": LossSettings, "speed": SpeedSettings}


def settings_from(content: dict[str, Any]) -> TrainSettings:
    """Settings from a plain nested dict, every key and type checked."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        schema = OmegaConf.structured(TrainSettings)
        for part in (schema, *(schema[name] for name in PARTS)):  # frozen dataclasses are read-only
            OmegaConf.set_readonly(part, False)
        typed = OmegaConf.merge(schema, content)
        plain: Any = OmegaConf.to_container(typed, resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or getattr(error, "key", None)
        raise CurationError(f"setting {key}: {str(error).strip().splitlines()[0]}") from error
    return TrainSettings(**{**plain, **{name: part(**plain[name]) for name, part in PARTS.items()}})


def load_settings(path: str | Path | None = None, overrides: list[str] | None = None) -> TrainSettings:
    """Settings from a YAML file, then ``key=value`` overrides such as ``head.kind=linear``."""
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        given: Any = OmegaConf.load(path) if path is not None else OmegaConf.create()
        if not isinstance(given, DictConfig):
            raise CurationError(f"settings {path} must hold key: value lines")
        merged = OmegaConf.merge(given, OmegaConf.from_dotlist(overrides or []))
        content: Any = OmegaConf.to_container(merged, resolve=True)
    except OSError as error:
        raise CurationError(f"settings {path} cannot be read: {error.strerror}") from error
    except (OmegaConfBaseException, YAMLError) as error:
        raise CurationError(f"settings {path}: {str(error).strip().splitlines()[0]}") from error
    return settings_from(content)
