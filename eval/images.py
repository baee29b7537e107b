"""Labelled images of any source, opened one by one: a bad image is counted, logged with its id and skipped."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from foundation.errors import CurationError
from foundation.images import encoded_bytes, read_image, reason_of
from foundation.threads import useful_processes

Transform = Callable[[Image.Image], Tensor]


@dataclass
class LabelledImages:
    """Images with labels.

    Attributes:
        name: of the dataset, for messages.
        sources: of each image: a path, or ``{"bytes": ..., "path": ...}``; any sequence.
        labels: (n,) class indices.
        class_names: name of each class; the folder's name where there is a folder.
        ids: of each image, for messages and logs.
        groups: name of each image's group (fairness), or None.
        crop_border: pixels cut off on every side (ObjectNet's red frame).
        box: (left, top, right, bottom) cut out of each image (retrieval queries), or None.
    """

    name: str
    sources: Sequence[Any]
    labels: Int[Tensor, "n"]
    class_names: list[str]
    ids: list[str]
    groups: list[str] | None = None
    crop_border: int = 0
    boxes: list[tuple[float, float, float, float]] | None = None
    digest: str = field(default="")

    def __post_init__(self) -> None:
        if not len(self.sources):
            raise CurationError(f"{self.name} has no images")
        if not self.digest:
            content = [self.name, self.class_names, self.ids, self.labels.tolist(), self.crop_border, self.boxes]
            self.digest = hashlib.blake2b(repr(content).encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self.sources)

    @cached_property
    def content(self) -> str:
        """See `content_of`; another than `digest` it is that of a copy of the data, too."""
        about = [self.class_names, self.ids, self.labels.tolist(), self.groups, self.crop_border, self.boxes]
        return content_of(about, self.sources)

    def lying_in(self, place: str) -> int:
        """How many of the images are files in this folder, or rows of this file or of one in this folder."""
        root = os.path.realpath(place)

        def inside(path: Any) -> bool:
            real = os.path.realpath(path)
            return real == root or real.startswith(os.path.join(root, ""))

        if os.path.exists(self.name) and inside(self.name):
            return len(self)
        return sum(isinstance(path, str | Path) and inside(path) for path in self.sources)

    def open(self, i: int) -> Image.Image:
        """Image i: RGB, upright, frame and box cut."""
        image = read_image(self.sources[i])
        b = self.crop_border
        if b and min(image.size) > 2 * b:
            image = image.crop((b, b, image.width - b, image.height - b))
        if self.boxes is not None:
            left, top, right, bottom = (round(edge) for edge in self.boxes[i])
            image = image.crop((max(0, left), max(0, top), min(image.width, right), min(image.height, bottom)))
        return image

    def take(self, rows: Sequence[int]) -> "LabelledImages":
        """Some of the images, in the order of ``rows``."""
        rows = [int(row) for row in rows]
        return LabelledImages(
            self.name,
            [self.sources[row] for row in rows],
            self.labels[rows],
            self.class_names,
            [self.ids[row] for row in rows],
            None if self.groups is None else [self.groups[row] for row in rows],
            self.crop_border,
            None if self.boxes is None else [self.boxes[row] for row in rows],
        )


def content_of(about: Any, sources: Sequence[Any]) -> str:
    """Digest of images, wherever they lie: the sizes of all files and the bytes of up to 1,024, evenly spaced.

    Args:
        about: what else is known of them, labels and names.
    """
    digest = hashlib.blake2b(repr([about, len(sources)]).encode(), digest_size=16)
    if isinstance(sources, list):  # of files; the rows of a table are not all read
        digest.update(repr([os.path.getsize(path) if os.path.exists(path) else -1 for path in sources]).encode())
    for i in np.unique(np.linspace(0, len(sources) - 1, min(len(sources), 1024)).astype(np.int64)).tolist():
        digest.update(hashlib.blake2b(encoded_bytes(sources[i]), digest_size=16).digest())
    return digest.hexdigest()


@dataclass
class BadImages:
    """Images that could not be read, and how many may be.

    Attributes:
        limit: share of the dataset that may be bad before the evaluation stops.
        reasons: id of each bad image to its reason.
    """

    limit: float = 0.01
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, identity: str, reason: str, n_images: int) -> None:
        """Count one.

        Raises:
            CurationError: more than the limit are bad.
        """
        self.reasons[identity] = reason
        if len(self.reasons) > self.limit * n_images:
            raise CurationError(
                f"{name}: {len(self.reasons)} of {n_images} images cannot be read, more than max_bad {self.limit:.1%}; "
                f"the last is {identity}: {reason}"
            )


def read_batches(
    images: LabelledImages,
    transform: Transform,
    batch_size: int,
    n_workers: int = 0,
    bad: BadImages | None = None,
    rows: Int[Tensor, "m"] | None = None,
) -> Iterator[tuple[Int[Tensor, "b"], Float[Tensor, "b 3 h w"]]]:
    """Batches of (rows, images) in order, without the unreadable images."""
    bad = BadImages() if bad is None else bad
    loader = DataLoader(
        _Reading(images, transform),  # type: ignore[arg-type]
        batch_size=batch_size,
        num_workers=useful_processes(n_workers, -(-(len(images) if rows is None else len(rows)) // batch_size)),
        sampler=None if rows is None else rows.tolist(),
        collate_fn=_collate,
        persistent_workers=False,
    )
    for good, batch, failures in loader:
        for row, reason in failures.items():
            bad.add(images.name, images.ids[row], reason, len(images))
        if len(good):
            yield good, batch


class _Reading(torch.utils.data.Dataset[tuple[int, Any]]):
    """(row, tensor) of a readable image, (row, reason) of another."""

    def __init__(self, images: LabelledImages, transform: Transform):
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[int, Tensor | str]:
        try:
            if hasattr(self.transform, "of_row"):  # noise of a row depends on the row, not on who read it when
                return row, self.transform.of_row(self.images.open(row), row)
            return row, self.transform(self.images.open(row))
        except Exception as error:  # Pillow raises many types on broken files
            return row, reason_of(error)


def _collate(items: list[tuple[int, Tensor | str]]) -> tuple[Int[Tensor, "b"], Tensor, dict[int, str]]:
    good = [(row, image) for row, image in items if isinstance(image, Tensor)]
    failures = {row: reason for row, reason in items if isinstance(reason, str)}
    batch = torch.stack([image for _, image in good]) if good else torch.empty(0)
    return torch.tensor([row for row, _ in good], dtype=torch.long), batch, failures


def subfolders(folder: Path) -> list[str]:
    """Names of the folders directly in ``folder``, sorted as text, hidden ones left out."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
