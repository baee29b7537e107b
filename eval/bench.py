"""The workbench of a run: one model, its features of every dataset computed once, heads, and the rows found so far."""

import hashlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from eval.datasets import open_labelled
from eval.features import FeatureSet, extract
from eval.images import LabelledImages, Transform
from eval.knn import knn_scores
from eval.linear import LinearSettings, fit_linear
from eval.logistic import logistic_regression
from eval.models import FrozenModel
from eval.results import Results, Row, row_of
from eval.settings import RunSettings
from foundation.devices import open_device
from foundation.errors import CurationError
from foundation.intervals import Interval, mean_interval

HEADS = ("knn", "linear", "logistic")
Scores = Callable[[FeatureSet], Float[Tensor, "n classes"]]
# ten values cover the range of the 45 of the published sweep; the logistic evaluation itself takes all
HEAD_CS = tuple(10.0**e for e in range(-4, 6))


class Bench:
    """What an evaluation works with.

    Args:
        model: the frozen model.
        settings: shared by all evaluations.
        known: `Results.data` of the results that may be replaced by those of the same data alone.
    """

    def __init__(self, model: FrozenModel, settings: RunSettings, known: Mapping[str, list[str]] | None = None):
        self.model, self.settings, self.known = model, settings, known or {}
        self.results = Results(model.identity)
        self._features: dict[tuple[str, str], FeatureSet] = {}
        self._images: dict[tuple[str, str], LabelledImages] = {}

    def images(self, dataset: str, split: str) -> LabelledImages:
        """Labelled images of a split, listed once."""
        if not dataset:
            raise CurationError(f"no {split} dataset: set {split}=NAME, a folder, a parquet file or hub:OWNER/NAME")
        key = (dataset, split)
        if key not in self._images:
            found = self._images[key] = open_labelled(dataset, split, self.settings.root or None)
            if split == "test" and self.model.pool and (seen := found.lying_in(self.model.pool)):
                self.warn(
                    f"{dataset}: {seen:,} of the {len(found):,} test images lie in {self.model.pool}, the pool that "
                    "this model was pretrained on; what it does on new images may be worse"
                )
            self.seen(found.name, found.content)
        return self._images[key]

    def seen(self, dataset: str, content: str) -> None:
        """Keep what figures are measured on.

        Args:
            content: of `eval.images.content_of`.

        Raises:
            CurationError: the results that would be replaced are of other data of that name.
        """
        if content not in self.known.get(dataset, [content]):
            raise CurationError(
                f"{dataset} has changed since the results that are there were measured; choose another -o, or give "
                "--overwrite"
            )
        data = self.results.data.setdefault(dataset, [])
        data += [] if content in data else [content]

    def warn(self, line: str) -> None:
        """Keep what speaks against the figures, once."""
        if line not in self.results.warnings:
            self.results.warnings.append(line)

    def features(self, images: LabelledImages, transform: Transform | None = None) -> FeatureSet:
        """Features of images, computed once per run (and once at all with a cache folder)."""
        self.seen(images.name, images.content)
        key = (images.digest, getattr(transform, "identity", "") if transform else "")
        if key not in self._features:
            s = self.settings
            found = extract(
                self.model,
                images,
                s.cache or None,
                batch_size=s.batch_size,
                n_workers=s.n_workers,
                transform=transform,
                max_bad=s.max_bad,
                dtype=s.feature_dtype,
                progress=s.progress,
            )
            self.results.seconds["features"] = self.results.seconds.get("features", 0.0) + found.seconds
            if found.skipped:
                self.results.skipped[images.name] = found.skipped
            if transform is not None:  # 75 corrupted copies of a dataset are not kept in memory
                return found
            self._features[key] = found
        return self._features[key]

    def head(self, kind: str, train: FeatureSet, k: int, linear: LinearSettings) -> Scores:
        """A head fitted on training features: from features to a score of every training class.

        Raises:
            CurationError: an unknown head.
        """
        if kind == "knn":
            x = train.pooled()
            return lambda test: knn_scores(x, train.labels, test.pooled(), (k,), device=self.device)[k]
        if kind == "linear":
            probe = fit_linear(train, train.labels, linear, device=self.device)
            return probe.scores
        if kind == "logistic":
            model = logistic_regression(train.pooled().to(self.device), train.labels, HEAD_CS, seed=self.settings.seed)
            return lambda test: model.scores(test.pooled()).cpu()
        raise CurationError(f"head {kind!r} is unknown; use {', '.join(HEADS)}")

    @property
    def device(self) -> str:
        return str(open_device(self.settings.device))

    @property
    def bootstrap(self) -> dict[str, Any]:
        """Options of every interval of this run."""
        return {"n_resamples": self.settings.resamples, "seed": self.settings.seed}

    def sayer(self, title: str) -> Callable[[str], None]:
        """Prints lines on the error stream, without a terminal, too; with ``progress=false`` none."""

        def say(line: str) -> None:
            if self.settings.progress:
                print(f"{title}: {line}", file=sys.stderr, flush=True)

        return say

    def add(self, name: str, dataset: str, metric: str, value: float | Interval, n: int = 0) -> None:
        """Keep a figure."""
        row = (
            row_of(name, dataset, metric, value)
            if isinstance(value, Interval)
            else Row(name, dataset, metric, value, n=n)
        )
        self.results.rows.append(row)

    def add_mean(
        self, name: str, dataset: str, metric: str, values: Any, rows: Any = None, content: str | None = None
    ) -> None:
        """Keep the mean of one value per test row, its interval, and the values for paired comparisons.

        Args:
            rows: which rows of the dataset these are.
            content: of the dataset, where `images` did not open it.
        """
        x = np.asarray(values, dtype=np.float64)
        row = row_of(name, dataset, metric, mean_interval(x, **self.bootstrap))
        self.results.rows.append(row)
        self.results.per_row[row.key] = x
        which = np.arange(len(x)) if rows is None else np.asarray(rows)
        opened = self._images.get((dataset, "test"))
        about = content or (opened.content if opened else "")
        digest = hashlib.blake2b(about.encode() + which.astype(np.int64).tobytes(), digest_size=8)
        self.results.per_row_ids[row.key] = digest.hexdigest()
