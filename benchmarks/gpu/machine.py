"""The machine of a measurement: its device, memory and versions, and what makes it unfit."""

import os
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from foundation.devices import gpu_names
from foundation.errors import CurationError
from training.peaks import peak_flops

PACKAGES = ("torch", "triton", "lightning", "timm", "transformers", "datasets", "numpy", "numba")


def require(device: str) -> None:
    """Refuse a machine that cannot give the figures that are asked for.

    Raises:
        CurationError: no GPU where one is asked for, or GPUs of several kinds.
    """
    if device == "cpu":
        return
    names = gpu_names()
    if not names:
        built = "torch is built without CUDA" if torch.version.cuda is None else "the driver shows none"
        raise CurationError(
            f"no NVIDIA GPU can be used here ({built}); --device cpu --tiny runs the same code at tiny sizes"
        )
    if len(set(names)) > 1:
        kinds = ", ".join(f"{i}: {name}" for i, name in enumerate(names))
        raise CurationError(
            f"there are GPUs of several kinds ({kinds}), and figures would mix; choose one with CUDA_VISIBLE_DEVICES=0"
        )


def describe(device: str) -> dict[str, Any]:
    """Device, memory, cores, driver and versions, as JSON."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {"device": device_name(device), "cores": cores, "versions": versions}
    if device == "cpu":
        return found
    memory = torch.cuda.get_device_properties(0).total_memory
    driver = "unknown"
    if shutil.which("nvidia-smi"):
        ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(ask, capture_output=True, text=True)
        driver = done.stdout.split("\n")[0].strip() or "unknown"
    return found | {
        "gpus": gpu_names(),
        "memory_gb": memory / 1e9,
        "driver": driver,
        "cuda": str(torch.version.cuda),
        "data_sheet_tflops": (peak_flops(gpu_names()[0]) or 0.0) / 1e12,
    }


def device_name(device: str) -> str:
    """Name of the GPU, or "cpu"."""
    return "cpu" if device == "cpu" else gpu_names()[0]


def free_memory(device: str) -> float:
    """Bytes that can still be had on the device."""
    if device == "cpu":
        return 4e9
    return float(torch.cuda.mem_get_info()[0])
