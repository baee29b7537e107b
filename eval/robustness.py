"""Other test sets for the same classes: class maps from their folders to the classes that a head was trained on.

ImageNet-A, -R and -Sketch name their folders by WordNet ids and are matched by name; ImageNet-V2 names its folders
0 ... 999, which are class indices and not their place in a text-sorted listing ("10" comes before "2"); ObjectNet has
names of its own, several ImageNet classes each, and needs a class-map file.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eval.arrays import as_features, as_labels
from foundation.errors import CurationError
from foundation.jsonl import once
from foundation.numbers import is_digits
from foundation.paths import regular_file


@dataclass(frozen=True)
class ClassMap:
    """Which training classes count as right for each class of another dataset.

    Attributes:
        allowed: for each class of the other dataset, training class indices; empty: the class has no counterpart and
            its images are left out.
        n_train: training classes.
    """

    allowed: list[tuple[int, ...]]
    n_train: int

    @property
    def used(self) -> list[int]:
        """Training classes that some class maps to; predictions are restricted to them."""
        return sorted({c for classes in self.allowed for c in classes})


def map_by_name(class_names: list[str], train_names: list[str]) -> ClassMap:
    """Classes of the same name (WordNet ids).

    Raises:
        CurationError: no name is shared, or a name has no counterpart.
    """
    index = {name: i for i, name in enumerate(train_names)}
    missing = [name for name in class_names if name not in index]
    if missing:
        raise CurationError(
            f"{len(missing)} of {len(class_names)} classes have no training class of their name: {missing[0]!r}, ... "
            f"(training classes look like {train_names[0]!r}); give a class-map file"
        )
    return ClassMap([(index[name],) for name in class_names], len(train_names))


def map_by_index(class_names: list[str], n_train: int) -> ClassMap:
    """Folders named by the training class index (ImageNet-V2).

    Raises:
        CurationError: a folder is no number below ``n_train``.
    """
    allowed: list[tuple[int, ...]] = []
    for name in class_names:
        if not is_digits(name) or int(name) >= n_train:
            raise CurationError(f"class folder {name!r} is not a class index below {n_train}; give a class-map file")
        allowed.append((int(name),))
    return ClassMap(allowed, n_train)


def read_class_map(path: str | Path, class_names: list[str], train_names: list[str]) -> ClassMap:
    """Read a class map: JSON ``{"class": [targets]}``, or CSV lines ``class,target;target``.

    A target is a training class index or name. A class with an empty list has no counterpart; a class of the dataset
    that is not in the file is an error, since forgetting classes changes the figure silently.

    Raises:
        CurationError: unreadable, a class that is not in the map, or an unknown target.
    """
    path = Path(path)
    try:
        text = regular_file(path, "give a class map").read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            content = json.loads(text, object_pairs_hook=once)
            if not isinstance(content, dict):
                raise CurationError(f"class map {path} must be a JSON object of class: targets")
        else:
            rows = [row for row in csv.reader(text.splitlines()) if row]
            if any(len(row) != 2 for row in rows):
                raise ValueError(f"a line has {next(len(row) for row in rows if len(row) != 2)} cells, not 2")
            content = once([(name.strip(), [x for x in found.split(";") if x.strip()]) for name, found in rows])
    except OSError as error:
        raise CurationError(f"class map {path} cannot be read: {error.strerror}") from error
    except CurationError:
        raise
    except (ValueError, RecursionError, csv.Error) as error:
        raise CurationError(
            f"class map {path} cannot be read as JSON or as CSV lines 'class,target;target': {error}"
        ) from error
    index = {name: i for i, name in enumerate(train_names)}
    allowed = []
    for name in class_names:
        if name not in content:
            raise CurationError(f"class map {path} has no line for class {name!r}; an empty list leaves it out")
        value = content[name]
        targets = value if isinstance(value, list) else [value]
        allowed.append(tuple(_target(target, index, path, name) for target in targets))
    if not any(allowed):
        raise CurationError(f"class map {path} maps no class of this dataset")
    return ClassMap(allowed, len(train_names))


def _target(target: Any, index: dict[str, int], path: Path, name: str) -> int:
    text = str(target).strip()
    if text in index:
        return index[text]
    if is_digits(text) and int(text) < len(index):
        return int(text)
    raise CurationError(f"class map {path}: {name!r} maps to {text!r}, which is neither a training class nor its index")


def mapped_correct(
    scores: Any, labels: Any, class_map: ClassMap, restrict: bool = True
) -> tuple[Bool[Tensor, "m"], Int[Tensor, "m"]]:
    """Whether the best-scored training class is among the allowed ones.

    Args:
        scores: (n, training classes) of a head or of k-NN votes.
        labels: (n,) classes of the other dataset.
        restrict: look only at training classes that the map uses (the convention for ImageNet-A and -R, whose 200
            classes would otherwise compete with 800 others); for ObjectNet the convention is not to.

    Returns:
        (m,) right or wrong, and (m,) which of the n rows were judged; rows of classes without counterpart are not.
    """
    s: Float[Tensor, "n classes"] = as_features(scores, "scores")
    y = as_labels(labels, len(s)).to(s.device)
    if s.shape[1] != class_map.n_train:
        raise CurationError(f"scores have {s.shape[1]} columns but the class map {class_map.n_train} targets")
    if int(y.max()) >= len(class_map.allowed):
        raise CurationError(f"label {int(y.max())} is outside the class map of {len(class_map.allowed)} classes")
    allowed = torch.zeros(len(class_map.allowed), s.shape[1], dtype=torch.bool, device=s.device)
    for i, classes in enumerate(class_map.allowed):
        allowed[i, list(classes)] = True
    judged = allowed.any(1)[y].nonzero()[:, 0]
    if not len(judged):
        raise CurationError("no test row belongs to a class that the map knows")
    s, y = s[judged], y[judged]
    if restrict:
        s = s.masked_fill(~allowed.any(0), -torch.inf)
    return allowed[y, s.argmax(1)].cpu(), judged.cpu()


def mean_corruption_error(
    errors: dict[str, list[float]], baseline: dict[str, list[float]] | None = None
) -> dict[str, float]:
    """Corruption error of each corruption and their mean (Hendrycks & Dietterich 2019, section 4.1).

    Args:
        errors: corruption to top-1 error at each severity, in [0, 1].
        baseline: the same of a reference model; the error is then relative to it (ImageNet-C uses AlexNet), else the
            mean over severities as it is.

    Returns:
        Corruption to error, and ``mean``.
    """
    found = {}
    for name, values in errors.items():
        if baseline is not None and (name not in baseline or len(baseline[name]) != len(values)):
            raise CurationError(f"the baseline has no errors of {name} at {len(values)} severities")
        found[name] = sum(values) / (len(values) if baseline is None else sum(baseline[name]))
    if not found:
        raise CurationError("no corruption was measured")
    return found | {"mean": sum(found.values()) / len(found)}
