"""The order of the data: sample number i of a run is a function of the seed and i, without a list in memory."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

ROUNDS = 8


def permuted(index: Int[np.ndarray, "m"], n: int, seed: int, epoch: int) -> Int[np.ndarray, "m"]:
    """Where a random permutation of 0..n-1 sends ``index``: a Feistel network over the next power of four.

    Values that fall outside are sent on until they fall inside (cycle walking), so memory is that of ``index`` alone
    for any n (Black and Rogaway 2002, "Ciphers with arbitrary finite domains", section 3).
    """
    half = max((max(n - 1, 1).bit_length() + 1) // 2, 1)
    low = np.uint64((1 << half) - 1)
    keys = np.random.default_rng([seed, epoch]).integers(0, 1 << 63, ROUNDS, dtype=np.uint64)
    value = np.asarray(index, dtype=np.uint64).copy()
    outside = np.ones(value.shape, dtype=bool)
    while outside.any():
        x = value[outside]
        left, right = x >> np.uint64(half), x & low
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & low)
        value[outside] = (left << np.uint64(half)) | right
        outside = value >= n
    return value.astype(np.int64)


def _mixed(x: np.ndarray) -> np.ndarray:
    """Bits stirred (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Order:
    """Epoch after epoch of shuffled rows.

    Attributes:
        rows: (n,) pool rows, repeated as often as the subset takes them.
        seed: of the shuffles.
    """

    rows: Int[np.ndarray, "n"]
    seed: int

    def sample(self, number: Int[np.ndarray, "m"]) -> Int[np.ndarray, "m"]:
        """Pool rows of the samples with these numbers, counted over the whole run."""
        n = len(self.rows)
        epochs, places = np.divmod(np.asarray(number, np.int64), n)
        found = np.empty(len(places), np.int64)
        for epoch in np.unique(epochs):
            of_epoch = epochs == epoch
            found[of_epoch] = self.rows[permuted(places[of_epoch], n, self.seed, int(epoch))]
        return found

    def coverage(self, n_samples: int) -> dict[str, float]:
        """How much of the data the first ``n_samples`` samples are: epochs, distinct rows, mean times a row is seen."""
        n = len(self.rows)
        seen = self.rows if n_samples >= n else self.sample(np.arange(n_samples))
        distinct = len(np.unique(seen))
        return {
            "samples": n_samples,
            "epochs": n_samples / n,
            "unique_samples": distinct,
            "times_seen": n_samples / max(distinct, 1),
        }
