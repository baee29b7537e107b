"""Lightning's trainer as every room uses it, and the peak speed of the device on which it runs."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.throughput import get_available_flops

from curation.kmeans.assignment import has_bfloat16_units
from foundation.errors import CurationError
from training.data import BatchPlan
from training.settings import RunSettings

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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it does not know it either
            known = get_available_flops(device, torch.bfloat16)
    return known


def fast_precision(accelerator: str = "auto") -> str:
    """What precision "auto" stands for: "bf16-mixed" where the device multiplies bfloat16 in units of its own, else
    "32-true" (a CPU without them emulates it, seven times slower than float32).

    Args:
        accelerator: "auto", "cpu" or "gpu", as Lightning has them.
    """
    gpu = accelerator != "cpu" and torch.cuda.is_available()
    return "bf16-mixed" if has_bfloat16_units(torch.device("cuda" if gpu else "cpu")) else "32-true"


def make_trainer(
    settings: RunSettings,
    folder: Path,
    callbacks: Sequence[lightning.Callback],
    fsdp_blocks: set[type] | None = None,
) -> lightning.Trainer:
    """A trainer that counts steps, keeps no checkpoints and logs nothing by itself.

    Args:
        fsdp_blocks: modules that FSDP shards one by one.

    Raises:
        CurationError: the accelerator or the devices are not there, or the batch cannot be shared among them.
    """
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    speed = settings.speed
    strategy: Any = speed.strategy
    if strategy == "fsdp":
        from lightning.pytorch.strategies import FSDPStrategy
        from torch.distributed.fsdp import MixedPrecision

        half = settings.precision == "bf16-mixed"
        # Lightning's own choice also rounds sums of gradients and buffers to bfloat16
        mixed = MixedPrecision(torch.bfloat16, torch.float32, torch.float32) if half else None
        strategy = FSDPStrategy(auto_wrap_policy=fsdp_blocks or set(), state_dict_type="full", mixed_precision=mixed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a hint to use srun wherever SLURM is installed
            trainer = lightning.Trainer(
                accelerator=speed.accelerator,
                devices=speed.devices or "auto",
                num_nodes=speed.nodes,
                strategy=strategy,
                precision=settings.precision,  # type: ignore[arg-type]
                max_steps=settings.steps,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                callbacks=list(callbacks),
                default_root_dir=folder,
            )
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise CurationError(f"speed.accelerator {speed.accelerator!r}, {speed.devices} devices: {reason}") from error
    trainer.accumulate_grad_batches = BatchPlan.of(settings, 0, trainer.world_size).accumulate
    return trainer
