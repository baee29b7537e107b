"""Learning-rate schedules as factors of the peak: linear warm-up, then cosine or warm-up-stable-decay."""

import math
from collections.abc import Callable

from foundation.errors import CurationError

SCHEDULES = ("cosine", "wsd", "constant")


def cosine(step: int, steps: int, warmup: int, final: float) -> float:
    """Linear from 0 over ``warmup`` steps, then half a cosine from 1 down to ``final`` at ``steps``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_stable_decay(step: int, steps: int, warmup: int, final: float, decay: int) -> float:
    """Linear warm-up, constant 1, then over the last ``decay`` steps linear down to ``final`` (Hu et al. 2024)."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(max(step - (steps - decay), 0) / max(decay, 1), 1.0)
    return 1 - (1 - final) * progress


def schedule(
    name: str, steps: int, warmup: int, final: float = 0.1, decay: int | None = None
) -> Callable[[int], float]:
    """The factor of the peak learning rate at a step, counted from 0.

    Args:
        name: "cosine", "wsd" or "constant" (after the warm-up).
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
    if name == "cosine":
        return lambda step: cosine(step, steps, warmup, final)
    if name == "wsd":
        if decay < 1 or warmup + decay > steps:
            raise CurationError(f"warmup {warmup} and decay {decay} do not fit into {steps} steps")
        return lambda step: warmup_stable_decay(step, steps, warmup, final, decay)
    if name == "constant":
        return lambda step: min((step + 1) / warmup, 1.0) if warmup else 1.0
    raise CurationError(f"schedule {name!r} is unknown; use cosine, wsd or constant")
