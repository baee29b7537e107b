"""Schedules over steps: warm-up, then cosine, linear, constant, or warm-up-stable-decay.

All are resolved before the training loop starts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from foundation.errors import CurationError
from foundation.settings import Choices, NonNegative, Range, check, require_number

Schedule = Callable[[int], float]
SHAPES = ("cosine", "linear", "constant")  # of `schedule`
RATES = ("cosine", "wsd", "constant")  # of `rate_factor`


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

    def require_within(self, allowed: Range, name: str) -> None:
        """Refuse a schedule of what its values may not be.

        Raises:
            CurationError: names the value.
        """
        for part in ("start", "peak", "end"):
            require_number(getattr(self, part), allowed, f"{name}.{part}")


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


def rate_factor(name: str, steps: int, warmup: int, final: float = 0.1, decay: int | None = None) -> Schedule:
    """The factor of the peak learning rate of a language model at a step, counted from 0.

    A linear warm-up from 0 before the first step, so that step 0 trains; ``final`` is reached after the last.

    Args:
        name: of the way from 1 to ``final``: "cosine" (half of one), "wsd" (1 until the last ``decay`` steps, then
            linear: warm-up-stable-decay, Hu et al. 2024), or "constant" (stays at 1).
        steps: length of the run.
        warmup: steps of the linear warm-up.
        final: factor at the end.
        decay: steps of the decay of "wsd"; None takes a fifth of the run.

    Raises:
        CurationError: an unknown name, or parts that do not fit into the run.
    """
    decay = max(steps // 5, 1) if decay is None else decay
    if warmup < 0 or warmup > steps or not 0 <= final <= 1:
        raise CurationError(f"warmup {warmup} must lie in 0..{steps} steps and final_lr {final} in 0..1")
    if name not in RATES:
        raise CurationError(f"schedule {name!r} is unknown; use {', '.join(RATES)}")
    if name == "wsd" and (decay < 1 or warmup + decay > steps):
        raise CurationError(f"warmup {warmup} and decay {decay} do not fit into {steps} steps")

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if name == "constant":
            return 1.0
        if name == "wsd":
            return 1 - (1 - final) * min(max(step - (steps - decay), 0) / decay, 1.0)
        progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor
