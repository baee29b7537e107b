"""Splits by class: a validation part cut from the training set, and few-shot draws."""

import torch
from jaxtyping import Int
from torch import Tensor

from foundation.errors import CurationError


def rows_by_class(labels: Int[Tensor, "n"], seed: int) -> list[Int[Tensor, "m"]]:
    """The rows of each class that occurs, in ascending order of class, each shuffled by the seed."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    labels = labels.cpu()
    order = order[torch.argsort(labels[order], stable=True)]
    counts = torch.unique(labels, return_counts=True)[1]
    return list(order.split(counts.tolist()))


def validation_split(
    labels: Int[Tensor, "n"], share: float = 0.1, seed: int = 0
) -> tuple[Int[Tensor, "train"], Int[Tensor, "val"]]:
    """Cut a share of every class off as validation rows: at least one, and never the last row of a class.

    Settings are chosen on these rows, so that the test set is looked at once.

    Raises:
        CurationError: the share is not inside (0, 1), or every class has a single row.
    """
    if not 0 < share < 1:
        raise CurationError(f"validation share {share} must lie between 0 and 1")
    train, val = [], []
    for rows in rows_by_class(labels, seed):
        n_val = min(max(1, round(share * len(rows))), len(rows) - 1)
        val.append(rows[:n_val])
        train.append(rows[n_val:])
    chosen = torch.cat(val)
    if not len(chosen):
        raise CurationError("every class has a single training row, so no validation part can be cut; give more rows")
    return torch.cat(train).sort().values, chosen.sort().values


def few_shot_rows(labels: Int[Tensor, "n"], shots: int, seed: int) -> Int[Tensor, "m"]:
    """Draw ``shots`` rows of every class, without replacement.

    Raises:
        CurationError: a class has fewer rows.
    """
    if shots < 1:
        raise CurationError(f"{shots} shots per class: give at least 1")
    drawn = rows_by_class(labels, seed)
    for rows in drawn:
        if len(rows) < shots:
            raise CurationError(f"class {int(labels[rows[0]])} has {len(rows)} rows, fewer than {shots} shots")
    return torch.cat([rows[:shots] for rows in drawn])
