"""Tasks that look at parts of a test set: head and tail classes, and groups of people."""

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from eval.bench import Bench
from eval.datasets import open_labelled, open_table
from eval.fairness import accuracy_by_group
from eval.longtail import head_medium_tail
from eval.registry import locate
from eval.robustness import map_by_name
from eval.tasks.base import Head
from foundation.errors import CurationError
from foundation.paths import regular_file
from foundation.settings import Count, CountOrZero, setting


@dataclass
class LongTail(Head):
    """Accuracy on head, medium and tail classes of the training set."""

    name: ClassVar[str] = "long_tail"
    edges: list[CountOrZero] = setting(
        (20, 100), "tail has fewer training images than the first, head more than the second"
    )
    thirds: bool = setting(False, "equal numbers of classes in each bin instead of edges")
    counts: str = setting("", "JSON list of training images per class; empty: counted in the training set")

    def run(self, bench: Bench) -> None:
        if len(self.edges) != 2 and not self.thirds:
            raise CurationError(f"edges {self.edges} must be two numbers of images")
        n_classes = len(bench.images(self.train, "train").class_names)
        given = _read_counts(self.counts, n_classes) if self.counts else None
        train, test = self.features(bench)
        counts = torch.bincount(train.labels, minlength=n_classes).numpy() if given is None else given
        predicted = self.fit(bench, train)(test).argmax(1)
        edges = "thirds" if self.thirds else (self.edges[0], self.edges[1])
        for part, value in head_medium_tail(predicted, test.labels, counts, edges, **bench.bootstrap).items():
            bench.add(self.name, self.tested, f"accuracy {part}" if part != "spread" else part, value)


@dataclass
class Fairness(Head):
    """Accuracy by group (region, income) of a test table, and the gap."""

    name: ClassVar[str] = "fairness"
    test: str = setting("", "CSV table with columns path, label and the group's; or dollar-street")
    train: str = setting("", "training set with the same class names: folder, parquet, hub:, or a CSV table")
    group: str = setting("group", "column of the group")
    min_rows: Count = setting(30, "smaller groups are not reported")
    top: Count = setting(1, "right when the label is among so many best classes")

    def run(self, bench: Bench) -> None:
        root = bench.settings.root or None
        test_table, train_name = self.test, self.train
        if self.test == "dollar-street":
            test_table = str(locate(self.test, root) / "test.csv")
            train_name = train_name or str(locate(self.test, root) / "train.csv")
        if not test_table.endswith(".csv"):
            raise CurationError(f"fairness needs a CSV table of the test images, not {self.test!r}")
        test_images = open_table(test_table, group_column=self.group)
        if train_name.endswith(".csv"):
            train_images = open_table(train_name, group_column="label")
        else:
            train_images = open_labelled(train_name, "train", root)
        class_map = map_by_name(test_images.class_names, train_images.class_names)
        train, test = bench.features(train_images), bench.features(test_images)
        scores = self.fit(bench, train)(test)
        truth = torch.tensor([classes[0] for classes in class_map.allowed])[test.labels]
        best = scores.topk(min(self.top, scores.shape[1]), dim=1).indices
        correct = (best == truth[:, None]).any(1)
        groups = [(test_images.groups or [])[row] for row in test.rows.tolist()]
        found = accuracy_by_group(correct, groups, self.min_rows, **bench.bootstrap)
        for name, value in found.groups.items():
            bench.add(self.name, self.test, f"accuracy {self.group}={name}", value)
        bench.add_mean(self.name, self.test, "accuracy", correct, test.rows, test_images.content)
        bench.add(self.name, self.test, f"gap over {self.group}", found.gap)
        bench.add(self.name, self.test, f"relative drop over {self.group}", found.relative_drop)


def _read_counts(path: str, n_classes: int) -> np.ndarray:
    try:
        with open(regular_file(path, "give a JSON list"), encoding="utf-8") as stream:
            counts = np.asarray(json.load(stream))
    except CurationError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CurationError(f"counts {path} cannot be read as a JSON list: {error}") from error
    if counts.shape != (n_classes,):
        raise CurationError(f"counts {path} has shape {counts.shape}; there are {n_classes} classes")
    if counts.dtype.kind not in "iu" or (counts < 0).any():
        raise CurationError(f"counts {path} must be whole numbers of images, 0 or more")
    return counts
