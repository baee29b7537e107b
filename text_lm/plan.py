"""What a training run costs, before it starts."""

from foundation.errors import CurationError
from text_lm.model import count_parameters, flops_per_token
from text_lm.settings import TrainSettings
from training.peaks import PEAK_FLOPS, peak_flops


def plan_run(
    settings: TrainSettings, vocab_size: int, device: str = "H100", mfu: float = 0.4, n_devices: int = 1
) -> dict[str, str]:
    """Parameters, tokens, FLOPs, memory of the weights' state, and hours, as lines to read.

    Memory is that of float32 weights, gradients and both AdamW moments (16 bytes a parameter), without activations;
    "fsdp" divides it by the devices.

    Raises:
        CurationError: a device whose peak is not known, or an MFU or number of devices that cannot be.
    """
    peak = settings.speed.peak_flops or peak_flops(device)
    if not peak:
        raise CurationError(f"the peak of {device!r} is not known; use {', '.join(PEAK_FLOPS)} or speed.peak_flops=")
    if not 0 < mfu <= 1 or n_devices < 1:
        raise CurationError(f"mfu {mfu} must lie in (0, 1] and the number of devices {n_devices} be at least 1")
    parameters = count_parameters(settings.model, vocab_size)
    tokens = settings.steps * settings.tokens_per_step
    flops = tokens * flops_per_token(settings.model, vocab_size, settings.model.context)
    share = n_devices if settings.speed.strategy == "fsdp" else 1
    hours = flops / (peak * mfu * n_devices) / 3600
    return {
        "parameters": f"{parameters:,}",
        "tokens": f"{tokens:,} ({tokens / parameters:.1f} a parameter)",
        "steps": f"{settings.steps:,} of {settings.tokens_per_step:,} tokens",
        "FLOPs": f"{flops:.3g}",
        "state per device": f"{16 * parameters / share / 2**30:.2f} GiB, activations not counted",
        "time": f"{hours:,.2f} hours on {n_devices} x {device} at {mfu:.0%} of peak",
        "GPU hours": f"{hours * n_devices:,.2f}",
    }
