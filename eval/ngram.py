"""A byte n-gram language model as a judge of data: fitted in a second on a megabyte, exact, nothing to tune.

Interpolated Witten-Bell (Witten and Bell 1991, "The zero-frequency problem"; Chen and Goodman 1999, section 2.4): after
a context h that was followed by c(h) bytes of T(h) kinds,

    p(w | h) = (c(hw) + T(h) p(w | h without its first byte)) / (c(h) + T(h))

down to no context at all, which backs off to 1 / 256. A context that was never seen leaves the shorter one's answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from jaxtyping import Float, Int, UInt8, UInt64

from foundation.errors import CurationError

ORDER, HIGHEST = 6, 8  # n-grams of up to eight bytes are one 64-bit number
KINDS = 256


@dataclass(frozen=True)
class NgramModel:
    """Counts of n-grams as a tree, shorter ones first. Make one with `fit_ngrams`.

    Node 0 is the empty n-gram; the children of a node are the n-grams one byte longer, ascending by that byte, and lie
    side by side.

    Attributes:
        last: (k,) last byte of each node's n-gram.
        counts: (k,) int64 how often it occurs.
        children: (k + 1,) int64 node i has the children ``children[i]`` to ``children[i + 1]``.
        totals: (k,) int64 how often it is followed by a byte: c(h); the number of its children is T(h).
        order: bytes of the longest n-gram.
        n_bytes: that it was fitted on.
    """

    last: UInt8[np.ndarray, "k"]
    counts: Int[np.ndarray, "k"]
    children: Int[np.ndarray, "k+1"]
    totals: Int[np.ndarray, "k"]
    order: int
    n_bytes: int

    def _probability(self, data: UInt8[np.ndarray, "t"], place: Int[np.ndarray, "t"]) -> Float[np.ndarray, "t"]:
        return _probabilities(data, place, self.last, self.counts, self.children, self.totals, self.order)

    def bits(self, texts: Sequence[str | bytes]) -> Float[np.ndarray, "n"]:
        """Bits that each text takes, float64: minus log2 of its probability, byte by byte from its start."""
        data, place, sizes = _joined(texts)
        costs = -np.log2(self._probability(data, place))
        return np.bincount(np.repeat(np.arange(len(sizes)), sizes), weights=costs, minlength=len(sizes))

    def distribution(self, context: bytes) -> Float[np.ndarray, "256"]:
        """Probability of each byte after a context, of which the last ``order - 1`` bytes count."""
        data, place, sizes = _joined([context + bytes([byte]) for byte in range(KINDS)])
        return self._probability(data, place)[np.cumsum(sizes) - 1]


def fit_ngrams(texts: Sequence[str | bytes], order: int = ORDER) -> NgramModel:
    """Count the n-grams of texts (UTF-8 where they are str), up to ``order`` bytes, within each text.

    A text that is given twice counts twice. Memory is about 100 bytes for each byte of text.

    Raises:
        CurationError: no text at all, or an order that is none or too high.
    """
    if not 1 <= order <= HIGHEST:
        raise CurationError(f"order {order} of the n-gram model must lie in 1..{HIGHEST} bytes")
    data, place, _ = _joined(texts)
    if not len(data):
        raise CurationError("there is no text to fit an n-gram model on")
    last, counts, widths = [np.zeros(1, np.uint8)], [np.asarray([len(data)])], []
    shorter = np.zeros(1, np.uint64)
    grams = np.zeros(len(data), np.uint64)
    for length in range(1, order + 1):
        grams = _longer(grams, data)
        keys, n = np.unique(grams[place >= length - 1], return_counts=True)
        # the contexts are n-grams of the level above, ascending like them
        ends = np.searchsorted(keys >> np.uint64(8), shorter, side="right")
        widths.append(np.diff(ends, prepend=0))
        last.append(keys.astype(np.uint8))
        counts.append(n)
        shorter = keys
    widths.append(np.zeros(len(shorter), np.int64))
    width, count = np.concatenate(widths), np.concatenate(counts)
    children = np.concatenate([[1], 1 + np.cumsum(width)])
    before = np.concatenate([[0], np.cumsum(count)])
    totals = before[children[1:]] - before[children[:-1]]
    return NgramModel(np.concatenate(last), count, children, totals, order, len(data))


def _joined(texts: Sequence[str | bytes]) -> tuple[UInt8[np.ndarray, "t"], Int[np.ndarray, "t"], Int[np.ndarray, "n"]]:
    """All bytes one after another, the place of each within its text, and the bytes of each text."""
    pieces = [text.encode() if isinstance(text, str) else text for text in texts]
    sizes = np.asarray([len(piece) for piece in pieces], np.int64)
    data = np.frombuffer(b"".join(pieces), np.uint8)
    return data, np.arange(len(data)) - np.repeat(np.cumsum(sizes) - sizes, sizes), sizes


def _longer(grams: UInt64[np.ndarray, "t"], data: UInt8[np.ndarray, "t"]) -> UInt64[np.ndarray, "t"]:
    """N-grams that end at each place, from those one byte shorter; of no meaning where the text starts later."""
    found = data.astype(np.uint64)
    found[1:] |= grams[:-1] << np.uint64(8)
    return found


@numba.njit(cache=True)
def _probabilities(data, place, last, counts, children, totals, order):
    found = np.empty(len(data))
    nodes = np.full(order + 1, -1)  # of the n-grams that end at the byte before, by length; -1: never seen
    after = np.full(order + 1, -1)
    nodes[0] = after[0] = 0
    for i in range(len(data)):
        if place[i] == 0:
            nodes[1:] = -1
        after[1:] = -1
        p = 1 / KINDS
        for length in range(order):
            context = nodes[length]
            if context < 0:
                break  # no longer context can have been seen
            low, high = children[context], children[context + 1]
            kinds, total = high - low, totals[context]
            if kinds == 0:
                break
            place_of = low + np.searchsorted(last[low:high], data[i])
            count = 0
            if place_of < high and last[place_of] == data[i]:
                after[length + 1], count = place_of, counts[place_of]
            p = (count + kinds * p) / (total + kinds)
        found[i] = p
        nodes, after = after, nodes
    return found
