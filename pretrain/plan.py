"""What a run costs before it starts: weights, operations, memory, hours."""

from dataclasses import dataclass

from foundation.errors import CurationError
from pretrain.flops import count_parameters, flops_per_image
from pretrain.settings import PretrainSettings
from training.peaks import PEAK_FLOPS, peak_flops


@dataclass(frozen=True)
class Plan:
    """Cost of a run.

    Attributes:
        backbone_weights, head_weights: parameters of one network.
        images: seen in the whole run.
        flops_per_image: of training, student and teacher, nominal.
        flops: of the whole run.
        device_hours: at the assumed utilisation; None where the device's peak is not known.
        state_gb: student, teacher and the two moments of AdamW in float32, without activations.
        checkpoint_gb: of a checkpoint on disk.
    """

    backbone_weights: int
    head_weights: int
    images: int
    flops_per_image: float
    flops: float
    device_hours: float | None
    state_gb: float
    checkpoint_gb: float


def plan(settings: PretrainSettings, device: str = "H100", utilisation: float = 0.4) -> Plan:
    """Cost of a run on one kind of device.

    Args:
        device: as in `training.peaks.PEAK_FLOPS`; ``speed.peak_flops`` overrides it.
        utilisation: share of the peak that goes into nominal operations (published: 0.17 to 0.46).

    Raises:
        CurationError: an unknown device, or a utilisation outside 0..1.
    """
    if not 0 < utilisation <= 1:
        raise CurationError(f"utilisation {utilisation} must lie in 0..1")
    peak = settings.speed.peak_flops or peak_flops(device)
    if not peak and device != "cpu":
        raise CurationError(f"the peak of {device!r} is not known; use {', '.join(PEAK_FLOPS)} or speed.peak_flops=")
    weights, cost = count_parameters(settings), flops_per_image(settings)["total"]
    images = settings.steps * settings.batch_size
    total = weights["backbone"] + weights["heads"]
    return Plan(
        backbone_weights=weights["backbone"],
        head_weights=weights["heads"],
        images=images,
        flops_per_image=cost,
        flops=cost * images,
        device_hours=cost * images / (peak * utilisation) / 3600 if peak else None,
        state_gb=4 * 5 * total / 1e9,  # student, its gradient, two moments, teacher
        checkpoint_gb=4 * 4 * total / 1e9,
    )
