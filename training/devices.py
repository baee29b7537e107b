"""Lightning's trainer as every room uses it, and the precision that a device computes fast."""

import ctypes
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from curation.kmeans.assignment import has_bfloat16_units
from foundation.errors import CurationError
from training.data import BatchPlan
from training.settings import RunSettings, SpeedSettings
from training.sharding import Sharded

T = TypeVar("T", bound=RunSettings)
KIND_BYTES = 96  # of precision and name of a device
# of glibc's mallopt: free memory above which it is given back, what is asked for beyond the need, size of own mappings
TRIM_THRESHOLD, TOP_PAD, MAP_THRESHOLD = -1, -2, -3
SMALL_STEP = 2e9  # operations of a pass forwards and backwards: see docs/results/edges.md


def fast_precision(accelerator: str = "auto") -> str:
    """What precision "auto" stands for: "bf16-mixed" where the device multiplies bfloat16 in units of its own, else
    "32-true" (a CPU without them emulates it, seven times slower than float32).

    Args:
        accelerator: "auto", "cpu" or "gpu", as Lightning has them.
    """
    gpu = accelerator != "cpu" and torch.cuda.is_available()
    return "bf16-mixed" if has_bfloat16_units(torch.device("cuda" if gpu else "cpu")) else "32-true"


def in_fast_precision(settings: T) -> T:
    """Settings of a run with what "auto" stands for here, which then belongs to the run."""
    if settings.precision != "auto":
        return settings
    return replace(settings, precision=fast_precision(settings.speed.accelerator))


class SameKind(lightning.Callback):
    """Looks at what the processes of a training compute on before the first step.

    Raises:
        CurationError: they compute in different precisions, as "auto" gives on GPUs of different kinds.
    """

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.world_size == 1:
            return
        said = f"{trainer.precision} on {device_name(pl_module.device)}".encode()[:KIND_BYTES].ljust(KIND_BYTES)
        mine = torch.tensor(list(said), dtype=torch.uint8, device=pl_module.device)
        rows: Any = trainer.strategy.all_gather(mine)
        found = [bytes(row.tolist()).decode(errors="replace").strip() for row in rows.reshape(-1, KIND_BYTES).cpu()]
        kinds = {kind: found.count(kind) for kind in found}
        if len(kinds) == 1:
            return
        listed = ", ".join(f"{number} in {kind}" for kind, number in kinds.items())
        if len({kind.partition(" on ")[0] for kind in kinds}) > 1:
            raise CurationError(
                f"the processes would compute in different precisions ({listed}); set precision, or ask for GPUs of "
                "one kind (launch.constraint)"
            )
        if trainer.is_global_zero:
            print(
                f"warning: the processes are on different devices ({listed}): each step waits for the slowest, and the "
                "last digits of losses are those of this mixture; launch.constraint asks for one kind",
                file=sys.stderr,
                flush=True,
            )


class FixedOrder(DDPStrategy):
    """DDP whose gradients lie in the same order from the first step of a process to its last.

    DDP lays them out anew after a process's first backward pass, in the order in which they came. Where more than two
    processes add up, the order of the sums depends on that layout: a run that was resumed would end with other last
    digits than one that went through. So a pass whose gradients are all zero, in the order of the parameters, comes
    first.
    """

    def setup(self, trainer: lightning.Trainer) -> None:
        super().setup(trainer)
        if isinstance(self.model, DistributedDataParallel):
            settle_order(self.model)


def settle_order(model: DistributedDataParallel) -> None:
    """Let DDP lay out its gradients for good; those that there are become None."""
    module, parameters = model.module, [p for p in model.module.parameters() if p.requires_grad]

    def nothing() -> torch.Tensor:
        return torch.stack([parameter.sum().float() * 0 for parameter in parameters]).sum()

    module.forward = nothing  # of this instance, above that of its class
    try:
        model().backward()
    finally:
        del module.forward
    for parameter in parameters:
        parameter.grad = None


def _processes(speed: SpeedSettings) -> int:
    """How many compute together where the strategy is left to Lightning."""
    gpus = 0 if speed.accelerator == "cpu" else torch.cuda.device_count()
    return (speed.devices or gpus or 1) * speed.nodes


def device_name(device: torch.device) -> str:
    """What kind of device it is: "cpu", or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def keep_freed_memory() -> None:
    """Let this process use again what it freed, where its C library is glibc and the user has not set it up.

    A step on a CPU frees what the next one asks for in the same sizes; large pieces go back to the system otherwise,
    and every 4 kB of them cost a page fault again.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        for parameter, n_bytes in (MAP_THRESHOLD, 1 << 30), (TRIM_THRESHOLD, (1 << 31) - 1), (TOP_PAD, 64 << 20):
            mallopt(parameter, n_bytes)


@contextmanager
def few_threads(flops: float, trainer: lightning.Trainer) -> Iterator[None]:
    """One thread where a step on a CPU is small: its parallel parts are short, a second may gain or lose.

    Beside other busy processes each part waits until both threads have a core, which makes such a step 4 to 8 times
    slower. The choice depends on the run alone, not on the machine or its load, so a resumed run ends with the same
    bytes. What ``OMP_NUM_THREADS`` says stays.

    Args:
        flops: of an optimiser step of all processes; 0: not known, the threads stay.
    """
    passes = max(1, trainer.world_size * int(trainer.accumulate_grad_batches))
    on_cpu = trainer.strategy.root_device.type == "cpu"
    small = on_cpu and 0 < flops / passes < SMALL_STEP and "OMP_NUM_THREADS" not in os.environ
    before = torch.get_num_threads()
    if small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_trainer(
    settings: RunSettings,
    folder: Path,
    callbacks: Sequence[lightning.Callback],
) -> lightning.Trainer:
    """A trainer that counts steps, keeps no checkpoints and logs nothing by itself.

    Raises:
        CurationError: the accelerator or the devices are not there, or the batch cannot be shared among them.
    """
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    speed = settings.speed
    strategy: Any = speed.strategy
    if strategy == "fsdp":
        if settings.precision == "16-mixed":
            raise CurationError("precision 16-mixed does not go with speed.strategy=fsdp; use bf16-mixed")
        strategy = Sharded(half=settings.precision == "bf16-mixed")
    elif strategy == "ddp" or _processes(speed) > 1:
        strategy = FixedOrder()
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
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    trainer.accumulate_grad_batches = BatchPlan.of(settings, 0, trainer.world_size).accumulate
    return trainer
