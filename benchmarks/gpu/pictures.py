"""Pictures that cost no download: noise that decodes like photographs, and labelled pictures of many concepts."""

import io
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw, ImageFilter

from foundation.files import whole_file

SHAPES = ("disc", "square", "triangle", "star", "ring", "cross", "stripes", "dots", "arc", "zigzag")
DISTINCT = 256  # pictures of noise; more are repeats


def noise_pool(rows: int, side: int) -> Dataset:
    """JPEGs of smooth noise: they cost as much to decode as photographs of this size."""
    rng, images = np.random.default_rng(0), []
    for _ in range(min(rows, DISTINCT)):
        coarse = Image.fromarray(rng.integers(0, 256, (max(side // 8, 1), max(side // 6, 1), 3), np.uint8))
        stream = io.BytesIO()
        coarse.resize((side, side * 3 // 4), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        images.append({"bytes": stream.getvalue(), "path": None})
    content = {"image": [images[i % len(images)] for i in range(rows)]}
    return Dataset.from_dict(content, features=Features({"image": ImageFeature()}))


def concept_picture(concept: int, side: int, rng: np.random.Generator) -> Image.Image:
    """A picture of a concept: its figure, texture and pair of hues are given, all else is drawn.

    Place, size, turn, light, the clutter behind and a second, weaker figure of any kind differ from picture to picture,
    so that neither the mean colour nor a thumbnail tells the concept.
    """
    traits = np.random.default_rng([17, concept])
    figure = SHAPES[int(traits.integers(len(SHAPES)))]
    hue, other, count, grain = traits.random(), traits.random(), int(traits.integers(1, 5)), float(traits.uniform(2, 9))
    canvas = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    canvas = Image.blend(canvas, Image.new("RGB", canvas.size, (128, 128, 128)), float(rng.uniform(0.2, 0.6)))
    distraction = SHAPES[int(rng.integers(len(SHAPES)))]
    _draw(canvas, distraction, rng.random(), rng.random(), float(rng.uniform(2, 9)), side / 7, rng)
    for _ in range(count):
        size = side * float(rng.uniform(0.16, 0.3))
        _draw(canvas, figure, hue + rng.normal(0, 0.03), other + rng.normal(0, 0.03), grain, size, rng)
    light = np.asarray(canvas, np.float32) * rng.uniform(0.6, 1.2) + rng.normal(0, 6, (side, side, 3))
    return Image.fromarray(np.clip(light, 0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(rng.uniform(0, 0.8))
    )


def _draw(
    canvas: Image.Image, figure: str, hue: float, other: float, grain: float, size: float, rng: np.random.Generator
) -> None:
    """One figure with a texture of two hues, at a random place and turn."""
    edge = max(int(2 * size), 8)
    mask = Image.new("L", (edge, edge), 0)
    pen, middle = ImageDraw.Draw(mask), edge / 2
    box = (1, 1, edge - 2, edge - 2)
    around = [np.pi * i / 5 for i in range(10)]
    if figure == "disc":
        pen.ellipse(box, 255)
    elif figure == "square":
        pen.rectangle(box, 255)
    elif figure == "triangle":
        pen.polygon([(middle, 1), (edge - 2, edge - 2), (1, edge - 2)], 255)
    elif figure == "star":
        radii = [middle * (0.98 if i % 2 == 0 else 0.4) for i in range(10)]
        pen.polygon([(middle + r * np.sin(a), middle - r * np.cos(a)) for r, a in zip(radii, around, strict=True)], 255)
    elif figure == "ring":
        pen.ellipse(box, outline=255, width=max(edge // 5, 2))
    elif figure == "cross":
        pen.rectangle((edge * 0.38, 1, edge * 0.62, edge - 2), 255)
        pen.rectangle((1, edge * 0.38, edge - 2, edge * 0.62), 255)
    elif figure == "stripes":
        for i in range(0, 5, 2):
            pen.rectangle((1, edge * i / 5, edge - 2, edge * (i + 1) / 5), 255)
    elif figure == "dots":
        for i in range(9):
            x, y = edge * (i % 3) / 3, edge * (i // 3) / 3
            pen.ellipse((x, y, x + edge / 4, y + edge / 4), 255)
    elif figure == "arc":
        pen.arc(box, 20, 240, 255, width=max(edge // 5, 2))
    else:
        pen.line([(edge * i / 6, edge * (0.2 if i % 2 else 0.8)) for i in range(7)], 255, width=max(edge // 7, 2))
    wave = np.sin(np.linspace(0, grain * 2 * np.pi, edge))[None, :, None] > 0
    colours = [_rgb(hue), _rgb(other)]
    texture = np.where(wave, colours[0], colours[1]).astype(np.uint8)
    patch = Image.fromarray(np.broadcast_to(texture, (edge, edge, 3)).copy())
    turn = float(rng.uniform(0, 360))
    patch, mask = patch.rotate(turn, expand=False), mask.rotate(turn, expand=False)
    left, top = (int(v) for v in rng.uniform(-edge / 4, canvas.width - edge * 0.75, 2))
    canvas.paste(patch, (left, top), mask)


def _rgb(hue: float) -> np.ndarray:
    """Saturated colour of a hue in turns of the circle."""
    return np.rint(127.5 + 127.5 * np.cos(2 * np.pi * (hue - np.arange(3) / 3)))


def _encoded(job: tuple[int, int, int, int]) -> list[dict[str, Any]]:
    concept, n, side, seed = job
    rng, found = np.random.default_rng([seed, concept]), []
    for _ in range(n):
        stream = io.BytesIO()
        concept_picture(concept, side, rng).save(stream, "JPEG", quality=90)
        found.append({"bytes": stream.getvalue(), "path": None})
    return found


def write_concepts(path: Path, concepts: int, of_each: int, side: int, seed: int, workers: int) -> None:
    """Parquet (image, label) with ``of_each`` pictures of every concept; the same for any number of workers."""
    jobs = [(concept, of_each, side, seed) for concept in range(concepts)]
    if workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            images = [item for part in pool.map(_encoded, jobs) for item in part]
    else:
        images = [item for job in jobs for item in _encoded(job)]
    labels = np.repeat(np.arange(concepts), of_each)
    names = [f"concept {i}" for i in range(concepts)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
    table = Dataset.from_dict({"image": images, "label": labels}, features=features)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        table.to_parquet(str(temporary))
