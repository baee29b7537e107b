"""Images with a mask or a depth map of each."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from eval.images import content_of
from eval.registry import ENDINGS, LAYOUTS, locate, split_folder
from foundation.errors import CurationError
from foundation.files import load_array
from foundation.images import FORMATS
from foundation.paths import regular_file


@dataclass
class ImagePairs:
    """Images with a mask or a depth map of each.

    Attributes:
        name: for messages.
        images, targets: paths.
    """

    name: str
    images: list[Path]
    targets: list[Path]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def content(self) -> str:
        """See `eval.images.content_of`."""
        return content_of([path.stem for path in self.images], [*self.images, *self.targets])


def open_pairs(name: str, split: str, kind: str, root: str | Path | None = None) -> ImagePairs:
    """Images and targets of the same name without ending.

    Args:
        split: "train" or "test".
        kind: folder of the targets: "annotations" or "depth".

    Raises:
        CurationError: no such folder, or an image without target.
    """
    path = locate(name, root)
    found_images, found_targets = (split_folder(path / part, name, split) for part in ("images", kind))
    if found_images is None or found_targets is None:
        raise CurationError(f"{path} has no {split} split of images and {kind}; lay it out as {LAYOUTS['pairs']}")
    images, targets = found_images, found_targets
    by_stem: dict[str, Path] = {}
    for found in sorted(targets.rglob("*.*")):
        other = by_stem.setdefault(str(found.relative_to(targets).with_suffix("")), found)
        if other != found:
            raise CurationError(f"{found} and {other} are targets of one image; leave one")
    chosen = sorted(found for found in images.rglob("*") if found.suffix.lower() in ENDINGS)
    if not chosen:
        raise CurationError(f"{images} has no images")
    pairs = ImagePairs(name, chosen, [])
    for image in chosen:
        stem = str(image.relative_to(images).with_suffix(""))
        if stem not in by_stem:
            raise CurationError(f"{image} has no target {targets / stem}.png or .npy")
        pairs.targets.append(by_stem[stem])
    return pairs


def read_target(path: Path, scale: float = 1.0, picture: tuple[int, int] | None = None) -> np.ndarray:
    """A mask (integers) or a depth map (``scale`` units to one metre): (h, w).

    Args:
        picture: width and height of the upright picture that it belongs to; it may be smaller or larger than that.

    Raises:
        CurationError: unreadable, with colours, or of another shape than its picture.
    """
    try:
        regular_file(path, "give a mask or a depth map")
        array = load_array(path) if path.suffix == ".npy" else np.asarray(Image.open(path, formats=FORMATS))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise CurationError(f"target {path} cannot be read: {error}") from error
    if array.dtype.kind not in "biuf":
        raise CurationError(f"target {path} holds {array.dtype}; it must hold numbers")
    if array.ndim != 2 or not array.size:
        raise CurationError(f"target {path} has shape {array.shape}; it must have one channel, and pixels")
    height, width = array.shape
    if picture and not _alike(picture, (width, height)):
        raise CurationError(
            f"target {path} has {width} x {height} pixels and its picture {picture[0]} x {picture[1]}; cut both alike"
        )
    return array / scale if scale != 1 else array


def _alike(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one is the other scaled, each side rounded to a pixel."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= max(sum(one), sum(other))
