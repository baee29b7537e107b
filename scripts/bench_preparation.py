"""How many near-duplicates and how much junk preparation finds in real pictures, and how many good rows it loses.

python scripts/bench_preparation.py POOL... [--rows 1500] [--copies 600] [--junk 500] [--tail 0] [--drawings 0]
    [--embedder NAME] [--seed 0]
"""

import io
import tempfile
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image
from PIL import Image as Pillow
from PIL import ImageDraw, ImageEnhance, ImageOps

from curation.embedding.embed import embed_pool
from curation.embedding.embedders import open_embedder
from curation.pools.pool import open_pool
from curation.preparation.near_duplicates import NearRule
from curation.preparation.prepare import Preparation, find_kept
from experiments.web_images.faults import junk, near_duplicate
from foundation.command import run_command
from foundation.images import read_image
from foundation.options import Parser, number_type

BURSTS = (4, 10, 40, 100)


def jpeg(picture: Pillow.Image, quality: int = 95) -> bytes:
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def crop(picture: Pillow.Image, rng: np.random.Generator, least: float = 0.9, most: float = 0.97) -> Pillow.Image:
    """So much of each side, scaled back."""
    width, height = (max(1, int(side * rng.uniform(least, most))) for side in picture.size)
    left, top = (int(rng.integers(0, s - c + 1)) for s, c in zip(picture.size, (width, height), strict=True))
    return picture.crop((left, top, left + width, top + height)).resize(picture.size)


def written_on(picture: Pillow.Image, rng: np.random.Generator) -> Pillow.Image:
    """A word across the middle, as a watermark."""
    marked = picture.copy()
    side = min(marked.size)
    place, size = (0, marked.height // 2 - side // 10), max(8, side // 4)
    ImageDraw.Draw(marked).text(place, "SAMPLE", (255, 255, 255) if rng.random() < 0.5 else (0, 0, 0), font_size=size)
    return marked


MOTIFS = ("ring", "square", "triangle", "cross", "disk")


def drawing(motif: str, rng: np.random.Generator, side: int = 96) -> Pillow.Image:
    """A motif in two colours of its own, at a place, of a size and with a line of its own: a rare kind of pictures."""
    ground, colour = (tuple(int(value) for value in rng.integers(0, 256, 3)) for _ in range(2))
    picture = Pillow.new("RGB", (side, side), ground)
    pen, (x, y), r = ImageDraw.Draw(picture), side / 2 + rng.integers(-6, 7, 2), int(rng.integers(26, 34))
    width, box = int(rng.integers(2, 8)), (x - r, y - r, x + r, y + r)
    if motif == "ring":
        pen.ellipse(box, outline=colour, width=width)
    elif motif == "square":
        pen.rectangle(box, fill=colour)
    elif motif == "triangle":
        pen.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=colour)
    elif motif == "cross":
        pen.line((x - r, y - r, x + r, y + r), fill=colour, width=width)
        pen.line((x - r, y + r, x + r, y - r), fill=colour, width=width)
    else:
        pen.ellipse(box, fill=colour)
    return picture


COPIES = {
    "jpeg 50-90": lambda p, rng: Pillow.open(io.BytesIO(jpeg(p, int(rng.integers(50, 90))))),
    "brightness 0.8-1.2": lambda p, rng: ImageEnhance.Brightness(p).enhance(float(rng.uniform(0.8, 1.2))),
    "scaled to 0.7 and back": lambda p, _rng: p.resize([max(1, int(side * 0.7)) for side in p.size]).resize(p.size),
    "crop 0.9-0.97": crop,
    "flip": lambda p, _rng: ImageOps.mirror(p),
    "shift, brightness, jpeg": near_duplicate,
    "crop 0.6-0.85": lambda p, rng: crop(p, rng, 0.6, 0.85),
    "turned by 5-15 degrees": lambda p, rng: p.rotate(float(rng.uniform(5, 15)), Pillow.Resampling.BICUBIC),
    "written on": written_on,
}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("pools", nargs="+")
    numbers = {"rows": 1500, "copies": 600, "junk": 500, "tail": 0, "drawings": 0, "image-size": 96, "seed": 0}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=number_type(int, ge=name == "rows"), default=default)
    parser.add_argument("--embedder", default="efficientnet_lite0")
    parser.add_argument("--thresholds", type=number_type(float, gt=0, le=1), nargs="+", default=[0.9, 0.95, 0.98])
    options = parser.parse_args()
    rng, pictures, names = np.random.default_rng(options.seed), [], []
    for number, path in enumerate(options.pools):  # the last pools are a short tail of --tail rows
        stored = open_pool(path).with_format("arrow")
        if "image" not in stored.column_names:
            parser.error(f"{path} has no column of images")
        few = options.tail and number >= len(options.pools) - 2
        for row in rng.permutation(len(stored))[: options.tail if few else options.rows]:
            pictures.append(read_image(stored[int(row)]["image"][0].as_py()))
            names.append(Path(path).stem)
    for motif in MOTIFS:
        pictures += [drawing(motif, rng) for _ in range(options.drawings)]
        names += ["drawings"] * options.drawings
    originals = len(pictures)
    of = list(range(originals))
    kinds = ["original"] * originals
    for row in rng.permutation(originals)[: options.copies]:
        size = 1 if rng.random() < 0.8 else int(rng.choice(BURSTS, p=[0.5, 0.35, 0.12, 0.03]))
        kind = str(rng.choice(list(COPIES)))
        for _ in range(size):
            pictures.append(COPIES[kind if size == 1 else "shift, brightness, jpeg"](pictures[row], rng))
            of.append(int(row))
            kinds.append(kind if size == 1 else f"burst of {size}")
    pictures += [junk(48, rng) for _ in range(options.junk)]
    of += list(range(len(of), len(pictures)))
    kinds += ["junk"] * options.junk
    group, kind = np.array(of), np.array(kinds)
    domain = np.array([names[row] if row < originals else "junk" for row in of])
    features = Features({"image": Image()})
    with tempfile.TemporaryDirectory() as work:
        pool = Dataset.from_dict({"image": [{"bytes": jpeg(p), "path": None} for p in pictures]}, features=features)
        embed_pool(pool, open_embedder(options.embedder, options.image_size), work, n_workers=0, progress=False)
        for threshold in options.thresholds:
            kept = find_kept(pool, work, Preparation(near=NearRule(threshold)), workers=0, progress=False)
            print(f"\nthreshold {threshold}: {kept.line()}\n{kept.report['near']}")
            repeats = np.isin(kept.reasons, ["exact", "perceptual", "embedding"])
            good = repeats & (kept.repeats >= 0) & (group[kept.dropped] == group[kept.repeats])
            lost = np.bincount(group[kept.dropped[good]], minlength=len(group))
            sizes = np.bincount(group, minlength=len(group))
            for name in [*COPIES, *(f"burst of {n}" for n in BURSTS)]:
                mine = np.unique(group[kind == name])
                print(f"  found of {name}: {lost[mine].sum() / max(1, (sizes[mine] - 1).sum()):.2f} of {len(mine)}")
            for name in np.unique(domain[:originals]):
                rows = domain == name
                wrong = np.isin(kept.dropped, np.flatnonzero(rows)) & ~good
                print(
                    f"  lost of {name}, rows that repeat none of theirs: {wrong.sum() / rows.sum():.4f} of {rows.sum()}"
                )
            caught = ~repeats & (kind[kept.dropped] == "junk")
            print(f"  junk found by its rules: {caught.sum() / max(1, options.junk):.2f}")


if __name__ == "__main__":
    run_command("bench_preparation", main)
