"""Pictures as every room reads them: upright RGB of 8 bits, and one line of reason where that cannot be had."""

import io
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from foundation.errors import CurationError
from foundation.paths import regular_file

# no others, whatever Pillow knows: an EPS is a program for Ghostscript
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
MOST_BYTES = 1 << 30
# up to twice Pillow's limit, beyond which it refuses by itself, a picture is large and no attack
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
LONGEST_RATIO = 100  # an image of 1 x 10,000 pixels would become 256 x 2,560,000 when its short side is scaled up
# protocol of an address that is no file, such as tile://..., -> what opens it; who makes such addresses enters it
OPENERS: dict[str, Callable[[str], Image.Image]] = {}
ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>")


def read_image(source: str | Path | Mapping[str, Any] | None, least_side: int = 0) -> Image.Image:
    """RGB image of a file or of a stored ``{bytes, path}``: upright, transparency on white, the first frame.

    Grey pictures of 16 bits keep their upper 8, whatever values they use.

    Args:
        source: path of a file or an address of `OPENERS`, or encoded bytes or such a path as `datasets` stores them.
        least_side: JPEGs may be decoded smaller (faster), but no side below twice this; 0 decodes in full.

    Raises:
        OSError, ValueError, ...: whatever Pillow says of a broken file, or of one in none of `FORMATS`.
        CurationError: no image there, no regular file, numbers of no known range, or a shape that is no photograph's.
    """
    if isinstance(source, Mapping):
        place: Any = io.BytesIO(source["bytes"]) if source.get("bytes") is not None else source.get("path")
    else:
        place = source
    if not place:
        raise CurationError("the row has no image")
    opener = OPENERS.get(place.partition("://")[0]) if isinstance(place, str) and "://" in place else None
    if opener is not None:
        return opener(place).convert("RGB")
    if isinstance(place, str | Path):
        place = picture_file(place)
    with Image.open(place, formats=FORMATS) as opened:
        if max(opened.size) > LONGEST_RATIO * min(opened.size):
            raise CurationError(f"an image of {opened.width} x {opened.height} pixels is no photograph")
        if least_side:
            opened.draft("RGB", (2 * least_side, 2 * least_side))
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith(("I", "F")):
            image = _of_8_bits(image, opened.format or "")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")


def picture_file(path: str | Path) -> Path:
    """The path of a picture's file, whose bytes may be read as a whole.

    Raises:
        CurationError: no regular file, or a larger one than a picture needs.
    """
    path = regular_file(path)
    if (size := path.stat().st_size) > MOST_BYTES:
        raise CurationError(f"{path} has {size / 1e9:.1f} GB, more than a picture needs")
    return path


def encoded_bytes(source: str | Path | Mapping[str, Any] | None) -> bytes:
    """The bytes of a picture as `read_image` takes it, nothing decoded; of a file that cannot be read its name."""
    stored: Mapping[str, Any] = source if isinstance(source, Mapping) else {"path": source}
    if stored.get("bytes") is not None or not stored.get("path"):
        return stored.get("bytes") or b""
    try:
        return picture_file(stored["path"]).read_bytes()
    except (OSError, CurationError):
        return Path(stored["path"]).name.encode()


def _of_8_bits(image: Image.Image, kind: str) -> Image.Image:
    """A grey picture of more than 8 bits."""
    values = np.asarray(image)
    # Pillow holds a PGM of 16 bits in 32, and older versions a PNG
    if not image.mode.startswith("I;16") and not (image.mode == "I" and kind in ("PNG", "PPM")):
        raise CurationError(f"its numbers are of mode {image.mode}, whose black and white are not known")
    return Image.fromarray((values >> 8).astype(np.uint8))


def reason_of(error: Exception) -> str:
    """Why an image could not be read, on one line that is the same in every run."""
    reason = " ".join(ADDRESS.sub("", str(error)).split())[:200]  # no addresses of memory
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__
