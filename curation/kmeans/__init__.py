"""One k-means: seeding, exact assignment and update are separate, and one Lloyd loop joins them."""

from curation.kmeans.assignment import CentroidSearch, nearest_centroid
from curation.kmeans.lloyd import KMeansResult, kmeans

__all__ = ["CentroidSearch", "KMeansResult", "kmeans", "nearest_centroid"]
