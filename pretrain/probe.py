"""Looks at the teacher while it trains: k-NN accuracy where the pool has labels, and effective rank of features.

The loss of self-distillation rises for long stretches while the features get better, because the teacher sharpens.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pretrain.crops import Boxes, resized_crops
from pretrain.data import CanvasReader
from pretrain.settings import CropSettings, ProbeSettings

TEMPERATURE = 0.07  # of the votes (Wu et al. 2018)


@dataclass
class Probe:
    """Images drawn once, and their labels.

    Attributes:
        canvases, sizes: of `CanvasReader.read`.
        labels: (n,) class indices, or None.
        settings, crops: of the run.
    """

    canvases: Tensor
    sizes: Int[np.ndarray, "n two"]
    labels: Int[Tensor, "n"] | None
    settings: ProbeSettings
    crops: CropSettings

    @torch.no_grad()
    def look(self, backbone: Any, device: torch.device, batch_size: int = 256) -> dict[str, float]:
        """``knn`` (accuracy in 0..1, where there are labels) and ``effective_rank`` of the class tokens."""
        mean = torch.tensor(self.crops.mean, device=device)[:, None, None]
        std = torch.tensor(self.crops.std, device=device)[:, None, None]
        features = []
        for start in range(0, len(self.canvases), batch_size):
            part = slice(start, start + batch_size)
            views = whole_images(self.canvases[part].to(device), self.sizes[part], self.crops.global_size)
            features.append(backbone((views - mean) / std)[0].float())
        x = torch.cat(features)
        found = {"effective_rank": effective_rank(x)}
        if self.labels is not None:
            labels, n = self.labels.to(device), len(x) // 4
            found["knn"] = knn_accuracy(x[n:], labels[n:], x[:n], labels[:n], self.settings.k)
        return found


def whole_images(canvases: Tensor, sizes: Int[np.ndarray, "b two"], size: int) -> Float[Tensor, "b 3 size size"]:
    """The largest central square of each image, resized, in 0..1."""
    side = sizes.min(1)
    boxes = Boxes((sizes[:, 0] - side) // 2, (sizes[:, 1] - side) // 2, side, side)
    return resized_crops(canvases.float() / 255, boxes, size).clamp_(0, 1)


def knn_accuracy(
    train: Float[Tensor, "m d"], train_labels: Int[Tensor, "m"], test: Float[Tensor, "n d"], labels: Tensor, k: int
) -> float:
    """Accuracy of the k nearest by cosine, each voting with exp(cosine / 0.07)."""
    similarity, rows = (F.normalize(test, dim=1) @ F.normalize(train, dim=1).T).topk(min(k, len(train)), dim=1)
    n_classes = int(max(train_labels.max(), labels.max())) + 1
    votes = similarity.new_zeros(len(test), n_classes)
    votes.scatter_add_(1, train_labels[rows], torch.exp(similarity / TEMPERATURE))
    return float((votes.argmax(1) == labels).float().mean())


def effective_rank(x: Float[Tensor, "n d"]) -> float:
    """exp of the entropy of the normalised singular values (Garrido et al. 2023, RankMe, equation 1)."""
    values = torch.linalg.svdvals(x - x.mean(0))
    share = values / values.sum().clamp_min(1e-12)
    return float(torch.exp(torch.special.entr(share).sum()))


def make_probe(pool: Any, reader: CanvasReader, settings: ProbeSettings, crops: CropSettings) -> Probe | None:
    """Draw the images, from the labelled rows where there are any; None where looking is switched off."""
    if not settings.every or not settings.rows:
        return None
    rows, labels = np.arange(len(pool)), None
    if "label" in pool.column_names:
        values = pool.with_format(None)["label"][:]
        if all(isinstance(value, int) for value in values):
            labels = np.array(values)
            rows = np.flatnonzero(labels >= 0)
            labels = labels if len(np.unique(labels[rows])) > 1 else None
    if not len(rows):
        rows = np.arange(len(pool))
    rng = np.random.default_rng(0)  # the same images for every seed
    rows = rng.permutation(rows)[: settings.rows]
    canvases, sizes, bad = reader.read(rows)
    if bad:
        kept = np.array([int(row) not in bad for row in rows])
        canvases, sizes, rows = canvases[torch.from_numpy(kept)], sizes[kept], rows[kept]
    if len(rows) < 8:
        return None
    return Probe(canvases, sizes, None if labels is None else torch.from_numpy(labels[rows]), settings, crops)
