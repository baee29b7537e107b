"""The simulated experiment: arms on a pool of known concepts, and the studies of known densities."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.engine.experiment import Domain, Metric
from experiments.simulated.studies import studies_stage
from experiments.simulated.training import (
    SHAPES,
    EvaluateSettings,
    PoolSettings,
    TrainSettings,
    evaluate,
    prepare,
    train,
    training_flops,
)
from foundation.errors import CurationError


class VectorPictures:
    """Rows of a pool as square grey pictures, one pixel for each dimension: alike rows look alike."""

    def __init__(self, folder: Path):
        self.x = np.load(folder / "embeddings.npy", mmap_mode="r", allow_pickle=False)
        self.side = int(np.sqrt(self.x.shape[1]))
        if self.side**2 != self.x.shape[1]:
            raise CurationError(f"{folder}: {self.x.shape[1]} dimensions do not fill a square")
        sample = np.asarray(self.x[:1000])
        self.low, self.high = np.quantile(sample, [0.02, 0.98])

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> dict[str, Any]:
        grey = np.clip((self.x[row] - self.low) / (self.high - self.low), 0, 1) * 255
        square = grey.astype(np.uint8).reshape(self.side, self.side)
        return {"image": Image.fromarray(square).resize((48, 48), Image.Resampling.NEAREST)}


DOMAIN = Domain(
    title="Simulated pool: arms side by side",
    claim="With the same budget, an encoder trained on the balanced subset of hierarchical k-means with resampling "
    "rebuilds new rows of all concepts better, on average over concepts, than one trained on random rows of the pool.",
    metrics=(
        Metric("error_macro", "error, mean over concepts", "lower", headline=True),
        Metric("error_tail", "error, rare concepts", "lower"),
        Metric("error_worst_tenth", "error, worst tenth", "lower"),
        Metric("error_head", "error, frequent concepts", "lower", ours=False),
        Metric("error_pool_weighted", "error, weighted as the pool", "lower", ours=False),
        Metric("knn_macro", "k-NN accuracy, mean over concepts", "higher"),
        Metric("knn_tail", "k-NN accuracy, rare concepts", "higher"),
        Metric("knn_head", "k-NN accuracy, frequent concepts", "higher"),
    ),
    pool_settings=PoolSettings,
    train_settings=TrainSettings,
    evaluate_settings=EvaluateSettings,
    prepare=prepare,
    train=train,
    evaluate=evaluate,
    shape=lambda pool: SHAPES[pool.toy],
    budget=lambda settings, dim: (
        float(settings.recipe.steps * settings.recipe.batch_size),
        settings.recipe.steps,
        training_flops(settings.recipe, dim),
    ),
    curves=("held_out/error", "train/loss"),
    pictures=VectorPictures,
    extra=lambda config: [studies_stage(config)] if config["science"]["studies"] else [],
)
