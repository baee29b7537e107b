"""What every k-means of a fit shares, from its seeding to its last assignment."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class KMeansSettings:
    """How a k-means is computed; see `curation.kmeans.lloyd.kmeans`.

    Attributes:
        seeding: see `curation.kmeans.seeding.seed_centroids`.
        max_iterations: Lloyd iterations; fewer where the centroids stop moving.
        tolerance: stop when the inertia falls by less than this share in one iteration; 0 runs on.
        metric: "l2" or "cosine" (rows and centroids at unit length).
        device: "cpu", "cuda", ...: where the products run.
        precision: of the products, "auto", "bfloat16", "int16" or "float32"; it changes the speed alone.
    """

    seeding: str = "auto"
    max_iterations: int = 50
    tolerance: float = 0.0
    metric: str = "l2"
    device: str | torch.device = "cpu"
    precision: str = "auto"
