"""Tasks on patch features: linear segmentation and linear depth."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from eval.bench import Bench
from eval.dense import DenseSettings
from eval.depth import linear_depth
from eval.models import FrozenModel, block_features
from eval.pairs import ImagePairs, open_pairs, read_target
from eval.segmentation import check_masks, linear_segmentation, segmentation_result
from eval.settings import Batch, Classes, Side, Steps
from foundation.errors import CurationError
from foundation.images import read_image
from foundation.settings import Positive, setting

SHALLOW = 0.01  # share of the furthest depth: where half of all depths are below it, they are in other units
KEPT_BYTES = 4 << 30  # features of a split are kept in memory up to here, and made again for every batch beyond


@dataclass
class DenseTask:
    """Images with targets, and how the head is trained."""

    train: str = setting("", "images/SPLIT and targets: a registered name or a folder")
    test: str = setting("", "empty: the training set's test split")
    size: Side = setting(0, "side of the square that images and targets are brought to; 0: the model's")
    steps: Steps = setting(40_000, "optimiser steps")
    train_batch: Batch = setting(16, "images per step")
    learning_rate: Positive = setting(1e-3, "of AdamW")

    def head_settings(self, bench: Bench) -> DenseSettings:
        return DenseSettings(self.steps, self.train_batch, self.learning_rate, seed=bench.settings.seed)

    @property
    def tested(self) -> str:
        return self.test or self.train


@dataclass
class Segmentation(DenseTask):
    """Linear segmentation on frozen patches: mIoU."""

    name: ClassVar[str] = "segmentation"
    train: str = setting("ade20k", "images/SPLIT and annotations/SPLIT: a registered name or a folder")
    n_classes: Classes = setting(150, "classes, the unlabelled one not counted")
    ignore: int = setting(255, "value of pixels that count for nothing")
    zero_is_unlabelled: bool = setting(True, "masks hold 0 for no label and classes from 1 on, as ADE20K's do")

    def run(self, bench: Bench) -> None:
        def target(path: Path, size: int, picture: Extent) -> Tensor:
            mask = _nearest(read_target(path, picture=picture), size)
            if not bool((mask == mask.round()).all()):
                raise CurationError(f"target {path} holds values that are no whole numbers; a mask holds classes")
            mask = torch.where(mask == 0, self.ignore, mask - 1) if self.zero_is_unlabelled else mask
            try:
                return check_masks(mask, self.n_classes, self.ignore)
            except CurationError as error:
                shifted = " (zero_is_unlabelled: 1 less than in the file)" if self.zero_is_unlabelled else ""
                raise CurationError(f"target {path}: {error}{shifted}") from error

        train, test = _splits(self, bench, "annotations", target)
        found = linear_segmentation(
            train, test, self.n_classes, self.head_settings(bench), self.ignore, device=bench.device
        )
        found = segmentation_result(found.confusion, **bench.bootstrap)
        bench.add(self.name, self.tested, "mIoU", found.miou)
        bench.add(self.name, self.tested, "pixel accuracy", found.pixel_accuracy)


@dataclass
class Depth(DenseTask):
    """Linear depth on frozen patches: RMSE in metres."""

    name: ClassVar[str] = "depth"
    train: str = setting("nyu-depth-v2", "images/SPLIT and depth/SPLIT: a registered name or a folder")
    scale: Positive = setting(1000.0, "units of the depth files in one metre")
    nearest: Positive = setting(0.001, "metres; nearer pixels are not judged")
    furthest: Positive = setting(10.0, "metres; further pixels are not judged")

    def run(self, bench: Bench) -> None:
        medians: list[float] = []

        def target(path: Path, size: int, picture: Extent) -> Tensor:
            found = _nearest(read_target(path, self.scale, picture), size).float()
            medians.extend([float(found[found > 0].median())] if (found > 0).any() else [])
            return found

        train, test = _splits(self, bench, "depth", target)
        found = linear_depth(train, test, self.nearest, self.furthest, self.head_settings(bench), device=bench.device)
        for metric, value in found.items():
            bench.add(self.name, self.tested, metric, value)
        if medians and np.median(medians) < SHALLOW * self.furthest:
            bench.warn(f"{self.tested}: half of the depths are below {np.median(medians):.2g} m; is scale= right?")


Extent = tuple[int, int]  # width and height of an upright picture
Target = Callable[[Path, int, Extent], Tensor]  # a target file at a size, its picture being of an extent
Reader = tuple[Callable[[Int[Tensor, "b"]], tuple[Tensor, Tensor]], int]


def _splits(task: DenseTask, bench: Bench, kind: str, target: Target) -> tuple[Reader, Reader]:
    size = task.size or bench.model.image_size
    root = bench.settings.root or None
    train = open_pairs(task.train, "train", kind, root)
    test = open_pairs(task.tested, "test", kind, root)
    for pairs in (train, test):
        bench.seen(pairs.name, pairs.content)
    return _reader(train, bench.model, size, target), _reader(test, bench.model, size, target)


def _reader(pairs: ImagePairs, model: FrozenModel, size: int, target: Target) -> Reader:
    """Features and targets of rows, made when they are first asked for and kept while they fit."""
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    limit = [KEPT_BYTES]

    def read(rows: Int[Tensor, "b"]) -> tuple[Float[Tensor, "b h w d"], Tensor]:
        wanted = rows.tolist()
        new = sorted(set(wanted) - kept.keys())
        made: dict[int, tuple[Tensor, Tensor]] = {}
        if new:
            pictures, extents = zip(*(_normalised(pairs, row, model, size) for row in new), strict=True)
            batch = torch.stack(pictures)
            with torch.inference_mode():
                maps = block_features(model.features(batch), len(batch)).map.half().cpu().clone()
            made = {row: (maps[i].clone(), target(pairs.targets[row], size, extents[i])) for i, row in enumerate(new)}
            for row, (x, y) in made.items():
                limit[0] -= x.nbytes + y.nbytes
                if limit[0] > 0:
                    kept[row] = (x, y)
        found = [kept[row] if row in kept else made[row] for row in wanted]
        return torch.stack([x for x, _ in found]).float(), torch.stack([y for _, y in found])

    return read, len(pairs)


def _normalised(pairs: ImagePairs, row: int, model: FrozenModel, size: int) -> tuple[Float[Tensor, "3 s s"], Extent]:
    try:
        picture = read_image(pairs.images[row])
        image = picture.resize((size, size), Image.Resampling.BICUBIC)
    except Exception as error:
        # a dense split is small and its targets are dear: here a bad image stops the evaluation
        raise CurationError(f"image {pairs.images[row]} cannot be read: {error}") from error
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.mean, model.std))
    return (x - mean) / std, picture.size


def _nearest(target: np.ndarray, size: int) -> Tensor:
    """A target at size x size: the pixel in the middle of each cell, never a mixture of classes or of depths."""
    rows, columns = (((np.arange(size) + 0.5) * n / size).astype(int) for n in target.shape)
    return torch.from_numpy(np.ascontiguousarray(target[rows][:, columns].astype(np.float64)))
