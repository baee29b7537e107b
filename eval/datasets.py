"""Labelled images of folders, tables, parquet files and the Hugging Face hub."""

import csv
import hashlib
from pathlib import Path

import torch

from eval.hub import open_hub, open_parquet
from eval.images import LabelledImages, subfolders
from eval.registry import ENDINGS, LAYOUTS, entry_of, locate, split_folder
from foundation.errors import CurationError
from foundation.paths import regular_file


def open_labelled(name: str, split: str, root: str | Path | None = None) -> LabelledImages:
    """Labelled images of a split, "train" or "test".

    Args:
        name: of the registry; a folder with a sub-folder per split, or of class folders itself; a parquet file with
            columns ``image`` and ``label``; or ``hub:OWNER/NAME``.
    """
    if split not in ("train", "test"):
        raise CurationError(f"split {split!r} must be train or test")
    if name.startswith("hub:"):
        return open_hub(name.removeprefix("hub:"), split)
    entry, path = entry_of(name), locate(name, root)
    if path.suffix == ".parquet":
        return open_parquet(path)
    if not path.is_dir():
        raise CurationError(f"dataset {name!r} is neither a folder nor a parquet file")
    if any(path.glob(f"{split}*.parquet")):
        return open_parquet(*sorted(path.glob(f"{split}*.parquet")))
    return open_class_folders(split_folder(path, name, split) or path, name, entry.crop_border)


def open_class_folders(folder: Path, name: str = "", crop_border: int = 0) -> LabelledImages:
    """Images in one folder per class; classes are numbered by their folders' names, sorted as text.

    Raises:
        CurationError: no class folder, or an empty one (it would shift nothing, but its class could never be right).
    """
    classes = subfolders(folder)
    if not classes:
        raise CurationError(f"{folder} has no class folders; it must hold {LAYOUTS['classes']}")
    paths: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        found = sorted(path for path in (folder / class_name).rglob("*") if path.suffix.lower() in ENDINGS)
        if not found:
            raise CurationError(f"class folder {folder / class_name} has no images; remove it or fill it")
        paths += found
        labels += [label] * len(found)
    ids = [str(path.relative_to(folder)) for path in paths]
    images = LabelledImages(name or folder.name, paths, torch.tensor(labels), classes, ids, crop_border=crop_border)
    images.digest = digest_files(images.digest, folder, paths)
    return images


def digest_files(digest: str, folder: Path, paths: list[Path]) -> str:
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
        CurationError: the class names differ.
    """
    if train.class_names != test.class_names:
        differing = sorted(set(train.class_names) ^ set(test.class_names))[:5]
        raise CurationError(
            f"{train.name} has {len(train.class_names)} training classes but {test.name} {len(test.class_names)} test "
            f"classes; labels would not mean the same. Only in one of them: {', '.join(differing) or 'their order'}"
        )


def open_table(
    path: str | Path, label_column: str = "label", group_column: str = "group", path_column: str = "path"
) -> LabelledImages:
    """Images listed in a CSV table (Dollar Street and the like); paths are relative to the table's folder.

    Raises:
        CurationError: unreadable, a missing column (the message lists those there are), or an empty cell.
    """
    path = Path(path)
    try:
        with open(regular_file(path, "give a CSV table"), newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
            columns = reader.fieldnames or []
    except CurationError:
        raise
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CurationError(f"table {path} cannot be read: {error}") from error
    for column in (path_column, label_column, group_column):
        if column not in columns:
            raise CurationError(f"table {path} has no column {column!r}; it has {', '.join(columns) or 'none'}")
        if columns.count(column) > 1:
            raise CurationError(f"table {path} has {columns.count(column)} columns {column!r}; leave one")
    for number, row in enumerate(rows, start=2):
        if None in row:
            raise CurationError(f"table {path}: line {number} has more cells than the head")
        if not row[path_column] or not row[label_column]:
            raise CurationError(f"table {path}: line {number} has no path or no label")
    names = sorted({row[label_column] for row in rows})
    index = {name: i for i, name in enumerate(names)}
    labels = torch.tensor([index[row[label_column]] for row in rows], dtype=torch.long)
    sources = [path.parent / row[path_column] for row in rows]
    ids = [row[path_column] for row in rows]
    groups = [row[group_column] or "" for row in rows]
    images = LabelledImages(str(path), sources, labels, names, ids, groups)
    images.digest = digest_files(images.digest, path.parent, sources)
    return images
