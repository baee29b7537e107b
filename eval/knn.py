"""Exact weighted k-nearest-neighbour classification, the protocol of DINO and DINOv2.

Neighbours by cosine similarity; each votes for its class with weight exp(similarity / T), T = 0.07 (Wu et al. 2018,
"Unsupervised Feature Learning via Non-Parametric Instance Discrimination", section 3.4).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from eval.arrays import as_features, as_labels, check_same_width, count_classes, to_device
from foundation.errors import CurationError

BACKENDS = ("torch", "faiss")


def nearest_neighbours(
    queries: Float[Tensor, "n d"],
    gallery: Float[Tensor, "m d"],
    k: int,
    backend: str = "torch",
    device: str | torch.device | None = None,
    query_block: int = 1024,
    gallery_block: int = 1 << 16,
    skip_self: bool = False,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The k gallery rows with the largest inner product, exactly, in blocks: memory is one block of products.

    Args:
        queries, gallery: unit vectors make the product a cosine.
        backend: "torch", or "faiss" (its exact flat index; on CPU).
        device: where the products are computed; None stays with the queries.
        skip_self: query i is gallery row i and must not find itself.

    Returns:
        Products in descending order and the gallery rows, both on the CPU.
    """
    available = len(gallery) - skip_self
    if not 1 <= k <= available:
        raise CurationError(f"k = {k} neighbours, but there are {available} training rows to find; lower k")
    if backend == "faiss":
        return _faiss_neighbours(queries, gallery, k, skip_self)
    if backend != "torch":
        raise CurationError(f"k-NN backend {backend!r} is unknown; use {', '.join(BACKENDS)}")
    similarities, rows = [], []
    for start in range(0, len(queries), query_block):
        block = to_device(queries[start : start + query_block], device)
        best = block.new_empty(len(block), 0)
        best_rows = torch.empty(len(block), 0, dtype=torch.long, device=block.device)
        for first in range(0, len(gallery), gallery_block):
            part = to_device(gallery[first : first + gallery_block], block.device)
            product = block @ part.T
            if skip_self:
                i = torch.arange(len(block), device=block.device)
                own = start + i - first
                inside = (own >= 0) & (own < len(part))
                product[i[inside], own[inside]] = -torch.inf
            top, where = product.topk(min(k, len(part)), dim=1)
            best = torch.cat([best, top], 1)
            best_rows = torch.cat([best_rows, where + first], 1)
            best, where = best.topk(min(k, best.shape[1]), dim=1)
            best_rows = best_rows.gather(1, where)
        similarities.append(best.cpu())
        rows.append(best_rows.cpu())
    return torch.cat(similarities), torch.cat(rows)


def _faiss_neighbours(
    queries: Float[Tensor, "n d"], gallery: Float[Tensor, "m d"], k: int, skip_self: bool
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    import faiss

    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery.float().cpu().contiguous().numpy())
    found = index.search(queries.float().cpu().contiguous().numpy(), k + skip_self)
    similarities, rows = (torch.from_numpy(array) for array in found)
    if skip_self:
        # duplicates may push a query out of its own list: then the last neighbour goes
        own = rows == torch.arange(len(rows))[:, None]
        own[~own.any(1), -1] = True
        similarities, rows = similarities[~own].view(-1, k), rows[~own].view(-1, k)
    return similarities, rows


def vote(
    similarities: Float[Tensor, "n k"],
    neighbour_labels: Int[Tensor, "n k"],
    n_classes: int,
    temperature: float = 0.07,
) -> Float[Tensor, "n classes"]:
    """Share of the weighted votes that each class gets; rows sum to one."""
    weights = torch.softmax(similarities / temperature, dim=1)
    return weights.new_zeros(len(weights), n_classes).scatter_add_(1, neighbour_labels, weights)


def knn_scores(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    n_classes: int | None = None,
    backend: str = "torch",
    device: str | torch.device | None = None,
) -> dict[int, Float[Tensor, "n classes"]]:
    """Votes of every test row for each k: one search serves all k.

    Args:
        train_features: (n, d); train_labels: (n,) class indices; test_features: (m, d).
        n_classes: columns of the result; None takes the greatest training label plus one.
    """
    train, test = as_features(train_features, "train features"), as_features(test_features, "test features")
    labels = as_labels(train_labels, len(train), "train labels")
    check_same_width(train, test)
    if temperature <= 0:
        raise CurationError(f"k-NN temperature {temperature} must be positive")
    if not ks:
        raise CurationError("no k is given; k-NN needs at least one number of neighbours")
    if min(ks) < 1:
        raise CurationError(f"k = {min(ks)} neighbours: k must be at least 1")
    train, test = F.normalize(train, dim=1), F.normalize(test.to(train.dtype), dim=1)
    similarities, rows = nearest_neighbours(test, train, max(ks), backend, device)
    neighbour_labels = labels.cpu()[rows]
    n_classes = n_classes or count_classes(labels)
    return {k: vote(similarities[:, :k], neighbour_labels[:, :k], n_classes, temperature) for k in sorted(set(ks))}


def knn_predictions(
    train_features: Any, train_labels: Any, test_features: Any, ks: Sequence[int] = (10, 20, 100, 200), **options: Any
) -> dict[int, Int[Tensor, "n"]]:
    """The class with most votes for each k; ties go to the lower class. Options are those of `knn_scores`."""
    scores = knn_scores(train_features, train_labels, test_features, ks, **options)
    return {k: votes.argmax(1) for k, votes in scores.items()}


def knn_accuracy(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    **options: Any,
) -> dict[int, float]:
    """Top-1 accuracy in [0, 1] for each k. Further options are those of `knn_scores`.

    Raises:
        CurationError: shapes that do not fit, NaN in the features, or k larger than the training set.
    """
    predicted = knn_predictions(train_features, train_labels, test_features, ks, temperature=temperature, **options)
    truth = as_labels(test_labels, len(test_features), "test labels").cpu()
    return {k: float((labels == truth).double().mean()) for k, labels in predicted.items()}
