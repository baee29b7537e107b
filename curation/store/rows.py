"""Some rows of embeddings as embeddings of their own, without copying more of them than fits in memory."""

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from curation.store.embeddings import Embeddings

HELD_BYTES = 4 << 30  # beyond it rows are read again in every pass
ROWS_PER_READ = 1 << 16


class SelectedRows(Embeddings):
    """The given rows of ``source``, in that order.

    Args:
        source: where they are read.
        rows: (m,) ascending, so that reading is nearly sequential.
        span: start and stop, in ``rows``, of the part that is held in memory if it is small enough; None: all.
    """

    def __init__(self, source: Embeddings, rows: Int[np.ndarray, "m"], span: tuple[int, int] | None = None):
        self.source, self.rows = source, rows
        self.shards, self.offsets = source.shards, source.offsets
        self.n_rows, self.dim, self.dtype = len(rows), source.dim, source.dtype
        self.shape = (self.n_rows, self.dim)
        self.metadata, self.row_ids = source.metadata, None
        self.first, self.last = span or (0, len(rows))
        self.held: Tensor | None = None
        sample = source.take(rows[:1])
        if 0 < self.last - self.first <= HELD_BYTES // (self.dim * sample.element_size()):
            self.held = sample.new_empty((self.last - self.first, self.dim))
            for start in range(0, len(self.held), ROWS_PER_READ):  # at once they would be there twice
                piece = self.held[start : start + ROWS_PER_READ]
                piece.copy_(source.take(rows[self.first + start : self.first + start + len(piece)]))

    @property
    def in_memory(self) -> Tensor | None:
        """The rows where all are held, else None."""
        return self.held if self.held is not None and len(self.held) == self.n_rows else None

    def block(self, start: int, stop: int) -> Float[Tensor, "m d"]:
        stop = min(stop, self.n_rows)
        if self.held is not None and self.first <= start and stop <= self.last:
            return self.held[start - self.first : stop - self.first]
        return self.source.take(self.rows[start:stop])

    def take(self, rows: Int[np.ndarray, "m"]) -> Float[Tensor, "m d"]:
        return self.source.take(self.rows[np.asarray(rows, dtype=np.int64)])

    def ask_for(self, start: int, stop: int) -> None:
        if self.held is None and start < min(stop, self.n_rows):
            self.source.ask_for(int(self.rows[start]), int(self.rows[min(stop, self.n_rows) - 1]) + 1)

    def locate(self, row: int) -> str:
        return self.source.locate(int(self.rows[row]))
