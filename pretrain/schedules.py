"""Schedules over steps: warm-up, cosine, truncation. All are resolved before the training loop starts."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from foundation.errors import CurationError
from foundation.settings import Choices, NonNegative, check

Schedule = Callable[[int], float]
SHAPES = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class ScheduleSettings:
    """A value over the steps of a run.

    Attributes:
        start: at step 0.
        peak: after the warm-up.
        end: at the last step.
        warmup: of the linear way from start to peak: steps, or below 1 a share of the run.
        shape: of the way from peak to end: "cosine", "linear" or "constant" (stays at the peak).
    """

    start: float
    peak: float
    end: float
    warmup: NonNegative = 0.0
    shape: Annotated[str, Choices(*SHAPES)] = "cosine"

    def __post_init__(self) -> None:
        check(self)


def in_steps(value: float, steps: int) -> int:
    """Steps of a setting that is a number of steps, or below 1 a share of the run."""
    return round(value * steps) if value < 1 else int(value)


def schedule(settings: ScheduleSettings, steps: int, name: str = "schedule") -> Schedule:
    """The value at a step, counted from 0; after the last step it stays.

    Raises:
        CurationError: an unknown shape, or a warm-up that does not fit into the run.
    """
    warmup = in_steps(settings.warmup, steps)
    if settings.warmup < 0 or warmup >= steps:
        raise CurationError(
            f"{name}.warmup is {warmup} steps, but the run has {steps}; use fewer, or a share of the run such as 0.1"
        )
    start, peak, end = settings.start, settings.peak, settings.end

    def value(step: int) -> float:
        if step < warmup:
            return start + (peak - start) * step / warmup
        if settings.shape == "constant":
            return peak
        last = steps - 1 - warmup
        progress = min(step - warmup, last) / max(last, 1)
        if settings.shape == "cosine":
            progress = 0.5 * (1 - math.cos(math.pi * progress))
        return peak + (end - peak) * progress

    return value
