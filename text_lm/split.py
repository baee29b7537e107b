"""Hold documents out of a pool, never passages: a passage of a training document in the test would be a leak."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from foundation.errors import CurationError
from foundation.overlap import seen


def split_by_document(
    documents: Sequence[str] | Int[np.ndarray, "r"],
    domains: Sequence[str] | Int[np.ndarray, "r"] | None = None,
    share: float = 0.1,
    seed: int = 0,
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "m"]]:
    """Rows to train on and rows to test on, which share no document.

    In every domain documents are drawn until they hold at least ``share`` of its rows, so a domain with two documents
    or more is on both sides, and one with a single document is only trained on. A document that occurs in several
    domains counts to that of its first row.

    Args:
        documents: (r,) which document each row was cut from: names, or their numbers in the order of names.
        domains: (r,) label of each row, likewise; None takes all as one.

    Returns:
        Training rows and test rows, int64, ascending.
    """
    if not 0 < share < 1:
        raise CurationError(f"share {share} must lie between 0 and 1")
    names, first, index = np.unique(_names(documents), return_index=True, return_inverse=True)
    labels = np.zeros(len(index), np.int64)
    if domains is not None:
        if len(domains) != len(index):
            raise CurationError(f"there are {len(index)} rows but {len(domains)} domains")
        labels = np.unique(_names(domains), return_inverse=True)[1]
    rows_of = np.bincount(index, minlength=len(names))
    held_out = np.zeros(len(names), bool)
    rng = np.random.default_rng(seed)
    label_of = labels[first]
    for label in np.unique(label_of):
        mine = rng.permutation(np.flatnonzero(label_of == label))
        before = np.cumsum(rows_of[mine]) - rows_of[mine]
        taken = before < share * rows_of[mine].sum()
        taken[-1] = False  # at least one document stays
        held_out[mine[taken]] = True
    test = held_out[index]
    return np.flatnonzero(~test), np.flatnonzero(test)


def leave_out_seen(
    texts: Sequence[str], train: Int[np.ndarray, "n"], test: Int[np.ndarray, "m"]
) -> Int[np.ndarray, "k"]:
    """The test rows whose text no training row holds, whole or by 0.7 of its word 8-grams.

    Documents quote and copy each other: a split by documents keeps them apart, not their texts. Memory grows with the
    test texts.
    """
    return test[~seen((texts[row] for row in train), [texts[row] for row in test])]


def _names(values: Sequence[str] | Int[np.ndarray, "r"]) -> np.ndarray:
    return values if isinstance(values, np.ndarray) and values.dtype.kind in "iu" else np.asarray(values, dtype=str)
