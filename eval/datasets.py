"""The datasets of the evaluations: a registry of small entries, and readers of folders, parquet files and the Hub.

Nothing is downloaded by itself: most of these sets need a licence to be accepted. A missing one says where it is to be
had, and how its folder must look.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.errors import EvalError
from eval.images import LabelledImages, subfolders

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
        EvalError: it is not there; the message says where to get it and how its folder must look.
    """
    if name not in REGISTRY:
        path = Path(name)
        if not path.exists():
            raise EvalError(
                f"dataset {name!r} is neither a path that exists nor hub:OWNER/NAME nor one of {', '.join(REGISTRY)}"
            )
        return path
    entry = REGISTRY[name]
    folder = Path(root or os.environ.get(ROOT_VARIABLE) or "data") / name
    if not folder.is_dir():
        splits = ", ".join(split for split in (entry.train, entry.test) if split not in ("", "."))
        hub = f", or pass hub:{entry.hub}" if entry.hub else ""
        raise EvalError(
            f"{name} is not in {folder}. Get it from {entry.page} and lay it out as {LAYOUTS[entry.layout]}"
            f"{f' in {splits}' if splits else ''}{hub}; the folder of all datasets is set by root= or {ROOT_VARIABLE}"
        )
    return folder


def open_labelled(name: str, split: str, root: str | Path | None = None) -> LabelledImages:
    """Labelled images of a split, "train" or "test".

    Args:
        name: of the registry; a folder with a sub-folder per split, or of class folders itself; a parquet file with
            columns ``image`` and ``label``; or ``hub:OWNER/NAME``.
    """
    if split not in ("train", "test"):
        raise EvalError(f"split {split!r} must be train or test")
    if name.startswith("hub:"):
        return _open_hub(name.removeprefix("hub:"), split)
    entry, path = entry_of(name), locate(name, root)
    if path.suffix == ".parquet":
        return _open_parquet(path)
    if any(path.glob(f"{split}*.parquet")):
        return _open_parquet(*sorted(path.glob(f"{split}*.parquet")))
    return open_class_folders(_split_folder(path, name, split) or path, name, entry.crop_border)


def _split_folder(folder: Path, name: str, split: str) -> Path | None:
    """The sub-folder of a split; None where a folder of the user's own has none.

    Raises:
        EvalError: a registered dataset that has no such split, or whose folder is missing.
    """
    if name not in REGISTRY:
        usual = {"train": ["train", "training"], "test": ["test", "val", "validation"]}[split]
        return next((folder / found for found in usual if (folder / found).is_dir()), None)
    wanted = REGISTRY[name].train if split == "train" else REGISTRY[name].test
    if not wanted:
        raise EvalError(f"{name} has no {split} split")
    if not (folder / wanted).is_dir():
        raise EvalError(f"{folder} has no folder {wanted!r}; {name} needs it, see {REGISTRY[name].page}")
    return folder / wanted


def open_class_folders(folder: Path, name: str = "", crop_border: int = 0) -> LabelledImages:
    """Images in one folder per class; classes are numbered by their folders' names, sorted as text.

    Raises:
        EvalError: no class folder, or an empty one (it would shift nothing, but its class could never be right).
    """
    classes = subfolders(folder)
    if not classes:
        raise EvalError(f"{folder} has no class folders; it must hold {LAYOUTS['classes']}")
    paths: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        found = sorted(path for path in (folder / class_name).rglob("*") if path.suffix.lower() in ENDINGS)
        if not found:
            raise EvalError(f"class folder {folder / class_name} has no images; remove it or fill it")
        paths += found
        labels += [label] * len(found)
    ids = [str(path.relative_to(folder)) for path in paths]
    images = LabelledImages(name or folder.name, paths, torch.tensor(labels), classes, ids, crop_border=crop_border)
    images.digest = _digest_files(images.digest, folder, paths)
    return images


