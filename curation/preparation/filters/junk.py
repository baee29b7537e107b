"""Pictures that show nothing, told without a model: too small, too long, blank, a bare gradient, or noise."""

from dataclasses import dataclass, fields

import numpy as np
from PIL import Image

from curation.preparation.filters.apply import Verdict
from foundation.errors import CurationError

SIDE = 128  # pixels along the longer side at which brightness is judged
MEASURES = ("side", "aspect", "spread", "detail", "grain")


@dataclass(frozen=True)
class JunkFilter:
    """Drops pictures without content; the score of a verdict is 0 (kept) or 1. 0 leaves a rule out.

    Attributes:
        min_side: shorter side, pixels; below it "small".
        max_aspect: longer side by shorter; above it "long".
        min_spread: standard deviation of the channel that varies most, of 0 to 255; below it "blank".
        min_detail: share of the variance that a plane of brightness does not explain; below it "gradient".
        max_grain: squared difference of neighbouring pixels by that of distant ones (0 smooth, 1 none like its
            neighbour); above it "noise".
    """

    min_side: int = 16
    max_aspect: float = 10.0
    min_spread: float = 4.0
    min_detail: float = 0.01
    max_grain: float = 0.8
    name: str = "junk"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "name" and value < 0:
                raise CurationError(f"{field.name} {value:g} must not be negative; 0 leaves the rule out")
        if 0 < self.max_aspect < 1:
            raise CurationError(f"max_aspect {self.max_aspect:g} is the longer side by the shorter: at least 1")

    def reason(self, measures: tuple[float, ...]) -> str | None:
        """Which rule a picture of these `MEASURES` breaks; None: none."""
        side, aspect, spread, detail, grain = measures
        if side < self.min_side:
            return "small"
        if self.max_aspect and aspect > self.max_aspect:
            return "long"
        if spread < self.min_spread:
            return "blank"
        if detail < self.min_detail:
            return "gradient"
        return "noise" if self.max_grain and grain > self.max_grain else None

    def __call__(self, picture: Image.Image) -> Verdict:
        keep = self.reason(measure(picture)) is None
        return Verdict(keep, float(not keep))


def measure(picture: Image.Image) -> tuple[float, float, float, float, float]:
    """`MEASURES` of a picture.

    Grain is taken from whole pixels of a window at the centre, since scaling down hides noise; the rest from the
    picture scaled to 128 pixels.
    """
    width, height = picture.size
    small = picture.convert("RGB")
    left, top = max(0, (width - SIDE) // 2), max(0, (height - SIDE) // 2)
    window = np.asarray(small.crop((left, top, min(width, left + SIDE), min(height, top + SIDE))).convert("L"), float)
    small.thumbnail((SIDE, SIDE))
    pixels = np.asarray(small, float)
    light = pixels.mean(2)
    spread = float(pixels.reshape(-1, 3).std(0).max())
    rows, columns = np.indices(light.shape)
    basis = np.stack([np.ones(light.size), rows.ravel(), columns.ravel()], 1)
    left_over = light.ravel() - basis @ np.linalg.lstsq(basis, light.ravel(), rcond=None)[0]
    detail = float(left_over.var() / max(light.var(), 1e-9)) if light.var() > 0.25 else 1.0
    variance = window.var()
    steps = [np.diff(window, axis=axis) for axis in (0, 1) if window.shape[axis] > 1]
    apart = float(np.mean([(step**2).mean() for step in steps])) if steps else 0.0
    grain = apart / (2 * variance) if variance > 0.25 else 0.0
    return float(min(width, height)), max(width, height) / max(1, min(width, height)), spread, detail, grain
