"""CIFAR-10 as parquet (image, label), from torchvision: python scripts/prepare/cifar10.py data/cifar10"""

import io
from functools import partial
from pathlib import Path

from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from torchvision.datasets import CIFAR10

from curation.pools.pool import save_pool
from foundation.command import run_command
from foundation.errors import CurationError
from foundation.files import require_own, write_atomically
from foundation.options import Parser, path_type

MADE_BY = "made by prepare/cifar10"


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("output", type=path_type(), help="folder of train.parquet and test.parquet")
    parser.add_argument("--download-to", type=Path, default=Path("data/.cifar10"), help="where torchvision keeps it")
    arguments = parser.parse_args()
    for name in ("train", "test"):
        require_own(arguments.output / f"{name}.parquet", MADE_BY, None)
    for name in ("train", "test"):
        try:
            source = CIFAR10(str(arguments.download_to), train=name == "train", download=True)
        except (RuntimeError, OSError) as error:  # what torchvision raises where the archive is not whole
            raise CurationError(f"{arguments.download_to}: {error}; delete it and run this again") from error
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=source.classes)})
        images, labels = [], []
        for image, label in source:
            stream = io.BytesIO()
            image.save(stream, "PNG")
            images.append({"bytes": stream.getvalue(), "path": None})
            labels.append(label)
        pool = Dataset.from_dict({"image": images, "label": labels}, features=features)
        write_atomically(arguments.output / f"{name}.parquet", partial(save_pool, pool, made_by=MADE_BY))


if __name__ == "__main__":
    run_command("cifar10", main)