def _digest_files(digest: str, folder: Path, paths: list[Path]) -> str:
    """Of a digest and of place, sizes and times of files: cached features of other files are never taken for these."""
    found = hashlib.blake2b(f"{digest} {folder.resolve()}".encode(), digest_size=16)
    for path in paths:
        if path.exists():  # a missing file is a bad image later on
            state = path.stat()
            found.update(f"{state.st_size} {state.st_mtime_ns} ".encode())
    return found.hexdigest()


def check_same_classes(train: LabelledImages, test: LabelledImages) -> None:
    """Refuse a test set whose class numbers mean something else.

    Raises:
        EvalError: the class names differ.
    """
    if train.class_names != test.class_names:
        differing = sorted(set(train.class_names) ^ set(test.class_names))[:5]
        raise EvalError(
            f"{train.name} has {len(train.class_names)} training classes but {test.name} {len(test.class_names)} test "
            f"classes; labels would not mean the same. Only in one of them: {', '.join(differing) or 'their order'}"
        )


class _Encoded(Sequence[Any]):
    """The undecoded images of a Hugging Face dataset."""

    def __init__(self, data: Any, column: str):
        self.data, self.column = data, column

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: Any) -> Any:
        return self.data[int(row)][self.column]


def from_hugging_face(data: Any, name: str, image_column: str = "", label_column: str = "") -> LabelledImages:
    """A `datasets.Dataset` with a column of images and one of labels; the columns are found where not named.

    Raises:
        EvalError: no such columns, or labels that are missing.
    """
    from datasets import ClassLabel, Image

    images = [image_column] if image_column else [key for key, kind in data.features.items() if isinstance(kind, Image)]
    for key in ("image", "img"):
        if not images and key in data.column_names:
            images = [key]
    labels = [label_column] if label_column else []
    labels = labels or [key for key in ("label", "fine_label", "labels", "class") if key in data.column_names]
    labels = labels or [key for key, kind in data.features.items() if isinstance(kind, ClassLabel)]
    if not images or not labels or images[0] not in data.column_names or labels[0] not in data.column_names:
        raise EvalError(f"{name} needs a column of images and one of labels; it has {', '.join(data.column_names)}")
    kind = data.features[labels[0]]
    values = data.with_format(None)[labels[0]][:]
    missing = next((row for row, value in enumerate(values) if value is None or value == -1), None)
    if missing is not None:
        raise EvalError(f"{name}: row {missing} has no label; take a split that is labelled")
    if isinstance(kind, ClassLabel):
        names, numbers = list(kind.names), [int(value) for value in values]
    elif isinstance(values[0], int):
        numbers = [int(value) for value in values]
        names = [str(i) for i in range(max(numbers) + 1)]
        if "class" in data.column_names and labels[0] != "class":
            for number, text in zip(numbers, data.with_format(None)["class"][:], strict=True):
                names[number] = str(text)
    else:
        names = sorted({str(value) for value in values})
        index = {text: i for i, text in enumerate(names)}
        numbers = [index[str(value)] for value in values]
    if isinstance(data.features[images[0]], Image):
        data = data.cast_column(images[0], Image(decode=False))
    encoded = _Encoded(data.select_columns([images[0]]), images[0])
    ids = [f"row {row}" for row in range(len(data))]
    found = LabelledImages(name, encoded, torch.tensor(numbers), names, ids)
    found.digest = hashlib.blake2b(f"{found.digest} {data._fingerprint}".encode(), digest_size=16).hexdigest()
    return found


def _open_parquet(*paths: Path) -> LabelledImages:
    from datasets import Dataset

    try:
        data = Dataset.from_parquet([str(path) for path in paths])
    except Exception as error:  # pyarrow and datasets raise many types
        raise EvalError(f"{paths[0]} cannot be read as parquet: {' '.join(str(error).split())[:200]}") from error
    return from_hugging_face(data, str(paths[0]))


