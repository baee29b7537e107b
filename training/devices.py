"""Lightning's trainer as every room uses it, and the peak speed of the devices that we know."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning
import torch

from curation.kmeans.assignment import has_bfloat16_units
from foundation.errors import CurationError

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
    """`peak_flops` of the device on which a model lies; ``given`` overrides the table where it is above 0."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return given or peak_flops(name)


def fast_precision(accelerator: str = "auto") -> str:
    """What precision "auto" stands for: "bf16-mixed" where the device multiplies bfloat16 in units of its own, else
    "32-true" (a CPU without them emulates it, seven times slower than float32).

    Args:
        accelerator: "auto", "cpu" or "gpu", as Lightning has them.
    """
    gpu = accelerator != "cpu" and torch.cuda.is_available()
    return "bf16-mixed" if has_bfloat16_units(torch.device("cuda" if gpu else "cpu")) else "32-true"


class Devices(Protocol):
    """What `make_trainer` reads of a room's ``speed`` settings; see there for their meaning."""

    @property
    def accelerator(self) -> str: ...
    @property
    def devices(self) -> int: ...
    @property
    def nodes(self) -> int: ...
    @property
    def strategy(self) -> str: ...
    @property
    def micro_batch_size(self) -> int: ...


def make_trainer(
    speed: Devices,
    folder: Path,
    steps: int,
    batch_size: int,
    precision: Any,
    callbacks: Sequence[lightning.Callback],
    fsdp_blocks: set[type] | None = None,
) -> lightning.Trainer:
    """A trainer that counts steps, keeps no checkpoints and logs nothing by itself.

    Args:
        batch_size: samples per optimiser step over all processes; what micro-batches leave over is accumulated.
        fsdp_blocks: modules that FSDP shards one by one.

    Raises:
        CurationError: the accelerator or the devices are not there.
    """
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    strategy: Any = speed.strategy
    if strategy == "fsdp":
        from lightning.pytorch.strategies import FSDPStrategy
        from torch.distributed.fsdp import MixedPrecision

        half = precision == "bf16-mixed"
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
                precision=precision,
                max_steps=steps,
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
    share = trainer.world_size * (speed.micro_batch_size or max(batch_size // trainer.world_size, 1))
    trainer.accumulate_grad_batches = max(batch_size // share, 1)
    return trainer
