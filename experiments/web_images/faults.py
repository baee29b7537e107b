"""What the web adds to photographs: copies of the popular ones that are not quite copies, and pictures of nothing."""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

JUNK = ("noise", "flat", "gradient", "text", "blocks")


def near_duplicate(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The same picture as another site shows it: shifted by a few pixels, a little brighter or darker, recompressed."""
    width, height = image.size
    most = max(min(width, height) // 16, 1)
    dx, dy = (int(v) for v in rng.integers(-most, most + 1, 2))
    moved = Image.new("RGB", image.size, tuple(int(v) for v in np.asarray(image).mean((0, 1))))
    moved.paste(image, (dx, dy))
    moved = ImageEnhance.Brightness(moved).enhance(float(rng.uniform(0.9, 1.1)))
    stream = io.BytesIO()
    moved.save(stream, "JPEG", quality=int(rng.integers(60, 95)))
    return Image.open(stream).convert("RGB")


def junk(side: int, rng: np.random.Generator) -> Image.Image:
    """A picture without a subject: noise, one colour, a gradient, lines of text, or blocks; each kind as likely."""
    kind = JUNK[int(rng.integers(len(JUNK)))]
    pixels: Any
    if kind == "noise":
        pixels = rng.integers(0, 256, (side, side, 3))
    elif kind == "flat":
        pixels = rng.integers(0, 256, 3) + rng.normal(0, 3, (side, side, 3))
    elif kind == "gradient":
        ends = rng.integers(0, 256, (2, 3))
        along = np.linspace(0, 1, side)[:, None, None]
        pixels = np.broadcast_to(ends[0] * (1 - along) + ends[1] * along, (side, side, 3))
        pixels = np.rot90(pixels, int(rng.integers(4)))
    elif kind == "text":
        pixels = np.full((side, side, 3), 250)
        line = max(side // 12, 2)
        for top in range(line, side - line, 2 * line):
            left = line
            while left < side - line:
                word = int(rng.integers(line, 4 * line))
                pixels[top : top + line, left : min(left + word, side - line)] = rng.integers(0, 80)
                left += word + line
    else:
        cells = rng.integers(0, 256, (4, 4, 3))
        pixels = np.kron(cells, np.ones((-(-side // 4), -(-side // 4), 1)))[:side, :side]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
