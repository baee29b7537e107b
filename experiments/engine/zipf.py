"""Pools whose domains are as unequal as those of the web, and none of which is rare for every seed."""

import numpy as np
from jaxtyping import Int

from foundation.errors import CurationError


def rank_sizes(n_ranks: int, rows: int, exponent: float) -> Int[np.ndarray, "n_ranks"]:
    """Rows of each rank, the most frequent first, falling as rank^-exponent; they sum to ``rows``."""
    shares = np.arange(1, n_ranks + 1, dtype=np.float64) ** -exponent
    return np.diff(np.rint(np.cumsum(shares) / shares.sum() * rows).astype(np.int64), prepend=0)


def zipf_sizes(
    available: Int[np.ndarray, "k"], rows: int, exponent: float, rng: np.random.Generator
) -> Int[np.ndarray, "k"]:
    """Rows of each of k domains, falling as rank^-exponent, ``rows`` in all.

    The most frequent rank is drawn first, among the domains that have the rows for it.

    Raises:
        CurationError: no domain has.
    """
    found = np.zeros(len(available), np.int64)
    left = np.arange(len(available))
    for size in rank_sizes(len(available), rows, exponent):
        fit = left[available[left] >= size]
        if not len(fit):
            raise CurationError(
                f"no domain has the {size:,} rows that science.pool.zipf={exponent} asks for; lower science.pool.rows"
            )
        chosen = rng.choice(fit)
        found[chosen] = size
        left = left[left != chosen]
    return found


def zipf_in_turns(
    available: Int[np.ndarray, "k"], rows: int, exponent: float, turn: int, rng: np.random.Generator
) -> Int[np.ndarray, "k"]:
    """As `zipf_sizes`, but the k turns of one generator's draw give every domain every rank once.

    Which domain is frequent decides how much balance can gain at all: over whole rounds of turns that is no chance.

    Args:
        turn: how many ranks further each domain is than in the draw.

    Raises:
        CurationError: a domain has fewer rows than its rank asks for.
    """
    k = len(available)
    found = rank_sizes(k, rows, exponent)[(rng.permutation(k) + turn) % k]
    short = np.flatnonzero(available < found)
    if len(short):
        raise CurationError(
            f"domain {short[0]} has {available[short[0]]:,} of the {found[short[0]]:,} rows that its turn asks for; "
            "lower science.pool.rows"
        )
    return found
