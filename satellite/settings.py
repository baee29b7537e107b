"""Settings of a canopy-height run, filled from YAML or the command line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import training.settings
from foundation.errors import CurationError
from foundation.settings import (
    BelowOne,
    Choices,
    Count,
    CountOrZero,
    NonNegative,
    Positive,
    Range,
    Share,
    Weight,
    check,
    read_settings,
)
from pretrain.settings import check_timm_args
from satellite.normalise import PUBLISHED
from training.settings import RunSettings, fill_run

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
    blocks: list[CountOrZero] = field(default_factory=list)
    trainable: bool = False

    def __post_init__(self) -> None:
        check(self, "backbone")
        check_timm_args(self.args)


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

    kind: Annotated[str, Choices(*HEADS)] = "dpt"
    output: Annotated[str, Choices(*OUTPUTS)] = "linear_bins"
    n_bins: Annotated[int, Range(ge=2, le=1 << 16)] = 256
    lowest: Positive = 0.01
    highest: Annotated[float, Range(gt=0, le=1000)] = 100.0
    width: Annotated[int, Range(ge=1, le=1 << 16)] = 128
    readout: bool = True

    def __post_init__(self) -> None:
        check(self, "head")
        if self.lowest >= self.highest:
            raise CurationError(f"head.lowest is {self.lowest}; it must be below head.highest, {self.highest}")


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

    sig: Weight = 1.0
    gradient: Weight = 0.0
    l1: Weight = 0.0
    huber: Weight = 0.0
    offset: Positive = 1.0
    delta: Positive = 2.0
    sig_warmup: NonNegative = 0.02

    def __post_init__(self) -> None:
        check(self, "loss")
        if not any((self.sig, self.gradient, self.l1, self.huber)):
            raise CurationError("loss.sig, loss.gradient, loss.l1 and loss.huber are all 0; one of them must train")


@dataclass(frozen=True)
class SpeedSettings(training.settings.SpeedSettings):
    """Where and how fast a run computes.

    Attributes:
        cache_gb: tiles are kept in memory up to this (with n_workers=0).
    """

    checkpoint_every: Count = 500
    log_every: Count = 50
    cache_gb: NonNegative = 1.0


@dataclass(frozen=True)
class TrainSettings(RunSettings):
    """A run; samples are tiles.

    Attributes:
        steps: of the optimiser.
        learning_rate, weight_decay, warmup, clip: AdamW; warm-up in steps, or below 1 as a share; cosine to 0.
        backbone_rate: factor of the learning rate for a trainable backbone.
        symmetries: turn and mirror tiles, all eight ways alike.
        jitter: each band is multiplied by 1 +- this and shifted by +- this many standard deviations.
        statistics: "data" takes those of the training tiles; or tolan, chmv2, imagenet; "backbone": of the teacher.
        white: value of the file that is 1; 0: 255 or 65535 for integers, 1 for floats.
        min_valid: least share of pixels with a height for a tile to be trained on.
    """

    steps: Count = 2000
    learning_rate: Positive = 1e-3
    weight_decay: NonNegative = 1e-4
    warmup: NonNegative = 0.05
    clip: NonNegative = 1.0
    backbone_rate: NonNegative = 0.1
    symmetries: bool = True
    jitter: BelowOne = 0.0
    statistics: Annotated[str, Choices("data", "backbone", *PUBLISHED)] = "data"
    white: NonNegative = 0.0
    min_valid: Share = 0.05
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    head: HeadSettings = field(default_factory=HeadSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    speed: SpeedSettings = field(default_factory=SpeedSettings)


def load_settings(path: str | Path | None = None, overrides: list[str] | None = None) -> TrainSettings:
    """Settings from a YAML file, then ``key=value`` overrides such as ``head.kind=linear``."""
    return settings_from(read_settings(path, overrides))


def settings_from(content: dict[str, Any]) -> TrainSettings:
    """Settings from a plain nested dict; names, types and ranges are checked, see `training.settings.fill_run`."""
    return fill_run(TrainSettings, content)
