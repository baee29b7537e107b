"""Peak speed of devices, for the MFU of a run and the hours of a plan; known without Lightning."""

import warnings

import torch

# dense bfloat16, from the makers' data sheets. Lightning knows more, but counts an H200 with sparsity, an H100 NVL as a
# pair, an L40S as an L4, and consumer cards without their tensor cores
PEAK_FLOPS = {
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 peak of a device in FLOP/s; None where we do not know it, so that no false MFU is shown."""
    return next((peak for part, peak in PEAK_FLOPS.items() if part.lower() in device_name.lower()), None)


def peak_of(device: torch.device, given: float = 0.0) -> float | None:
    """`peak_flops` of a model's device, else what Lightning knows of it; ``given`` overrides both where above 0."""
    if given or device.type != "cuda":
        return given or None
    known = peak_flops(torch.cuda.get_device_name(device))
    if known is None:
        from lightning.fabric.utilities.throughput import get_available_flops

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it does not know it either
            known = get_available_flops(device, torch.bfloat16)
    return known
