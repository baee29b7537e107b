"""How a step's samples are laid out over processes and micro-batches."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from foundation.errors import CurationError


@dataclass(frozen=True)
class BatchPlan:
    """A function of the step, whatever the number of processes.

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

    @property
    def accumulate(self) -> int:
        """Forward passes of each process per step."""
        return self.batch_size // (self.world_size * self.micro_batch_size)

    def within_step(self, micro: int) -> Int[np.ndarray, "m"]:
        """Places 0..batch_size-1 of this process's micro-batch: together they are the batch, each exactly once."""
        first = (micro * self.world_size + self.rank) * self.micro_batch_size
        return np.arange(first, first + self.micro_batch_size)
