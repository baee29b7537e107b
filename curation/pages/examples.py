"""What a row looks like: small pictures, or the beginning of a text, for every page that shows some."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageOps

from foundation.images import read_image

SNIPPET = 160  # characters of a text
QUALITIES = (80, 65, 50, 35, 20)


def thumbnail(image: Image.Image, size: int = 64) -> Image.Image:
    """An RGB square of ``size`` pixels, the picture centred on white; small pictures are enlarged."""
    image.draft("RGB", (2 * size, 2 * size))  # a large JPEG is decoded at a fraction of its size
    picture = ImageOps.contain(image.convert("RGBA"), (size, size), Image.Resampling.BICUBIC)
    sheet = Image.new("RGB", (size, size), "white")
    sheet.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2), picture)
    return sheet


def jpeg(picture: Image.Image, most: int | None = None) -> bytes:
    """JPEG of at most ``most`` bytes where a lower quality can reach that."""
    for quality in QUALITIES:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality, optimize=True)
        if most is None or len(stream.getvalue()) <= most:
            break
    return stream.getvalue()


def data_uri(content: bytes) -> str:
    """A JPEG for the ``src`` of a page that has no other files."""
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()


class Examples:
    """Pictures or texts of pool rows.

    Attributes:
        kind: "image", "text", or None where the pool has neither (or there is no pool).
        unreadable: pool rows whose picture could not be decoded; they are shown grey.
    """

    def __init__(self, pool: Any = None):
        self.unreadable: set[int] = set()
        names = [] if pool is None else getattr(pool, "column_names", ["image"])
        self.kind = next((kind for kind in ("image", "text") if kind in names), None)
        self._rows = pool
        if self.kind is not None and hasattr(pool, "select_columns"):
            from datasets import Image as ImageFeature

            self._rows = pool.select_columns([self.kind]).with_format(None)
            if isinstance(pool.features[self.kind], ImageFeature):
                self._rows = self._rows.cast_column("image", ImageFeature(decode=False))

    def picture(self, row: int, size: int) -> Image.Image:
        """Thumbnail of a row; a grey square where it cannot be decoded."""
        try:
            return thumbnail(self._open(self._rows[int(row)]["image"], size), size)
        except Exception:  # a damaged file raises whatever its decoder stumbles on
            self.unreadable.add(int(row))
            return Image.new("RGB", (size, size), "lightgrey")

    @staticmethod
    def _open(stored: Any, size: int) -> Image.Image:
        if not isinstance(stored, dict):
            return stored
        if stored["bytes"] is None and not Path(stored["path"]).exists():  # an archive or an address
            from datasets import Image as ImageFeature

            return ImageFeature().decode_example(stored)
        return read_image(stored, size)

    def sheet(self, rows: Int[np.ndarray, "m"], columns: int, size: int, gap: int = 3) -> Image.Image:
        """Pictures of some rows, left to right, top to bottom."""
        n_lines = max(1, -(-len(rows) // columns))
        width = min(columns, max(1, len(rows)))
        sheet = Image.new("RGB", (width * (size + gap) - gap, n_lines * (size + gap) - gap), "white")
        for position, row in enumerate(rows):
            where = (position % columns) * (size + gap), position // columns * (size + gap)
            sheet.paste(self.picture(row, size), where)
        return sheet

    def snippet(self, row: int) -> str:
        """The beginning of a row's text, on one line."""
        text = " ".join(str(self._rows[int(row)]["text"] or "").split())
        return text if len(text) <= SNIPPET else text[: SNIPPET - 1].rstrip() + "…"

    def show(
        self, rows: Int[np.ndarray, "m"], columns: int, size: int = 64, most: int = 60_000, n_texts: int = 6
    ) -> dict[str, Any]:
        """For a template: ``picture`` (a data URI of at most about ``most`` bytes) or ``texts``."""
        if self.kind == "image":
            return {"picture": data_uri(jpeg(self.sheet(rows, columns, size), most))}
        return {"texts": [self.snippet(row) for row in rows[:n_texts]]} if self.kind == "text" else {}
