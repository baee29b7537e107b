"""The order of training: which sequences make up step s is a function of (seed, s), whatever the number of processes.

Because nothing is drawn while training, resuming in the middle of an epoch needs the step number and nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from curation.errors import CurationError
from text_lm.packing import TokenStream


@dataclass(frozen=True)
class BatchPlan:
    """How a step's sequences are laid out over processes and micro-batches.

    Attributes:
        batch_size: sequences per optimiser step, over all processes.
        micro_batch_size: sequences per forward pass of one process.
        length: tokens per sequence.
        rank, world_size: this process and how many there are.
    """

    batch_size: int
    micro_batch_size: int
    length: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        share = self.world_size * self.micro_batch_size
        if self.batch_size < 1 or self.micro_batch_size < 1 or self.batch_size % share:
            raise CurationError(
                f"batch size {self.batch_size} must be a positive multiple of micro-batch size x processes = "
                f"{self.micro_batch_size} x {self.world_size}"
            )

    @property
    def accumulate(self) -> int:
        """Forward passes of each process per step."""
        return self.batch_size // (self.world_size * self.micro_batch_size)

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.length

    def sequences(self, step: int, micro: int) -> Int[np.ndarray, "m"]:
        """Sequence numbers of this process's micro-batch: together they are ``step``'s batch, each exactly once."""
        first = step * self.batch_size + (micro * self.world_size + self.rank) * self.micro_batch_size
        return np.arange(first, first + self.micro_batch_size)


class StepDataset(IterableDataset[dict[str, Tensor]]):
    """Micro-batches from ``start_step`` to ``stop_step``, in order.

    Each is a dict of (m, t) int64 ``inputs``, ``targets``, ``documents``, ``positions``, and the scalar ``n_targets``:
    the targets of the whole step over all processes, by which a mean loss is the same however the batch is split.
    """

    def __init__(self, stream: TokenStream, plan: BatchPlan, start_step: int, stop_step: int):
        super().__init__()
        self.stream, self.plan, self.start_step, self.stop_step = stream, plan, start_step, stop_step

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        plan = self.plan
        micro_batches = (self.stop_step - self.start_step) * plan.accumulate
        # DataLoader takes one item of each worker in turn, so striding keeps the order
        for item in range(mine, micro_batches, workers):
            step, micro = self.start_step + item // plan.accumulate, item % plan.accumulate
            windows = self.stream.windows(plan.sequences(step, micro), plan.length)
            first = step * plan.tokens_per_step
            yield {
                "inputs": torch.from_numpy(windows.inputs),
                "targets": torch.from_numpy(windows.targets),
                "documents": torch.from_numpy(windows.documents),
                "positions": torch.from_numpy(windows.positions),
                "n_targets": torch.tensor(self.stream.count_targets(first, first + plan.tokens_per_step)),
            }


def step_loader(
    stream: TokenStream, plan: BatchPlan, start_step: int, stop_step: int, n_workers: int = 0, pin_memory: bool = False
) -> DataLoader[dict[str, Tensor]]:
    """Loader of the micro-batches of steps start..stop.

    Raises:
        CurationError: the subset has fewer tokens than one batch.
    """
    if stream.epoch_tokens < plan.tokens_per_step:
        raise CurationError(
            f"the subset has {stream.epoch_tokens:,} tokens, fewer than one batch of {plan.batch_size} x {plan.length}"
            f" = {plan.tokens_per_step:,}; use a smaller batch or a larger subset"
        )
    dataset = StepDataset(stream, plan, start_step, stop_step)
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=n_workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if n_workers else None,
    )
