"""Labelled images of Hugging Face datasets: parquet files and names of the hub."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from eval.images import LabelledImages
from foundation.errors import CurationError
from foundation.hub import hub_within_reach
from foundation.paths import regular_file


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
        CurationError: no such columns, or labels that are missing.
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
        raise CurationError(f"{name} needs a column of images and one of labels; it has {', '.join(data.column_names)}")
    kind = data.features[labels[0]]
    values = data.with_format(None)[labels[0]][:]
    missing = next((row for row, value in enumerate(values) if value is None or value == -1), None)
    if missing is not None:
        raise CurationError(f"{name}: row {missing} has no label; take a split that is labelled")
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


def open_parquet(*paths: Path) -> LabelledImages:
    from datasets import Dataset

    try:
        data = Dataset.from_parquet([str(regular_file(path)) for path in paths])
    except CurationError:
        raise
    except Exception as error:  # pyarrow and datasets raise many types
        raise CurationError(f"{paths[0]} cannot be read as parquet: {' '.join(str(error).split())[:200]}") from error
    return from_hugging_face(data, str(paths[0]))


def open_hub(name: str, split: str) -> LabelledImages:
    from datasets import load_dataset

    tried = {"train": ["train"], "test": ["test", "validation", "valid", "val"]}[split]
    reason = ""
    for wanted in tried:
        try:
            with hub_within_reach():
                data = load_dataset(name, split=wanted)
        except ValueError as error:  # no such split: try the next name
            reason = reason or str(error)
            continue
        except Exception as error:  # offline, gated, no such dataset
            page = f"https://huggingface.co/datasets/{name}"
            raise CurationError(
                f"hub:{name} cannot be loaded ({' '.join(str(error).split())[:200]}); see {page}"
            ) from error
        try:
            return from_hugging_face(data, f"hub:{name}:{wanted}")
        except CurationError:
            if wanted == tried[-1]:
                raise
            continue  # imagenet-1k's test split has no labels, its validation split has
    raise CurationError(f"hub:{name} has no split {' or '.join(tried)}: {' '.join(reason.split())[:200]}")
