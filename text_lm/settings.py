"""All settings of a training run: one dataclass, filled from a YAML file and ``key=value`` overrides."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import training.settings
from foundation.errors import CurationError
from foundation.settings import (
    BelowOne,
    Choices,
    Count,
    NonNegative,
    Positive,
    Share,
    Weight,
    read_settings,
)
from text_lm.model import ATTENTION, ModelSettings
from training.schedules import RATES
from training.settings import RunSettings, fill_run

PRECISIONS = ("auto", "32-true", "bf16-mixed")  # weights stay float32, as do the frequencies of rotary positions


@dataclass(frozen=True)
class SpeedSettings(training.settings.SpeedSettings):
    """Where and how fast a run computes.

    Attributes:
        attention: see `text_lm.model.build_model`.
        compile: `torch.compile` the model.
        checkpoint_activations: recompute blocks in the backward pass: less memory, a third more work.
    """

    attention: Annotated[str, Choices(*ATTENTION)] = "sdpa"
    compile: bool = False
    checkpoint_activations: bool = False


@dataclass(frozen=True)
class TrainSettings(RunSettings):
    """A training run; samples are sequences of ``model.context`` tokens.

    Attributes:
        model: shape of the model.
        tokens: token budget; the run takes the whole steps that fit into it.
        cross_documents: let attention cross the documents packed into one sequence.
        learning_rate: peak.
        schedule, warmup, final_lr, decay: see `training.schedules.rate_factor`, in steps; warmup and decay below 1 are
            shares of the run.
        betas, eps, weight_decay: AdamW's; norms are not decayed.
        clip: greatest gradient norm; 0 switches clipping off.
        z_loss: weight of the z-loss; 0 switches it off.
        precision: as of every run, but 16-mixed.
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    tokens: Count = 1_000_000
    cross_documents: bool = False
    learning_rate: Positive = 3e-3
    schedule: Annotated[str, Choices(*RATES)] = "cosine"
    warmup: NonNegative = 0.05
    final_lr: Share = 0.1
    decay: NonNegative = 0.2
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.95)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.1
    clip: NonNegative = 1.0
    z_loss: Weight = 0.0
    precision: Annotated[str, Choices(*PRECISIONS)] = "32-true"
    speed: SpeedSettings = field(default_factory=SpeedSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens < self.tokens_per_step:
            raise CurationError(
                f"the budget of {self.tokens:,} tokens is less than one step of {self.batch_size} x "
                f"{self.model.context} = {self.tokens_per_step:,}; raise tokens or lower batch_size"
            )

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.model.context

    @property
    def steps(self) -> int:
        return self.tokens // self.tokens_per_step

    @property
    def warmup_steps(self) -> int:
        return _steps(self.warmup, self.steps)

    @property
    def decay_steps(self) -> int:
        return _steps(self.decay, self.steps)


def _steps(value: float, steps: int) -> int:
    return int(value * steps) if value < 1 else int(value)


def load_settings(path: str | Path | None = None, overrides: list[str] | None = None) -> TrainSettings:
    """Settings from a YAML file, then ``key=value`` overrides such as ``model.width=256``.

    ``model: small.yaml`` takes the shape from another file: relative to the first one, or to where one is when it
    is an override.

    Raises:
        CurationError: no such file, an unknown setting, or a value of another kind or out of its range.
    """
    return settings_from(read_settings(path, overrides, files=("model",)))


def settings_from(content: dict[str, Any]) -> TrainSettings:
    """Settings from a plain nested dict; names, types and ranges are checked, see `training.settings.fill_run`."""
    return fill_run(TrainSettings, content)
