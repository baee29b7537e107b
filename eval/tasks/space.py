"""Tasks that look at the feature space itself: retrieval, and plain numbers of the features."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from eval.bench import Bench
from eval.datasets import check_same_classes
from eval.feature_stats import alignment, effective_rank, uniformity
from eval.images import LabelledImages
from eval.registry import entry_of, locate
from eval.retrieval import find_ground_truth, label_retrieval, rank, read_ground_truth, revisited
from eval.transforms import two_views
from foundation.errors import CurationError
from foundation.settings import setting


@dataclass
class Retrieval:
    """Mean average precision: revisited Oxford and Paris, or images of the same class."""

    name: ClassVar[str] = "retrieval"
    test: str = setting("roxford5k", "roxford5k, rparis6k, a folder with jpg/ and gnd.json, or any labelled set")
    database: str = setting("", "labelled set that is searched; empty: the test set itself, without the query")

    def run(self, bench: Bench) -> None:
        is_labelled = self.test.startswith("hub:") or self.test.endswith(".parquet")
        folder = None if is_labelled else locate(self.test, bench.settings.root or None)
        if (folder is not None and entry_of(self.test).layout == "revisited") or (
            folder and (folder / "gnd.json").exists()
        ):
            assert folder is not None
            self._revisited(bench, folder)
            return
        test = bench.features(bench.images(self.test, "test"))
        if self.database:
            train = bench.images(self.database, "train")
            check_same_classes(train, bench.images(self.test, "test"))
            other = bench.features(train)
            found = label_retrieval(test.pooled(), test.labels, other.pooled(), other.labels)
        else:
            found = label_retrieval(test.pooled(), test.labels)
        judged = np.isfinite(found)
        if not judged.any():
            raise CurationError(f"{self.test}: no image has another one of its class to be found")
        bench.add_mean(self.name, self.test, "mAP", found[judged], test.rows.numpy()[judged])

    def _revisited(self, bench: Bench, folder: Path) -> None:
        truth = read_ground_truth(find_ground_truth(folder))
        images = {name: folder / "jpg" / f"{name}.jpg" for name in truth.database}
        images |= {query.name: folder / "jpg" / f"{query.name}.jpg" for query in truth.queries}
        zeros = torch.zeros(len(truth.database), dtype=torch.long)
        paths = [images[name] for name in truth.database]
        database = LabelledImages(f"{self.test} database", paths, zeros, ["image"], truth.database)
        names = [query.name for query in truth.queries]
        boxes = [query.box for query in truth.queries]
        paths = [images[name] for name in names]
        queries = LabelledImages(
            f"{self.test} queries", paths, zeros[:1].expand(len(names)), ["image"], names, boxes=boxes
        )
        found = [bench.features(part) for part in (queries, database)]
        for part, features in zip((queries, database), found, strict=True):
            if len(features) < len(part):
                raise CurationError(
                    f"{part.name}: {next(iter(features.skipped.items()))} cannot be left out of a ranking"
                )
        for protocol, result in revisited(rank(found[0].pooled(), found[1].pooled()), truth).items():
            judged = np.isfinite(result.per_query)
            which, content = np.flatnonzero(judged), queries.content + database.content
            bench.add_mean(self.name, self.test, f"mAP {protocol}", result.per_query[judged], which, content)
            for k, value in result.precision.items():
                bench.add(self.name, self.test, f"mP@{k} {protocol}", value, int(judged.sum()))


@dataclass
class FeatureStats:
    """Plain numbers of the features: effective rank, alignment, uniformity."""

    name: ClassVar[str] = "feature_stats"
    test: str = setting("", "dataset whose test split is looked at; labels play no part")
    views: bool = setting(True, "alignment of two random crops of each image (two more forward passes)")

    def run(self, bench: Bench) -> None:
        images = bench.images(self.test, "test")
        features = bench.features(images)
        x = features.pooled().to(bench.device)
        bench.add(self.name, self.test, "effective rank", effective_rank(x), len(x))
        bench.add(self.name, self.test, "uniformity", uniformity(x), len(x))
        if self.views:
            first, second = (bench.features(images, view) for view in two_views(bench.model, bench.settings.seed))
            bench.add(self.name, self.test, "alignment", alignment(first.pooled(), second.pooled()), len(first))
