"""Documents become training sequences: an endless stream of tokens, cut into windows of one length.

The stream is never written: it is a function of (documents, seed). Epoch e is the documents in the permutation of
(seed, e), and epoch e + 1 follows without a gap, so no token is dropped at an end and every count below is exact.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from foundation.errors import CurationError
from text_lm.tokens import TokenStore
from training.data import Slot

IGNORE = -100  # the target that the loss leaves out


@dataclass(frozen=True)
class Windows:
    """A batch of b sequences of t tokens.

    Attributes:
        inputs: (b, t) int64 tokens.
        targets: (b, t) int64 the token that follows each input; IGNORE where that is the first of a new document.
        documents: (b, t) int64 counts up at every document's start within a sequence: attention stays within equals.
        positions: (b, t) int64 distance from the document's start, or from the sequence's where the document is older.
    """

    inputs: Int[np.ndarray, "b t"]
    targets: Int[np.ndarray, "b t"]
    documents: Int[np.ndarray, "b t"]
    positions: Int[np.ndarray, "b t"]


class TokenStream:
    """The endless stream of a subset's tokens; any stretch of it can be read at once.

    Args:
        store: the tokenised pool.
        documents: (n,) int64 document indices of the subset; one that is taken twice occurs twice.
        seed: decides the order within every epoch.

    Attributes:
        epoch_tokens: tokens in one epoch.
    """

    def __init__(self, store: TokenStore, documents: Int[np.ndarray, "n"], seed: int):
        self.store, self.seed = store, seed
        self.documents = np.asarray(documents, np.int64)
        if not len(self.documents):
            raise CurationError("the subset has no document with text: nothing to train on")
        self.lengths = store.starts[self.documents + 1] - store.starts[self.documents]
        self.epoch_tokens = int(self.lengths.sum())
        # a window may touch two epochs; a batch that is read in order never needs more
        self._epoch = lru_cache(maxsize=2)(self._permute)

    def _permute(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Documents of an epoch in their order, and where each starts in it, (n + 1,)."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.documents))
        return self.documents[order], np.concatenate([[0], np.cumsum(self.lengths[order])])

    def read(self, start: int, stop: int) -> tuple[Int[np.ndarray, "t"], Int[np.ndarray, "t"]]:
        """Tokens start..stop of the stream, and 1 at every document's first token, else 0."""
        tokens = np.empty(stop - start, np.int64)
        firsts = np.zeros(stop - start, np.int64)
        place = start
        while place < stop:
            epoch, within = divmod(place, self.epoch_tokens)
            order, offsets = self._epoch(epoch)
            index = int(np.searchsorted(offsets, within, side="right")) - 1
            while place < stop and index < len(order):
                low = within - int(offsets[index])
                n = min(int(offsets[index + 1]) - within, stop - place)
                begin = int(self.store.starts[order[index]]) + low
                tokens[place - start : place - start + n] = self.store.tokens[begin : begin + n]
                if low == 0:
                    firsts[place - start] = 1
                place, within, index = place + n, within + n, index + 1
        return tokens, firsts

    def windows(self, sequences: Int[np.ndarray, "b"], length: int) -> Windows:
        """Sequences by their number: sequence i has the inputs ``i * length`` to ``(i + 1) * length``.

        The target of a sequence's last token is the first of the next, so every token but a document's first is a
        target exactly once an epoch.
        """
        pairs = [self.read(int(i) * length, (int(i) + 1) * length + 1) for i in sequences]
        tokens = np.stack([pair[0] for pair in pairs])
        firsts = np.stack([pair[1] for pair in pairs])
        targets = np.where(firsts[:, 1:] == 1, IGNORE, tokens[:, 1:])
        starts_here = firsts[:, :-1]
        documents = np.cumsum(starts_here, axis=1)
        ramp = np.arange(length)
        last_start = np.maximum.accumulate(np.where(starts_here == 1, ramp, 0), axis=1)
        return Windows(tokens[:, :-1], targets, documents, ramp - last_start)

    def count_targets(self, start: int, stop: int) -> int:
        """Targets of the inputs start..stop: all but the documents that start at start + 1 .. stop."""
        return (stop - start) - (self.count_starts(stop + 1) - self.count_starts(start + 1))

    def count_starts(self, stop: int) -> int:
        """Documents that start among the first ``stop`` tokens of the stream."""
        if stop <= 0:
            return 0
        epoch, within = divmod(stop, self.epoch_tokens)
        started = 0
        if within:
            started = int(np.searchsorted(self._epoch(epoch)[1][:-1], within, side="left"))
        return epoch * len(self.documents) + started

    def coverage(self, stop: int) -> dict[str, float]:
        """What the first ``stop`` tokens of the stream have shown: exact, since the order is known.

        Returns:
            ``epochs`` (a fraction), ``documents_seen`` (started, with repetitions), ``unique_documents_seen``,
            ``unique_documents``, ``mean_repetitions`` of the documents seen, ``max_repetitions``.
        """
        epoch, within = divmod(stop, self.epoch_tokens)
        seen = np.zeros(len(self.store), np.int64)
        np.add.at(seen, self.documents, epoch)
        if within:
            order, offsets = self._epoch(epoch)
            np.add.at(seen, order[: np.searchsorted(offsets[:-1], within, side="left")], 1)
        unique = int((seen > 0).sum())
        return {
            "epochs": stop / self.epoch_tokens,
            "documents_seen": int(seen.sum()),
            "unique_documents_seen": unique,
            "unique_documents": len(np.unique(self.documents)),
            "mean_repetitions": float(seen.sum() / max(unique, 1)),
            "max_repetitions": int(seen.max()),
        }


class TokenBatches:
    """The micro-batch of a slot: sequences, counted along the stream.

    A dict of (m, t) int64 ``inputs``, ``targets``, ``documents``, ``positions``, and the scalar ``n_targets``: the
    targets of the whole step over all processes, by which a mean loss is the same however the batch is split.

    Args:
        batch_size: sequences of a step.
        length: tokens of a sequence.

    Raises:
        CurationError: the subset has fewer tokens than one batch.
    """

    def __init__(self, stream: TokenStream, batch_size: int, length: int):
        self.stream, self.length, self.per_step = stream, length, batch_size * length
        if stream.epoch_tokens < self.per_step:
            raise CurationError(
                f"the subset has {stream.epoch_tokens:,} tokens, fewer than one batch of {batch_size} x {length}"
                f" = {self.per_step:,}; use a smaller batch or a larger subset"
            )

    def __call__(self, slot: Slot) -> dict[str, Tensor]:
        windows = self.stream.windows(slot.numbers, self.length)
        first = slot.step * self.per_step
        return {
            "inputs": torch.from_numpy(windows.inputs),
            "targets": torch.from_numpy(windows.targets),
            "documents": torch.from_numpy(windows.documents),
            "positions": torch.from_numpy(windows.positions),
            "n_targets": torch.tensor(self.stream.count_targets(first, first + self.per_step)),
        }
