"""What tasks share: a training and a test set, and the head that is judged."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

from eval.bench import HEADS, Bench, Scores
from eval.datasets import check_same_classes
from eval.features import FeatureSet
from eval.images import LabelledImages
from eval.linear import LinearSettings
from eval.settings import Batch, Steps
from foundation.settings import Choices, Count, check, setting


class Task(Protocol):
    """An evaluation: a dataclass of settings that knows how to run itself on a bench."""

    name: ClassVar[str]

    def run(self, bench: Bench) -> None:
        """Add figures to the bench's results."""


@dataclass
class TrainTest:
    """A training and a test set of the same classes."""

    name: ClassVar[str]
    train: str = setting("", "training set: registered name, folder, parquet file or hub:OWNER/NAME")
    test: str = setting("", "test set; empty: the training set's test split")

    def __post_init__(self) -> None:
        check(self)

    def images(self, bench: Bench) -> tuple[LabelledImages, LabelledImages]:
        """Images of both.

        Raises:
            CurationError: their classes differ.
        """
        train = bench.images(self.train, "train")
        test = bench.images(self.test or self.train, "test")
        check_same_classes(train, test)
        if train.content == test.content:
            bench.warn(f"{self.tested}: the test images are the training images; give other ones")
        return train, test

    def features(self, bench: Bench) -> tuple[FeatureSet, FeatureSet]:
        train, test = self.images(bench)
        return bench.features(train), bench.features(test)

    @property
    def tested(self) -> str:
        return self.test or self.train


@dataclass
class Head(TrainTest):
    """A training and a test set, and the head that is judged."""

    head: Annotated[str, Choices(*HEADS)] = setting("linear", "knn, linear or logistic")
    k: Count = setting(20, "neighbours of the knn head")
    steps: Steps = setting(12_500, "SGD steps of the linear head")
    train_batch: Batch = setting(1024, "rows per step of the linear head")

    def fit(self, bench: Bench, train: FeatureSet) -> Scores:
        """A head fitted on the training features."""
        linear = LinearSettings(steps=self.steps, batch_size=self.train_batch, seed=bench.settings.seed)
        return bench.head(self.head, train, self.k, linear)
