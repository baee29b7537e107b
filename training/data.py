"""The order of training: what step s sees is a function of the seed and s, for any number of processes and workers.

Nothing is drawn while it trains, so that a run that resumes in the middle of an epoch needs its step and nothing else.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning
import numpy as np
import torch
from jaxtyping import Int
from torch.utils.data import DataLoader, IterableDataset

from foundation.errors import CurationError
from foundation.threads import useful_processes
from training.settings import RunSettings


@dataclass(frozen=True)
class BatchPlan:
    """How the samples of a step are laid out over processes and micro-batches.

    Attributes:
        batch_size: samples per optimiser step, over all processes.
        micro_batch_size: samples per forward pass of one process.
        rank, world_size: this process and how many there are.
    """

    batch_size: int
    micro_batch_size: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        share = self.world_size * self.micro_batch_size
        if self.batch_size < 1 or self.micro_batch_size < 1 or self.batch_size % share:
            raise CurationError(
                f"batch size {self.batch_size} must be a positive multiple of micro-batch size x processes = "
                f"{self.micro_batch_size} x {self.world_size}"
            )

    @classmethod
    def of(cls, settings: RunSettings, rank: int, world_size: int) -> "BatchPlan":
        """The plan of a run; without a micro-batch size a process takes its whole share at a time."""
        micro = settings.micro_batch_size or max(settings.batch_size // world_size, 1)
        return cls(settings.batch_size, micro, rank, world_size)

    @property
    def accumulate(self) -> int:
        """Forward passes of each process per step."""
        return self.batch_size // (self.world_size * self.micro_batch_size)

    def within_step(self, micro: int) -> Int[np.ndarray, "m"]:
        """Places 0..batch_size-1 of this process's micro-batch: together they are the batch, each exactly once."""
        first = (micro * self.world_size + self.rank) * self.micro_batch_size
        return np.arange(first, first + self.micro_batch_size)


@dataclass(frozen=True)
class Slot:
    """Which part of which step a micro-batch is.

    Attributes:
        step: of the optimiser, from 0.
        micro: of the micro-batches of a process within the step, from 0.
        places: (m,) of its samples within the step's batch.
        batch_size: samples of the whole step.
    """

    step: int
    micro: int
    places: Int[np.ndarray, "m"]
    batch_size: int

    @property
    def numbers(self) -> Int[np.ndarray, "m"]:
        """Of its samples, counted over the whole run."""
        return self.step * self.batch_size + self.places


class StepBatches(IterableDataset[Any]):
    """Micro-batches of one process, of the steps ``start`` to ``stop``, in order.

    Args:
        make: the micro-batch of a slot; a function of the slot alone.
    """

    def __init__(self, make: Callable[[Slot], Any], plan: BatchPlan, start: int, stop: int):
        super().__init__()
        self.make, self.plan, self.start, self.stop = make, plan, start, stop

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        plan = self.plan
        # DataLoader takes one item of each worker in turn, so striding keeps the order
        for item in range(mine, (self.stop - self.start) * plan.accumulate, workers):
            step, micro = self.start + item // plan.accumulate, item % plan.accumulate
            yield self.make(Slot(step, micro, plan.within_step(micro), plan.batch_size))


class StepData(lightning.LightningDataModule):
    """The loader is made when the processes are there: only then is it known which share is whose."""

    def __init__(self, make: Callable[[Slot], Any], settings: RunSettings, start: int):
        super().__init__()
        self.make, self.settings, self.start = make, settings, start

    def train_dataloader(self) -> DataLoader[Any]:
        trainer: Any = self.trainer
        plan = BatchPlan.of(self.settings, trainer.global_rank, trainer.world_size)
        items = (self.settings.steps - self.start) * plan.accumulate
        workers = useful_processes(self.settings.speed.n_workers, items)
        return DataLoader(
            StepBatches(self.make, plan, self.start, self.settings.steps),
            batch_size=None,
            num_workers=workers,
            pin_memory=trainer.strategy.root_device.type == "cuda",
            collate_fn=_as_it_is,  # the default would turn numpy into tensors, which Lightning would move
            prefetch_factor=4 if workers else None,
        )


def _as_it_is(batch: Any) -> Any:
    return batch
