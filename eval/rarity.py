"""Which test rows are rare in a pool, without labels: how far off the pool's nearest rows lie under an encoder.

The encoder must be one that the curation did not use: the method flattens what its own encoder sees, whether or not
anything else is flatter for it.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int

from eval.arrays import as_features, check_same_width
from eval.knn import nearest_neighbours
from foundation.errors import CurationError

NEIGHBOURS, PARTS = 5, 10
POOL_BLOCK = 1 << 18  # rows of the pool in memory


def distance_to_pool(test: Any, pool: Any, k: int = NEIGHBOURS) -> Float[np.ndarray, "n"]:
    """Cosine distance, 0 to 2, of each test row to its k-th nearest row of the pool; float64.

    Args:
        test: (n, d) features.
        pool: (m, d) features of the same encoder; of an array in a file a block at a time is read.

    Raises:
        CurationError: other widths, features that are none, or fewer than k pool rows.
    """
    queries = F.normalize(as_features(test, "test features").float(), dim=1)
    if len(pool) < k:
        raise CurationError(f"k = {k} neighbours, but there are {len(pool)} pool rows to find; lower k")
    best = torch.empty(len(queries), 0)
    for start in range(0, len(pool), POOL_BLOCK):
        part = as_features(pool[start : start + POOL_BLOCK], "pool features").float()
        check_same_width(part, queries)
        products, _ = nearest_neighbours(queries, F.normalize(part, dim=1), min(k, len(part)))
        best = torch.cat([best, products], 1)
        best = best.topk(min(k, best.shape[1]), dim=1).values
    return 1.0 - best[:, -1].double().numpy()


def parts_by_rank(values: Float[np.ndarray, "n"], parts: int = PARTS) -> Int[np.ndarray, "n"]:
    """Part of each row, 0 the lowest values, when rows are cut by rank into parts that differ by one row at most.

    Raises:
        CurationError: fewer rows than parts.
    """
    values = np.asarray(values)
    if len(values) < parts:
        raise CurationError(f"{len(values)} test rows cannot be cut into {parts} parts by rarity; give more of them")
    place = np.empty(len(values), np.int64)
    place[np.argsort(values, kind="stable")] = np.arange(len(values))
    return place * parts // len(values)
