"""The stages train and evaluate of the image experiment: model, images seen and probes are frozen, only rows change."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only

from curation import Subset
from curation.pools.pool import open_pool
from eval.corruptions import CORRUPTIONS
from eval.feature_stats import effective_rank, uniformity
from eval.features import FeatureSet, extract
from eval.images import LabelledImages
from eval.knn import knn_predictions
from eval.linear import LinearSettings, fit_linear
from eval.longtail import head_medium_tail
from eval.models import FrozenModel, open_model
from eval.results import Results, Row
from eval.run import evaluate as run_tasks
from eval.run import make_task, read_suite
from eval.settings import RunSettings
from eval.transforms import denormalise
from experiments.engine.compare import MEASURED
from experiments.engine.curves import append_point, read_curve
from experiments.engine.processes import placed
from experiments.engine.stages import StageRun
from experiments.web_images.pool import BANK, COUNTS, KINDS, POOL, TEST, PoolSettings
from foundation.errors import CurationError
from foundation.files import RESULT, load_json, save_json
from foundation.settings import Choices, Count, Positive, Range, check, fill
from pretrain.flops import flops_per_image
from pretrain.settings import PretrainSettings
from pretrain.train import TEACHER, pretrain
from training.run_folder import LOG

DECIDES = ("linear", "logistic", "knn", "segmentation")  # of a suite, the first that it has


@dataclass(frozen=True)
class TrainSettings:
    """Section ``science.train``.

    Attributes:
        recipe: of the pretraining; every arm sees steps x batch_size images. Its seed is that of the stage, its
            ``speed.accelerator`` that of ``speed.device``.
    """

    recipe: PretrainSettings

    def science(self) -> dict[str, Any]:
        """All that decides the result: the recipe with its defaults, and not its ``speed``."""
        return asdict(self) | {"recipe": recipe_of(self, 0).science()}


@dataclass(frozen=True)
class EvaluateSettings:
    """Section ``science.evaluate``.

    Attributes:
        k: neighbours of the k-NN.
        steps: of SGD of the linear probe, see `eval.linear.LinearSettings`.
        learning_rates: swept by the linear probe.
        corruptions: of the corrupted test set; [] leaves it out.
        severity: 1 (mild) to 5.
        corrupted_rows: test images that are corrupted.
        suite: measured in place of the pool's own classes: a name of ``eval/suites``, or a YAML file like those; its
            data sets lie below the folder of the variable EVAL_DATA. "": the pool's own.
    """

    k: Count = 20
    steps: Count = 2000
    learning_rates: list[Positive] = field(default_factory=lambda: [0.01, 0.03, 0.1, 0.3, 1.0])
    corruptions: list[Annotated[str, Choices(*CORRUPTIONS)]] = field(default_factory=lambda: sorted(CORRUPTIONS))
    severity: Annotated[int, Range(ge=1, le=5)] = 3
    corrupted_rows: Count = 500
    suite: str = ""

    def __post_init__(self) -> None:
        check(self, "science.evaluate")
        if self.suite:  # now, not after days of training
            tasks = [make_task(name, part) for name, part in read_suite(self.suite)[0]]
            if not any(task.name in DECIDES for task in tasks):
                raise CurationError(
                    f"science.evaluate.suite {self.suite!r} has no evaluation that decides; give it one of "
                    f"{', '.join(DECIDES)}"
                )

    def science(self) -> dict[str, Any]:
        """All that decides the result: of a suite what it holds, not what it is called."""
        return asdict(self) | {"suite": read_suite(self.suite) if self.suite else ""}


def check_measures(pool: PoolSettings, _train: TrainSettings, evaluate: EvaluateSettings) -> None:
    """Refuse an experiment whose models nothing would judge.

    Raises:
        CurationError: a pool without classes, and neither a labelled test set nor a suite.
    """
    if not (pool.labelled or pool.test or evaluate.suite):
        raise CurationError(
            "science.pool.labelled is false: nothing judges the models; set science.evaluate.suite (small, imagenet, "
            "fine_grained, dense, or a file), or science.pool.test to labelled images"
        )


def recipe_of(train: TrainSettings, seed: int, device: str = "cpu") -> PretrainSettings:
    """The recipe with its seed and place."""
    speed = replace(train.recipe.speed, accelerator="cpu" if device == "cpu" else "gpu", **placed())
    return replace(train.recipe, seed=seed, speed=speed)


def budget(train: TrainSettings, _dim: int) -> tuple[float, int, float]:
    """Images seen, optimiser steps, and floating-point operations of a training."""
    recipe = recipe_of(train, 0)
    samples = float(recipe.steps * recipe.batch_size)
    return samples, recipe.steps, samples * flops_per_image(recipe)["total"]


def train(run: StageRun) -> dict[str, float]:
    """Stage action: pretrain on the subset. Writes ``run/`` with ``teacher/``, ``curve.jsonl`` and ``data.json``."""
    settings, seed = fill(TrainSettings, run.settings, "science.train"), run.seed or 0
    recipe = recipe_of(settings, seed, str(run.speed.get("device", "cpu")))
    pool = open_pool(run.upstream("prepare") / POOL)
    rows = Subset.load(run.upstream("curate") / "subset").rows()
    result = pretrain(recipe, pool, run.folder / "run", rows, run.progress)
    if not result.finished:
        raise KeyboardInterrupt  # a signal: the same command goes on
    samples, _, flops = budget(settings, 0)
    if getattr(rank_zero_only, "rank", 0):  # one process of several: the first writes
        return {"samples": samples, "flops": flops}
    assert result.samples == samples, f"{result.samples} images were seen, {samples:.0f} are the budget of every arm"
    curve = run.folder / "curve.jsonl"
    curve.unlink(missing_ok=True)
    looks = {int(point["step"]): point for point in read_curve(run.folder / "run/probe.jsonl")}
    for point in read_curve(run.folder / "run" / LOG):
        step = int(point["step"])
        values = {"samples": point["samples"], "train/loss": point["loss"]}
        values |= {f"probe/{name}": value for name, value in looks.get(step, {}).items() if name != "step"}
        append_point(curve, step, values)
        run.log(values, step)
    kinds = np.array(pool.with_format(None)["kind"][:])[rows]
    shares = {f"share_{name}": float((kinds == i).mean()) for i, name in enumerate(KINDS)}
    save_json(run.folder / "data.json", {"rows": len(rows), **result.coverage, **shares})
    return {"samples": samples, "flops": flops}


def labelled(path: Path, classes: list[str]) -> LabelledImages:
    """Bank or test images as the evaluation sees them."""
    pool = open_pool(path).with_format("arrow")
    table = pool[:]
    labels = torch.from_numpy(table["label"].to_numpy().copy())
    sources = table["image"].to_pylist()
    return LabelledImages(path.stem, sources, labels, classes, [f"{path.stem} {i}" for i in range(len(sources))])


def evaluate(run: StageRun) -> dict[str, float]:
    """Stage action: frozen features of the teacher on a balanced bank and test set; writes ``metrics.json``.

    Head, medium and tail are thirds of the classes by their images in the pool, near-duplicates left out.
    """
    settings = EvaluateSettings(**run.settings)
    prepared, trained = run.upstream("prepare"), run.upstream("train")
    counts = load_json(prepared / COUNTS)
    device = str(run.speed.get("device", "cpu"))
    model = open_model(str(trained / "run" / TEACHER), device=device)
    about = {
        "pool": counts,
        "data": load_json(trained / "data.json"),
        "images_per_second": load_json(trained / "run" / RESULT)["images_per_second"],
    }
    if settings.suite:
        results = run_suite(model, settings.suite, device, run.folder / "suite")
        content = {"metrics": suite_metrics(results.rows), MEASURED: results.data, **about}
        save_json(run.folder / "metrics.json", content)
        return {"samples": float(sum(row.n for row in results.rows))}
    bank_images, test_images = (
        labelled(prepared / BANK, counts["classes"]),
        labelled(prepared / TEST, counts["classes"]),
    )
    bank, test = extract(model, bank_images), extract(model, test_images)
    n_classes = len(counts["classes"])
    by_knn = knn_predictions(bank.pooled(), bank.labels, test.pooled(), ks=(settings.k,))[settings.k]
    heads = LinearSettings(
        learning_rates=tuple(settings.learning_rates), steps=settings.steps, batch_size=256, seed=run.seed or 0
    )
    # one input: the class token of the last block, or the pooled feature
    x, mean, std = _standardised(bank.pooled())
    probe = fit_linear(x, bank.labels, heads, n_classes=n_classes, device=device)
    by_linear = probe.scores((test.pooled() - mean) / std).argmax(1)
    metrics: dict[str, float] = {}
    for name, predicted in (("linear", by_linear), ("knn", by_knn)):
        # of a pool without classes none is frequent or rare
        in_pool = np.array(counts["images"] or [1] * n_classes)
        found = head_medium_tail(predicted.numpy(), test.labels.numpy(), in_pool, "thirds", n_resamples=200)
        metrics |= {f"{name}_{part}": i.value for part, i in found.items() if counts["images"] or part == "all"}
        metrics[name] = metrics.pop(f"{name}_all")
    if settings.corruptions:
        part = test_images.take(list(range(0, len(test_images), max(len(test_images) // settings.corrupted_rows, 1))))
        found_right = [
            (probe.scores((_corrupted(model, part, name, settings.severity) - mean) / std).argmax(1) == part.labels)
            for name in settings.corruptions
        ]
        metrics["linear_corrupted"] = float(torch.stack(found_right).double().mean())
    features = test.pooled()
    metrics |= {"effective_rank": effective_rank(features), "uniformity": uniformity(features)}
    per_class = {
        name: float((by_linear == test.labels)[test.labels == i].double().mean())
        for i, name in enumerate(counts["classes"])
    }
    metrics["linear_worst"] = min(per_class.values())
    save_json(
        run.folder / "metrics.json",
        {
            "metrics": metrics,
            "classes": per_class,
            "learning_rate": probe.learning_rate,
            **about,
        },
    )
    return {"samples": float(len(bank) + len(test))}


def run_suite(model: FrozenModel, suite: str, device: str, folder: Path) -> Results:
    """Every task of a suite on the frozen model; the full results go to ``folder``."""
    tasks, shared = read_suite(suite)
    # features of this model are asked for once, by tasks of one call
    own = {**shared, "device": device, "progress": False, "cache": ""}
    return run_tasks(model, [make_task(name, part) for name, part in tasks], fill(RunSettings, own), folder)


def suite_metrics(rows: list[Row]) -> dict[str, float]:
    """Metrics of an arm from the rows of a suite, each of which also stands under its own name.

    "linear", which decides, is the mean over data sets of the first evaluation of `DECIDES` that the suite has; of
    several k of k-NN the best counts, as published.
    """
    metrics = {row.key: row.value for row in rows}
    means: dict[str, float] = {}
    for evaluation in DECIDES:
        best: dict[str, float] = {}
        for row in rows:
            if row.eval == evaluation and row.metric.startswith(("accuracy", "mIoU")):
                best[row.dataset] = max(row.value, best.get(row.dataset, 0.0))
        if best:
            means[evaluation] = float(np.mean(list(best.values())))
        if evaluation == "knn" and best:
            metrics["knn"] = means["knn"]
    return metrics | {"linear": next(iter(means.values()))}


def _standardised(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of mean 0 and deviation 1 over the bank: the sweep of learning rates then suits every model."""
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    return (x - mean) / std, mean, std


def _corrupted(model: FrozenModel, images: LabelledImages, name: str, severity: int) -> torch.Tensor:
    from eval.corruptions import Corrupted

    crop, normalise = denormalise(model)
    features: FeatureSet = extract(model, images, transform=Corrupted(crop, normalise, name, severity))
    return features.pooled()
