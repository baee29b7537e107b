"""Which test rows are rare in a pool, without labels: how far off the pool's nearest rows lie under an encoder.

The encoder must be one that the curation did not use: the method flattens what its own encoder sees, whether or not
anything else is flatter for it.
"""

from typing import Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int

from eval.arrays import as_features, check_same_width
from eval.knn import nearest_neighbours
from foundation.errors import CurationError

NEIGHBOURS, PARTS = 5, 10


def distance_to_pool(test: Any, pool: Any, k: int = NEIGHBOURS) -> Float[np.ndarray, "n"]:
    """Cosine distance, 0 to 2, of each test row to its k-th nearest row of the pool; float64.

    Args:
        test: (n, d) features.
        pool: (m, d) features of the same encoder.

    Raises:
        CurationError: other widths, features that are none, or fewer than k pool rows.
    """
    queries, gallery = as_features(test, "test features").float(), as_features(pool, "pool features").float()
    check_same_width(gallery, queries)
    products, _ = nearest_neighbours(F.normalize(queries, dim=1), F.normalize(gallery, dim=1), k)
    return 1.0 - products[:, -1].double().numpy()


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
