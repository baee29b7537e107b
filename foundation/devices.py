"""Devices by name: one answer to what "auto" is and to a device that is not there."""

from typing import TYPE_CHECKING

from foundation.errors import CurationError

if TYPE_CHECKING:
    import torch


KINDS = ("cpu", "cuda", "mps", "xpu")


def open_device(name: "str | torch.device" = "auto", mps: bool = False) -> "torch.device":
    """The device of a name.

    Args:
        name: "auto" (a CUDA GPU where there is one, else the CPU), or what torch calls it: cpu, cuda, cuda:1, ...
        mps: "auto" may be Apple's GPU, which lacks float64.

    Raises:
        CurationError: there is no such device here.
    """
    import torch

    if name == "auto":
        fallback = "mps" if mps and torch.backends.mps.is_available() else "cpu"
        return torch.device("cuda" if torch.cuda.is_available() else fallback)
    try:
        device = torch.device(name)
        if device.type not in KINDS:  # torch knows more, such as meta, which holds no numbers
            raise RuntimeError(device.type)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CurationError(f"device {str(name)!r} cannot be used here; use auto or cpu") from error
    return device


def gpu_names() -> list[str]:
    """Names of the CUDA devices that this process may use; none where there is no driver."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
