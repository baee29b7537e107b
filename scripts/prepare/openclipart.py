"""Make data/openclipart.parquet: 6,900 public-domain clip-art pictures in a natural long tail of 159 folders.

Get the pictures once (see data/README.md), then: python scripts/prepare/openclipart.py FOLDER/usr/share/openclipart/png
"""

import io
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PillowImage
from tqdm import tqdm

from curation.pools.pool import save_pool
from foundation.command import run_command
from foundation.errors import CurationError
from foundation.files import write_atomically
from foundation.images import reason_of
from foundation.options import Parser, number_type, path_type

# the package has three pictures above Pillow's guard of 179 megapixels, the largest of 623 (5 GB of memory to reduce)
PillowImage.MAX_IMAGE_PIXELS = 640_000_000
MADE_BY = "made by prepare/openclipart"


def small_picture(path: Path, side: int, quality: int) -> bytes:
    """WebP bytes of the picture on white, its longer side at most ``side`` pixels."""
    try:
        with PillowImage.open(path, formats=("PNG",)) as opened:
            picture = opened.convert("RGBA")
    except Exception as error:  # Pillow raises many types on broken files
        raise CurationError(f"{path} cannot be read: {reason_of(error)}; unpack the package again") from error
    picture.thumbnail((side, side), PillowImage.Resampling.LANCZOS)
    white = PillowImage.new("RGBA", picture.size, "white")
    stream = io.BytesIO()
    PillowImage.alpha_composite(white, picture).convert("RGB").save(stream, "webp", quality=quality, method=6)
    return stream.getvalue()


def main() -> None:
    """Read the folder of pictures and write one parquet file in the layout of Hugging Face datasets."""
    parser = Parser(__doc__)
    parser.add_argument("pictures", type=Path, help="the unpacked folder usr/share/openclipart/png")
    parser.add_argument("--output", type=path_type(MADE_BY, ".parquet"), default=Path("data/openclipart.parquet"))
    parser.add_argument("--side", type=number_type(int, ge=1, le=16384), default=96, help="longer side in pixels")
    parser.add_argument("--quality", type=number_type(int, ge=0, le=100), default=85, help="WebP quality, 0 to 100")
    arguments = parser.parse_args()

    # the package lists many pictures twice through symbolic links: only real files count
    files = sorted(p for p in arguments.pictures.rglob("*.png") if p.is_file() and not p.is_symlink())
    if not files:
        parser.error(f"{arguments.pictures} holds no .png pictures")
    names = [p.relative_to(arguments.pictures).as_posix() for p in files]
    # nine leaf names (actions, games, ...) occur in several places, so a label is the whole folder path
    labels = [name.rpartition("/")[0] for name in names]
    groups = [name.partition("/")[0] for name in names]
    pool = Dataset.from_dict(
        {
            "image": [
                {"bytes": small_picture(path, arguments.side, arguments.quality), "path": name}
                for path, name in zip(tqdm(files, unit="picture"), names, strict=True)
            ],
            "label": labels,
            "group": groups,
        },
        features=Features(
            image=Image(),
            label=ClassLabel(names=sorted(set(labels))),
            group=ClassLabel(names=sorted(set(groups))),
        ),
    )
    write_atomically(arguments.output, lambda stream: save_pool(pool, stream, MADE_BY))
    print(f"{arguments.output}: {len(pool)} pictures, {len(set(labels))} labels, {len(set(groups))} groups")


if __name__ == "__main__":
    run_command("openclipart", main)
