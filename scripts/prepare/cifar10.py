"""CIFAR-10 as parquet (image, label), from torchvision: python scripts/prepare/cifar10.py data/cifar10"""

import argparse
import io
from pathlib import Path

from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from torchvision.datasets import CIFAR10

from foundation.command import run_command
from foundation.errors import CurationError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="folder of train.parquet and test.parquet")
    parser.add_argument("--download-to", type=Path, default=Path("data/.cifar10"), help="where torchvision keeps it")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in ("train", "test"):
        try:
            source = CIFAR10(str(arguments.download_to), train=name == "train", download=True)
        except RuntimeError as error:  # what torchvision raises where the archive is not whole
            raise CurationError(f"{arguments.download_to}: {error}; delete it and run this again") from error
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=source.classes)})
        images, labels = [], []
        for image, label in source:
            stream = io.BytesIO()
            image.save(stream, "PNG")
            images.append({"bytes": stream.getvalue(), "path": None})
            labels.append(label)
        Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(
            str(arguments.output / f"{name}.parquet")
        )


if __name__ == "__main__":
    run_command("cifar10", main)
