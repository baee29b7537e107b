"""What every training run is told: what decides its numbers, and where and how fast they are computed."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, TypeVar

from foundation.errors import CurationError
from foundation.settings import Choices, Count, CountOrZero, NonNegative, Range, Seed, Workers, check, fill

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
STRATEGIES = ("auto", "ddp", "fsdp")
BatchSize = Annotated[int, Range(ge=1, le=1 << 20)]


@dataclass(frozen=True)
class SpeedSettings:
    """Where and how fast a run computes; nothing here decides what it computes.

    Attributes:
        accelerator: "auto", "cpu", "gpu".
        devices: processes per machine; 0 takes every device.
        nodes: machines.
        strategy: "auto", "ddp" or "fsdp".
        n_workers: processes that read and decode.
        checkpoint_every, log_every: steps.
        peak_flops: of one device, for the MFU; 0 looks the device up.
    """

    accelerator: str = "auto"
    devices: CountOrZero = 1
    nodes: Count = 1
    strategy: Annotated[str, Choices(*STRATEGIES)] = "auto"
    n_workers: Workers = 0
    checkpoint_every: Count = 1000
    log_every: Count = 10
    peak_flops: NonNegative = 0.0

    def __post_init__(self) -> None:
        check(self, "speed")


@dataclass(frozen=True)
class RunSettings:
    """A training run as the path through `training` reads it; each trainer adds what is its own.

    Attributes:
        batch_size: samples per optimiser step, over all processes.
        micro_batch_size: samples per forward pass of one process, what is left over is accumulated; 0 takes the whole
            share of a process. Losses that compare samples see this many of every process at a time.
        seed: of the initial weights, the order of the data, and all else that is drawn.
        precision: "32-true", "bf16-mixed" (float32 weights, bfloat16 products), "16-mixed", or "auto": what this device
            computes fast (`training.devices.in_fast_precision`); the run keeps what it began with.
        speed: where and how fast.
    """

    batch_size: BatchSize = 16
    micro_batch_size: CountOrZero = 0
    seed: Seed = 0
    precision: Annotated[str, Choices(*PRECISIONS)] = "32-true"
    speed: SpeedSettings = field(default_factory=SpeedSettings)

    def __post_init__(self) -> None:
        check(self)
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise CurationError(
                f"batch_size {self.batch_size} must be a multiple of micro_batch_size {self.micro_batch_size}"
            )

    @property
    def steps(self) -> int:
        """Optimiser steps of the run: a field or a property of each trainer's settings."""
        raise NotImplementedError

    def science(self) -> dict[str, Any]:
        """The settings that decide the numbers: two runs that share them and the data may be resumed as one."""
        content = asdict(self)
        content.pop("speed")
        if not self.micro_batch_size:  # decides nothing; runs of before it counted keep their name
            content.pop("micro_batch_size")
        return content


R = TypeVar("R", bound=RunSettings)


def fill_run(kind: type[R], content: dict[str, Any]) -> R:
    """Settings of a run from a plain nested dict, see `foundation.settings.fill`.

    ``speed.micro_batch_size`` of older recipes is `RunSettings.micro_batch_size`.
    """
    speed = content.get("speed")
    if isinstance(speed, dict) and "micro_batch_size" in speed:
        speed = dict(speed)
        content = {**content, "micro_batch_size": speed.pop("micro_batch_size"), "speed": speed}
    return fill(kind, content)
