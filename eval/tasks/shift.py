"""Tasks under a shift of the data: other test sets of the same classes, and corruptions."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from eval.bench import Bench
from eval.corruptions import CORRUPTIONS, Corrupted
from eval.images import LabelledImages
from eval.registry import entry_of
from eval.robustness import (
    ClassMap,
    map_by_index,
    map_by_name,
    mapped_correct,
    mean_corruption_error,
    read_class_map,
)
from eval.tasks.base import Head
from eval.transforms import denormalise
from foundation.errors import CurationError
from foundation.settings import Choices, Range, setting


@dataclass
class Robustness(Head):
    """Other test sets of the training classes: ImageNet-A, -R, -Sketch, -V2, ObjectNet, and any with a class map."""

    name: ClassVar[str] = "robustness"
    train: str = setting("imagenet-1k", "training set of the head")
    tests: list[str] = setting(("imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-v2"), "test sets")
    class_map: str = setting("", "class-map file of the one test set (JSON or CSV); empty: by name or index")
    restrict: str = setting("auto", "look only at classes of the test set: yes, no, or auto (as is usual for the set)")

    def run(self, bench: Bench) -> None:
        if self.restrict not in ("auto", "yes", "no", "True", "False"):
            raise CurationError(f"restrict {self.restrict!r} must be auto, yes or no")
        if self.class_map and len(self.tests) != 1:
            raise CurationError("a class-map file belongs to one test set; give one in tests")
        train_images = bench.images(self.train, "train")
        tests = [(name, bench.images(name, "test")) for name in self.tests]
        maps = {name: self._map(name, images, train_images) for name, images in tests}  # mistakes before the long work
        scores = self.fit(bench, bench.features(train_images))
        for name, images in tests:
            test = bench.features(images)
            usual = entry_of(name).restrict
            restrict = usual if self.restrict == "auto" else self.restrict in ("yes", "True")
            correct, judged = mapped_correct(_fill(scores(test), maps[name]), test.labels, maps[name], restrict)
            bench.add_mean(self.name, name, f"accuracy {self.head}", correct, test.rows[judged])

    def _map(self, name: str, images: LabelledImages, train: LabelledImages) -> ClassMap:
        if self.class_map:
            return read_class_map(self.class_map, images.class_names, train.class_names)
        kind = entry_of(name).classes
        if kind == "file":
            raise CurationError(
                f"{name} has class names of its own; give class_map=FILE.json (class: training classes)"
            )
        if kind == "index":
            return map_by_index(images.class_names, len(train.class_names))
        return map_by_name(images.class_names, train.class_names)


def _fill(scores: torch.Tensor, class_map: ClassMap) -> torch.Tensor:
    """Scores with a column for every training class: the last ones may have lost all their images."""
    missing = class_map.n_train - scores.shape[1]
    return torch.nn.functional.pad(scores, (0, missing), value=float(scores.min())) if missing > 0 else scores


@dataclass
class CorruptionTest(Head):
    """Accuracy on corrupted copies of the test set, made on the fly (after ImageNet-C)."""

    name: ClassVar[str] = "corruptions"
    corruptions: list[Annotated[str, Choices(*CORRUPTIONS)]] = setting(tuple(CORRUPTIONS), "which ones")
    severities: list[Annotated[int, Range(ge=1, le=5)]] = setting((1, 2, 3, 4, 5), "1 (mild) to 5")

    def run(self, bench: Bench) -> None:
        train_images, test_images = self.images(bench)
        scores = self.fit(bench, bench.features(train_images))
        clean = bench.features(test_images)
        right = scores(clean).argmax(1) == clean.labels
        bench.add_mean(self.name, self.tested, "accuracy clean", right, clean.rows)
        crop, normalise = denormalise(bench.model)
        errors: dict[str, list[float]] = {}
        for name in self.corruptions:
            hits = []
            for severity in self.severities:
                transform = Corrupted(crop, normalise, name, severity, bench.settings.seed)
                test = bench.features(test_images, transform)
                hits.append((scores(test).argmax(1) == test.labels).double())
                errors.setdefault(name, []).append(1 - float(hits[-1].mean()))
            bench.add_mean(self.name, self.tested, f"accuracy {name}", torch.stack(hits).mean(0), test.rows)
        bench.add(self.name, self.tested, "mean corruption error", mean_corruption_error(errors)["mean"])
