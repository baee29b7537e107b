"""Curation of raw pools: embeddings, hierarchical k-means with resampling, balanced sampling (Vo et al., 2024)."""

from curation.embeddings import Embeddings, EmbeddingWriter, open_embeddings
from curation.errors import CurationError
from curation.hierarchy import HierarchicalKMeans
from curation.kmeans import nearest_centroid
from curation.subset import Subset
from curation.tree import ClusterTree

__all__ = [
    "ClusterTree",
    "CurationError",
    "EmbeddingWriter",
    "Embeddings",
    "HierarchicalKMeans",
    "Subset",
    "nearest_centroid",
    "open_embeddings",
]
