"""Blocks of rows on their way to a device; on a GPU they stay while there is room, and disks are read once."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from curation.embeddings import Embeddings
from curation.kmeans.assignment import rows_per_read

SHARE_OF_MEMORY = 0.4  # of what is free on a GPU; the rest is for centroids, sums and scores


class Feed:
    """The rows of a span, block by block, as often as asked for, in their own dtype.

    Args:
        x: all rows.
        span: first and last (exclusive) row.
        device: where blocks go.
        room: bytes of blocks that stay on the device; None: of a GPU a share of its free memory, else 0.
    """

    def __init__(self, x: Embeddings, span: tuple[int, int], device: torch.device, room: int | None = None):
        self.x, self.span, self.device = x, span, device
        if room is None:
            there = x.in_memory is not None and x.in_memory.device == device
            worth_it = device.type == "cuda" and not there
            room = int(SHARE_OF_MEMORY * torch.cuda.mem_get_info(device)[0]) if worth_it else 0
        self.room = room
        self.kept: dict[int, Tensor] = {}

    def blocks(self) -> Iterator[tuple[int, Float[Tensor, "m d"]]]:
        """(first row, rows) from the first row to the last."""
        step, (first, last) = rows_per_read(self.x.dim), self.span
        known = first  # rows before it are on the device
        while known in self.kept:
            yield known, self.kept[known]
            known += step
        for start, block in self.x.blocks(step, (min(known, last), last)):
            block = block.to(self.device)
            if block.nbytes <= self.room:  # in order and without gaps: what does not fit is read again
                self.room -= block.nbytes
                self.kept[start] = block
            else:
                self.room = 0
            yield start, block
