"""Curation of raw pools: embeddings, hierarchical k-means with resampling, balanced sampling (Vo et al., 2024)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import foundation  # noqa: F401 - before torch is loaded: it sets how threads wait

if TYPE_CHECKING:
    from curation.kmeans import nearest_centroid
    from curation.pools.pool import open_pool
    from curation.store.embedding_writer import EmbeddingWriter
    from curation.store.embeddings import Embeddings, open_embeddings
    from curation.trees.community_tree import CommunityTree
    from curation.trees.hierarchy import HierarchicalKMeans
    from curation.trees.subset import Subset
    from curation.trees.tree import ClusterTree
    from foundation.errors import CurationError

# names are loaded when they are first used, so that `curate --help` need not wait for torch
_HOMES = {
    "ClusterTree": "curation.trees.tree",
    "CommunityTree": "curation.trees.community_tree",
    "CurationError": "foundation.errors",
    "EmbeddingWriter": "curation.store.embedding_writer",
    "Embeddings": "curation.store.embeddings",
    "HierarchicalKMeans": "curation.trees.hierarchy",
    "Subset": "curation.trees.subset",
    "nearest_centroid": "curation.kmeans",
    "open_embeddings": "curation.store.embeddings",
    "open_pool": "curation.pools.pool",
}

__all__ = [
    "ClusterTree",
    "CommunityTree",
    "CurationError",
    "EmbeddingWriter",
    "Embeddings",
    "HierarchicalKMeans",
    "Subset",
    "nearest_centroid",
    "open_embeddings",
    "open_pool",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'curation' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
