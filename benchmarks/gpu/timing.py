"""Seconds of work on a device, and the plain matrix product that everything is compared with."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor


def synchronize(device: str | torch.device) -> None:
    """Wait until the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], device: str, repeats: int = 5) -> list[float]:
    """Wall-clock seconds of each of ``repeats`` calls, after one that warms up."""
    work()
    synchronize(device)
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        synchronize(device)
        found.append(time.perf_counter() - started)
    return found


def matmul_tflops(device: str, side: int, inner: int = 1024) -> float:
    """TFLOP/s of (side, inner) x (inner, side) in bfloat16 on random numbers: what the libraries reach on this device.

    Of the shape of a nearest-centroid search and of a square one the faster counts.
    """
    rates = []
    for m, n, d in ((side, side, inner), (side, side, side)):
        a, b = (torch.randn(shape, device=device).to(torch.bfloat16) for shape in ((m, d), (d, n)))
        out = torch.empty((m, n), dtype=torch.bfloat16, device=device)

        def work(a: Tensor = a, b: Tensor = b, out: Tensor = out) -> Tensor:
            return torch.mm(a, b, out=out)

        rates.append(2.0 * m * n * d / statistics.median(seconds_of(work, device, 10)) / 1e12)
    return max(rates)
