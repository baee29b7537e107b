"""Tasks of classification: k-NN, linear probe, logistic regression, few-shot."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from eval.bench import Bench
from eval.features import streamed
from eval.fewshot import CLASSIFIERS, few_shot
from eval.images import LabelledImages
from eval.knn import BACKENDS, knn_predictions
from eval.linear import (
    LEARNING_RATES,
    PRECISIONS,
    LinearProbe,
    LinearSettings,
    Say,
    choose_head,
    fit_linear,
    train_heads,
)
from eval.logistic import DEFAULT_CS, logistic_regression
from eval.settings import Batch, Steps
from eval.splits import validation_split
from eval.tasks.base import TrainTest
from eval.transforms import augmented
from foundation.errors import CurationError
from foundation.settings import Choices, Count, Positive, Range, Temperature, setting

MOST_READ = 1_000_000_000  # images that augmentation reads: their order is held in memory


@dataclass
class Knn(TrainTest):
    """Weighted k-nearest-neighbour accuracy (DINO protocol)."""

    name: ClassVar[str] = "knn"
    ks: list[Count] = setting((10, 20, 100, 200), "numbers of neighbours")
    temperature: Temperature = setting(0.07, "of the votes")
    backend: Annotated[str, Choices(*BACKENDS)] = setting("torch", "torch or faiss; both are exact")
    blocks: Count = setting(1, "class tokens of how many last blocks")
    mean_patch: bool = setting(False, "append the mean patch token")

    def run(self, bench: Bench) -> None:
        train, test = self.features(bench)
        found = knn_predictions(
            train.pooled(self.blocks, self.mean_patch),
            train.labels,
            test.pooled(self.blocks, self.mean_patch),
            self.ks,
            temperature=self.temperature,
            backend=self.backend,
            device=bench.device,
        )
        for k, predicted in found.items():
            bench.add_mean(self.name, self.tested, f"accuracy k={k}", predicted == test.labels, test.rows)


@dataclass
class Linear(TrainTest):
    """Linear probe: learning rates x blocks x pooling in one pass; the best head is chosen on a part of train."""

    name: ClassVar[str] = "linear"
    learning_rates: list[Positive] = setting(LEARNING_RATES, "swept; multiplied by train_batch / 256")
    steps: Steps = setting(12_500, "SGD steps")
    train_batch: Batch = setting(1024, "rows per step")
    val_share: Annotated[float, Range(gt=0, lt=1)] = setting(0.1, "part of train that chooses the head")
    refit: bool = setting(False, "train the chosen head again on all of train (cached features only)")
    augment: bool = setting(False, "random crops and flips: a forward pass per step instead of cached features")
    head_precision: Annotated[str, Choices(*PRECISIONS)] = setting(
        "float32", "of the heads' products: float32 or bfloat16"
    )

    def run(self, bench: Bench) -> None:
        settings = LinearSettings(
            learning_rates=tuple(self.learning_rates),
            steps=self.steps,
            batch_size=self.train_batch,
            val_share=self.val_share,
            refit=self.refit and not self.augment,
            precision=self.head_precision,
            seed=bench.settings.seed,
        )
        train_images, test_images = self.images(bench)
        test = bench.features(test_images)
        say = bench.sayer(f"{self.name}, {len(train_images):,} images")
        if self.augment:
            probe = self._augmented(bench, train_images, settings, say)
        else:
            train = bench.features(train_images)
            probe = fit_linear(train, train.labels, settings, device=bench.device, say=say)
        correct = probe.scores(test).argmax(1) == test.labels
        bench.add_mean(self.name, self.tested, "accuracy", correct, test.rows)
        bench.add(self.name, self.tested, "validation accuracy", max(probe.val_accuracy.values()))
        bench.results.settings[f"{self.name}/{self.tested} chosen head"] = {
            "input": probe.input,
            "learning_rate": probe.learning_rate,
        }

    def _augmented(self, bench: Bench, images: LabelledImages, settings: LinearSettings, say: Say) -> LinearProbe:
        s = bench.settings
        if settings.steps * settings.batch_size > MOST_READ:
            raise CurationError(
                f"steps {settings.steps} x train_batch {settings.batch_size} would read more than {MOST_READ:,} images "
                "with augment; lower them"
            )
        fit_rows, val_rows = validation_split(images.labels, settings.val_share, settings.seed)
        generator = torch.Generator().manual_seed(settings.seed)
        epochs = -(-settings.steps * settings.batch_size // len(fit_rows))
        order = torch.cat([fit_rows[torch.randperm(len(fit_rows), generator=generator)] for _ in range(epochs)])
        order = order[: settings.steps * settings.batch_size]
        crops = augmented(bench.model)
        batches = streamed(bench.model, images, order, crops, settings.batch_size, s.n_workers, s.max_bad)
        banks = train_heads(batches, len(images.class_names), settings, bench.device, say)
        plain = streamed(bench.model, images, val_rows, bench.model.transform, s.batch_size, s.n_workers, s.max_bad)
        return choose_head(banks, settings, plain)


@dataclass
class Logistic(TrainTest):
    """Logistic regression (L-BFGS); the regularisation is chosen on a part of train."""

    name: ClassVar[str] = "logistic"
    cs: list[Positive] = setting(DEFAULT_CS, "inverse strengths of the regularisation, as in scikit-learn")
    val_share: Annotated[float, Range(gt=0, lt=1)] = setting(0.1, "part of train that chooses C")
    max_iterations: Steps = setting(1000, "of L-BFGS for each C")
    blocks: Count = setting(1, "class tokens of how many last blocks")
    mean_patch: bool = setting(False, "append the mean patch token")

    def run(self, bench: Bench) -> None:
        train, test = self.features(bench)
        x = train.pooled(self.blocks, self.mean_patch).to(bench.device)
        seed = bench.settings.seed
        model = logistic_regression(
            x, train.labels, self.cs, self.val_share, max_iterations=self.max_iterations, seed=seed
        )
        scores = model.scores(test.pooled(self.blocks, self.mean_patch)).cpu()
        bench.add_mean(self.name, self.tested, "accuracy", scores.argmax(1) == test.labels, test.rows)
        bench.add(self.name, self.tested, "C", model.c)


@dataclass
class FewShotTest(TrainTest):
    """Accuracy with n labelled images per class, mean over draws."""

    name: ClassVar[str] = "few_shot"
    shots: list[Count] = setting((1, 2, 5, 10), "labelled images per class")
    draws: Annotated[int, Range(ge=1, le=10_000)] = setting(5, "draws of the labelled images")
    classifier: Annotated[str, Choices(*CLASSIFIERS)] = setting("centroid", "centroid, knn or logistic")

    def run(self, bench: Bench) -> None:
        train, test = self.features(bench)
        found = few_shot(
            train.pooled(),
            train.labels,
            test.pooled(),
            test.labels,
            self.shots,
            self.draws,
            self.classifier,
            bench.settings.seed,
        )
        for shots, result in found.items():
            bench.add(self.name, self.tested, f"accuracy {shots}-shot", result.mean, len(test))
            bench.add(self.name, self.tested, f"standard deviation {shots}-shot", result.std, self.draws)
