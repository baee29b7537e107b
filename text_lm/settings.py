"""All settings of a training run: one dataclass, filled from a YAML file and ``key=value`` overrides."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from foundation.errors import CurationError
from foundation.files import digest_json
from foundation.settings import (
    BelowOne,
    Choices,
    Count,
    CountOrZero,
    NonNegative,
    Positive,
    Share,
    check,
    fill,
    read_settings,
)
from text_lm.model import ATTENTION, ModelSettings
from text_lm.schedules import SCHEDULES

PRECISIONS = ("auto", "32-true", "bf16-mixed")  # weights stay float32, and so do the frequencies of the rotary positions
STRATEGIES = ("auto", "ddp", "fsdp")


@dataclass
class SpeedSettings:
    """Where and how a run computes.

    Attributes:
        accelerator: "auto", "cpu", "gpu".
        devices: processes per machine; 0 takes every device.
        nodes: machines.
        strategy: "auto", "ddp" or "fsdp".
        micro_batch_size: sequences per forward pass; 0 takes all of a device's share of the batch.
        attention: see `text_lm.model.build_model`.
        compile: `torch.compile` the model.
        checkpoint_activations: recompute blocks in the backward pass: less memory, a third more work.
        n_workers: processes that read data.
        checkpoint_every: steps between checkpoints.
        log_every: steps between lines of ``metrics.jsonl``.
        peak_flops: of one device, for the MFU; 0 looks the device up.
    """

    accelerator: str = "auto"
    devices: CountOrZero = 1
    nodes: Count = 1
    strategy: Annotated[str, Choices(*STRATEGIES)] = "auto"
    micro_batch_size: CountOrZero = 0
    attention: Annotated[str, Choices(*ATTENTION)] = "sdpa"
    compile: bool = False
    checkpoint_activations: bool = False
    n_workers: CountOrZero = 0
    checkpoint_every: Count = 1000
    log_every: Count = 10
    peak_flops: NonNegative = 0.0

    def __post_init__(self) -> None:
        check(self, "speed")


@dataclass
class TrainSettings:
    """A training run. Those before ``speed`` change the numbers, ``speed`` only how fast they come.

    Attributes:
        model: shape of the model.
        tokens: token budget; the run takes the whole steps that fit into it.
        batch_size: sequences per optimiser step, over all devices.
        cross_documents: let attention cross the documents packed into one sequence.
        learning_rate: peak.
        schedule, warmup, final_lr, decay: see `text_lm.schedules.schedule`, in steps; warmup and decay below 1 are
            shares of the run.
        betas, eps, weight_decay: AdamW's; norms are not decayed.
        clip: greatest gradient norm; 0 switches clipping off.
        z_loss: weight of the z-loss; 0 switches it off.
        precision: "32-true", "bf16-mixed" (float32 weights, bfloat16 products), or "auto": what is faster on this device
            (`training.devices.fast_precision`); the run keeps what it began with.
        seed: of the initial weights and of the order of the data.
        speed: devices, compilation, workers, ...
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    tokens: Count = 1_000_000
    batch_size: Count = 16
    cross_documents: bool = False
    learning_rate: Positive = 3e-3
    schedule: Annotated[str, Choices(*SCHEDULES)] = "cosine"
    warmup: NonNegative = 0.05
    final_lr: Share = 0.1
    decay: NonNegative = 0.2
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.95)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.1
    clip: NonNegative = 1.0
    z_loss: NonNegative = 0.0
    precision: Annotated[str, Choices(*PRECISIONS)] = "32-true"
    seed: CountOrZero = 0
    speed: SpeedSettings = field(default_factory=SpeedSettings)

    def __post_init__(self) -> None:
        check(self)
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

    def science(self) -> dict[str, Any]:
        """The settings that change the numbers: two runs that share them and the data may be resumed as one."""
        content = asdict(self)
        content.pop("speed")
        return content

    def digest(self) -> str:
        return digest_json(self.science())


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
    """Settings from a plain nested dict; names, types and ranges are checked, see `foundation.settings.fill`."""
    return fill(TrainSettings, content)
