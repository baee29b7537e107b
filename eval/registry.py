"""The registry of datasets: one small entry each, and what a user reads when one is not there.

Nothing is downloaded by itself: most of these sets need a licence to be accepted. A missing one says where it is to be
had, and how its folder must look.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from foundation.errors import CurationError

ROOT_VARIABLE = "EVAL_DATA"
ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif", ".jp2"}
LAYOUTS = {
    "classes": "one folder of images per class",
    "pairs": "images/SPLIT/NAME.jpg with annotations/SPLIT/NAME.png (class indices) or depth/SPLIT/NAME.png|npy",
    "revisited": "jpg/NAME.jpg and gnd.json (the official pickle, converted)",
    "table": "images anywhere and a CSV table with columns path, label and those of the groups",
}


@dataclass(frozen=True)
class DatasetEntry:
    """One dataset.

    Attributes:
        page: official page to get it from.
        layout: of its folder; see `LAYOUTS`.
        train, test: sub-folder of each split; "." is the folder itself, "" where there is no such split.
        hub: name on the Hugging Face hub, where the owner is official or the copy is well known.
        classes: how class folders are matched to those of the training set of a robustness test: "name", "index", or
            "file" (a class-map file must be given).
        restrict: whether predictions are restricted to the classes of the set; see `eval.robustness.mapped_correct`.
        crop_border: pixels to cut off every side.
    """

    page: str
    layout: str = "classes"
    train: str = "train"
    test: str = "val"
    hub: str = ""
    classes: str = "name"
    restrict: bool = True
    crop_border: int = 0


REGISTRY: dict[str, DatasetEntry] = {
    "imagenet-1k": DatasetEntry("https://image-net.org/download.php", hub="ILSVRC/imagenet-1k"),
    "imagenet-a": DatasetEntry("https://github.com/hendrycks/natural-adv-examples", train="", test="."),
    "imagenet-r": DatasetEntry("https://github.com/hendrycks/imagenet-r", train="", test="."),
    "imagenet-sketch": DatasetEntry(
        "https://github.com/HaohanWang/ImageNet-Sketch", train="", test=".", hub="songweig/imagenet_sketch"
    ),
    "imagenet-v2": DatasetEntry(
        "https://github.com/modestyachts/ImageNetV2", train="", test=".", classes="index", restrict=False
    ),
    "objectnet": DatasetEntry(
        "https://objectnet.dev/download.html", train="", test="images", classes="file", restrict=False, crop_border=2
    ),
    "imagenet-lt": DatasetEntry("https://github.com/zhmiao/OpenLongTailRecognition-OLTR", test="test"),
    "places-lt": DatasetEntry("https://github.com/zhmiao/OpenLongTailRecognition-OLTR", test="test"),
    "inaturalist-2018": DatasetEntry("https://github.com/visipedia/inat_comp/tree/master/2018"),
    "inaturalist-2021": DatasetEntry("https://github.com/visipedia/inat_comp/tree/master/2021"),
    "places205": DatasetEntry("http://places.csail.mit.edu/downloadData.html"),
    "cifar-10": DatasetEntry("https://www.cs.toronto.edu/~kriz/cifar.html", test="test", hub="uoft-cs/cifar10"),
    "cifar-100": DatasetEntry("https://www.cs.toronto.edu/~kriz/cifar.html", test="test", hub="uoft-cs/cifar100"),
    "food-101": DatasetEntry(
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/", test="test", hub="ethz/food101"
    ),
    "sun397": DatasetEntry("https://vision.princeton.edu/projects/2010/SUN/", test="test"),
    "stanford-cars": DatasetEntry("https://ai.stanford.edu/~jkrause/cars/car_dataset.html", test="test"),
    "fgvc-aircraft": DatasetEntry("https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/", test="test"),
    "dtd": DatasetEntry("https://www.robots.ox.ac.uk/~vgg/data/dtd/", test="test"),
    "oxford-pets": DatasetEntry("https://www.robots.ox.ac.uk/~vgg/data/pets/", test="test"),
    "flowers-102": DatasetEntry("https://www.robots.ox.ac.uk/~vgg/data/flowers/102/", test="test"),
    "caltech-101": DatasetEntry("https://data.caltech.edu/records/mzrjq-6wc02", test="test"),
    "cub-200": DatasetEntry("https://www.vision.caltech.edu/datasets/cub_200_2011/", test="test"),
    "roxford5k": DatasetEntry("http://cmp.felk.cvut.cz/revisitop/", "revisited", "", "."),
    "rparis6k": DatasetEntry("http://cmp.felk.cvut.cz/revisitop/", "revisited", "", "."),
    "dollar-street": DatasetEntry("https://mlcommons.org/datasets/dollar-street/", "table", "train", "test"),
    "ade20k": DatasetEntry("https://groups.csail.mit.edu/vision/datasets/ADE20K/", "pairs", "training", "validation"),
    "cityscapes": DatasetEntry("https://www.cityscapes-dataset.com/downloads/", "pairs"),
    "voc2012": DatasetEntry("http://host.robots.ox.ac.uk/pascal/VOC/voc2012/", "pairs"),
    "nyu-depth-v2": DatasetEntry("https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html", "pairs", test="test"),
    "kitti-depth": DatasetEntry(
        "https://www.cvlibs.net/datasets/kitti/eval_depth.php?benchmark=depth_prediction", "pairs"
    ),
    "sun-rgbd": DatasetEntry("https://rgbd.cs.princeton.edu/", "pairs", test="test"),
}


def entry_of(name: str) -> DatasetEntry:
    """The entry of a registered name; that of a folder layout for anything else."""
    return REGISTRY.get(name, DatasetEntry("", test="val"))


def locate(name: str, root: str | Path | None = None) -> Path:
    """The folder of a registered dataset, or the path that was given.

    Args:
        name: of the registry, or a path.
        root: folder of all datasets; None takes the environment variable EVAL_DATA, else ``data``.

    Raises:
        CurationError: it is not there; the message says where to get it and how its folder must look.
    """
    if name not in REGISTRY:
        path = Path(name)
        if not path.exists():
            raise CurationError(
                f"dataset {name!r} is neither a path that exists nor hub:OWNER/NAME nor one of {', '.join(REGISTRY)}"
            )
        return path
    entry = REGISTRY[name]
    folder = Path(root or os.environ.get(ROOT_VARIABLE) or "data") / name
    if not folder.is_dir():
        splits = ", ".join(split for split in (entry.train, entry.test) if split not in ("", "."))
        hub = f", or pass hub:{entry.hub}" if entry.hub else ""
        raise CurationError(
            f"{name} is not in {folder}. Get it from {entry.page} and lay it out as {LAYOUTS[entry.layout]}"
            f"{f' in {splits}' if splits else ''}{hub}; the folder of all datasets is set by root= or {ROOT_VARIABLE}"
        )
    return folder


def split_folder(folder: Path, name: str, split: str) -> Path | None:
    """The sub-folder of a split; None where a folder of the user's own has none.

    Raises:
        CurationError: a registered dataset that has no such split, or whose folder is missing.
    """
    if name not in REGISTRY:
        usual = {"train": ["train", "training"], "test": ["test", "val", "validation"]}[split]
        return next((folder / found for found in usual if (folder / found).is_dir()), None)
    wanted = REGISTRY[name].train if split == "train" else REGISTRY[name].test
    if not wanted:
        raise CurationError(f"{name} has no {split} split")
    if not (folder / wanted).is_dir():
        raise CurationError(f"{folder} has no folder {wanted!r}; {name} needs it, see {REGISTRY[name].page}")
    return folder / wanted