def _open_hub(name: str, split: str) -> LabelledImages:
    from datasets import load_dataset

    tried = {"train": ["train"], "test": ["test", "validation", "valid", "val"]}[split]
    reason = ""
    for wanted in tried:
        try:
            data = load_dataset(name, split=wanted)
        except ValueError as error:  # no such split: try the next name
            reason = reason or str(error)
            continue
        except Exception as error:  # offline, gated, no such dataset
            page = f"https://huggingface.co/datasets/{name}"
            raise EvalError(
                f"hub:{name} cannot be loaded ({' '.join(str(error).split())[:200]}); see {page}"
            ) from error
        try:
            return from_hugging_face(data, f"hub:{name}:{wanted}")
        except EvalError:
            if wanted == tried[-1]:
                raise
            continue  # imagenet-1k's test split has no labels, its validation split has
    raise EvalError(f"hub:{name} has no split {' or '.join(tried)}: {' '.join(reason.split())[:200]}")


def open_table(
    path: str | Path, label_column: str = "label", group_column: str = "group", path_column: str = "path"
) -> LabelledImages:
    """Images listed in a CSV table (Dollar Street and the like); paths are relative to the table's folder.

    Raises:
        EvalError: unreadable, a missing column (the message lists those there are), or an empty cell.
    """
    import csv

    path = Path(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
            columns = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvalError(f"table {path} cannot be read: {error}") from error
    for column in (path_column, label_column, group_column):
        if column not in columns:
            raise EvalError(f"table {path} has no column {column!r}; it has {', '.join(columns) or 'none'}")
    for number, row in enumerate(rows, start=2):
        if not row[path_column] or not row[label_column]:
            raise EvalError(f"table {path}: line {number} has no path or no label")
    names = sorted({row[label_column] for row in rows})
    index = {name: i for i, name in enumerate(names)}
    labels = torch.tensor([index[row[label_column]] for row in rows], dtype=torch.long)
    sources = [path.parent / row[path_column] for row in rows]
    ids = [row[path_column] for row in rows]
    groups = [row[group_column] or "" for row in rows]
    images = LabelledImages(str(path), sources, labels, names, ids, groups)
    images.digest = _digest_files(images.digest, path.parent, sources)
    return images


@dataclass
class ImagePairs:
    """Images with a mask or a depth map of each.

    Attributes:
        name: for messages.
        images, targets: paths.
    """

    name: str
    images: list[Path]
    targets: list[Path]

    def __len__(self) -> int:
        return len(self.images)


def open_pairs(name: str, split: str, kind: str, root: str | Path | None = None) -> ImagePairs:
    """Images and targets of the same name without ending.

    Args:
        split: "train" or "test".
        kind: folder of the targets: "annotations" or "depth".

    Raises:
        EvalError: no such folder, or an image without target.
    """
    path = locate(name, root)
    found_images, found_targets = (_split_folder(path / part, name, split) for part in ("images", kind))
    if found_images is None or found_targets is None:
        raise EvalError(f"{path} has no {split} split of images and {kind}; lay it out as {LAYOUTS['pairs']}")
    images, targets = found_images, found_targets
    by_stem = {str(found.relative_to(targets).with_suffix("")): found for found in targets.rglob("*.*")}
    chosen = sorted(found for found in images.rglob("*") if found.suffix.lower() in ENDINGS)
    if not chosen:
        raise EvalError(f"{images} has no images")
    pairs = ImagePairs(name, chosen, [])
    for image in chosen:
        stem = str(image.relative_to(images).with_suffix(""))
        if stem not in by_stem:
            raise EvalError(f"{image} has no target {targets / stem}.png or .npy")
        pairs.targets.append(by_stem[stem])
    return pairs


def read_target(path: Path, scale: float = 1.0) -> np.ndarray:
    """A mask (integers) or a depth map (``scale`` units to one metre): (h, w).

    Raises:
        EvalError: unreadable, or with colours.
    """
    from PIL import Image

    try:
        array = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.asarray(Image.open(path))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise EvalError(f"target {path} cannot be read: {error}") from error
    if array.ndim != 2:
        raise EvalError(f"target {path} has shape {array.shape}; it must have one channel")
    return array / scale if scale != 1 else array
