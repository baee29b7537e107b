"""Compile every kernel of k-means, sampling, graphs and crops, so that processes that start together need not all.

numba keeps what it compiled beside the source; `make test` runs this while mypy works on the other core.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch

from curation import CommunityTree, HierarchicalKMeans
from eval.ngram import fit_ngrams
from pretrain.multicrop import CropSettings, multi_crop, step_draws


def main() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(30, 32))[rng.integers(30, size=2000)] * 3 + rng.normal(size=(2000, 32))).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        np.save(path, x.astype(np.float16))
        for source in (x, path):  # memory-mapped rows are another type to numba
            for settings in (
                {"levels": [80, 9], "n_resamples": 1},
                {"levels": ["12x6", 10], "n_resamples": 1, "metric": "cosine", "precision": "float32"},
                {"levels": [80, 9], "seeding": "kmeans||", "n_resamples": 0, "precision": "bfloat16"},
            ):
                tree = HierarchicalKMeans(**settings, max_iterations=6, progress=False).fit(source)
                for strategy in ("random", "closest", "furthest"):
                    tree.sample(500, strategy=strategy, max_copies=2)
                tree.sampling_weights()
        CommunityTree(progress=False).fit(path).sample(300)
    settings = CropSettings(global_size=16, local_size=8, n_local=1, canvas=24)
    canvases = torch.zeros((8, 3, 24, 24), dtype=torch.uint8)
    multi_crop(canvases, np.full((8, 2), 24), step_draws(settings, 8, seed=0, step=0), settings)
    fit_ngrams(["some text to count", "and some more of it"]).bits(["of it"])


if __name__ == "__main__":
    main()
