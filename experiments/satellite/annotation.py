"""A judge that costs seconds: heights learnt from the labels of the subset alone. Which tiles are worth a survey?

No pretraining is asked about: colours and textures of small cells, made by hand, go through boosted trees. It answers
what a curated subset is worth where every tile of it is labelled, which is another question than the paper's.
"""

import numpy as np
import torch
from jaxtyping import Float

from satellite.head import resize

CELL = 8  # pixels


def cell_features(images: Float[np.ndarray, "n c s s"]) -> Float[np.ndarray, "n g g d"]:
    """Of each cell of 8 x 8 pixels: mean, deviation and slope of the bands; means and deviations of its surroundings
    of 3 x 3 cells and of the tile; all within the tile.
    """
    n, c, side, _ = images.shape
    g = side // CELL
    cells = images[:, :, : g * CELL, : g * CELL].reshape(n, c, g, CELL, g, CELL)
    mean, deviation = cells.mean((3, 5)), cells.std((3, 5))
    slope = np.abs(np.diff(cells, axis=3)).mean((3, 5)) + np.abs(np.diff(cells, axis=5)).mean((3, 5))
    own = np.concatenate([mean, deviation, slope], 1)
    padded = np.pad(own, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    around = np.stack([padded[:, :, i : i + g, j : j + g] for i in range(3) for j in range(3)])
    whole = np.concatenate([own.mean((2, 3)), mean.std((2, 3))], 1)[:, :, None, None]
    whole = np.broadcast_to(whole, (n, whole.shape[1], g, g))
    return np.concatenate([own, around.mean(0), around.std(0), whole], 1).transpose(0, 2, 3, 1).astype(np.float32)


def cell_heights(heights: Float[np.ndarray, "n s s"]) -> Float[np.ndarray, "n g g"]:
    """Mean of the known heights of each cell; NaN where less than half is known."""
    n, side, _ = heights.shape
    g = side // CELL
    cells = heights[:, : g * CELL, : g * CELL].reshape(n, g, CELL, g, CELL)
    known = np.isfinite(cells).sum((2, 4))
    total = np.nansum(cells, (2, 4))
    return np.where(known >= CELL**2 / 2, total / np.maximum(known, 1), np.nan)


class BoostedHeights:
    """Boosted trees from the features of a cell to its height in metres.

    Args:
        seed: of the trees.
    """

    def __init__(self, seed: int = 0):
        from sklearn.ensemble import HistGradientBoostingRegressor

        self.trees = HistGradientBoostingRegressor(
            max_iter=150, learning_rate=0.08, max_leaf_nodes=15, min_samples_leaf=20, random_state=seed
        )

    def fit(self, images: Float[np.ndarray, "n c s s"], heights: Float[np.ndarray, "n s s"]) -> "BoostedHeights":
        """Learn from tiles (bands, normalised) and their heights (metres, NaN not known)."""
        y = cell_heights(heights).ravel()
        x = cell_features(images).reshape(len(y), -1)
        self.trees.fit(x[np.isfinite(y)], y[np.isfinite(y)])
        return self

    def predict(self, images: Float[np.ndarray, "n c s s"]) -> Float[np.ndarray, "n s s"]:
        """Heights in metres, not below 0, between the middles of the cells linear."""
        x = cell_features(images)
        n, g = x.shape[:2]
        coarse = self.trees.predict(x.reshape(n * g * g, -1)).reshape(n, 1, g, g)
        size = (images.shape[2], images.shape[3])
        return resize(torch.from_numpy(coarse).float(), size)[:, 0].clamp_min(0).numpy()

    def on_batch(self, images: torch.Tensor) -> torch.Tensor:
        """`predict` from and to tensors."""
        return torch.from_numpy(self.predict(images.cpu().numpy()))
