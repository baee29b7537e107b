"""The stages train and evaluate of the satellite experiment: pretraining on the subset, a head on the frozen teacher.

Everything but the rows of the pretraining is the same for every arm: model, tiles seen, labelled tiles, head, test.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only

from curation import Subset
from curation.pools.pool import open_pool
from eval.canopy import CanopySettings, canopy_metrics
from experiments.engine.curves import append_point, read_curve
from experiments.engine.processes import placed
from experiments.engine.stages import StageRun
from experiments.satellite.annotation import HandmadeMaps
from experiments.satellite.cover import TEST_COVER, even_metrics
from experiments.satellite.pool import COUNTS, POOL, TILES
from foundation.files import load_array, load_json, save_array, save_json
from foundation.settings import Choices, Count, CountOrZero, Positive, check, fill
from pretrain.flops import flops_per_image
from pretrain.settings import PretrainSettings
from pretrain.train import TEACHER, pretrain
from satellite.backbone import open_backbone
from satellite.data import TileReader
from satellite.export import load_model
from satellite.normalise import BandStatistics, normalise
from satellite.pretraining import crops_from_above
from satellite.ridge import fit_ridge
from satellite.settings import BackboneSettings
from satellite.settings import TrainSettings as HeadRun
from satellite.settings import settings_from as head_settings
from satellite.tiles import load_tiles
from satellite.train import train as train_head
from training.run_folder import LOG

SHOWN = ("mae", "rmse", "me", "r2", "block_r2", "block_r2_metres", "iou_2m", "iou_5m", "edge_error")
BATCH, FOLDS = 32, 5
JUDGES, LABELLED = ("features", "labels"), "labelled.npy"


@dataclass(frozen=True)
class TrainSettings:
    """Section ``science.train``.

    Attributes:
        recipe: of the pretraining. Its seed is that of the stage, its crops are those of ``views``, and its
            ``speed.accelerator`` is that of ``speed.device``.
        views: of `satellite.pretraining.crops_from_above`, sides of crops in metres among them.
        judge: what the subset is for. "features": pretraining without labels, whose frozen features get a head on
            tiles that are the same for every arm. "labels": the tiles whose heights are learnt from, with no
            pretraining: which tiles are worth a survey? Seconds instead of minutes, and not the paper's question.
    """

    recipe: PretrainSettings
    views: dict[str, Any]
    judge: Annotated[str, Choices(*JUDGES)] = "features"

    def __post_init__(self) -> None:
        check(self, "science.train")

    def science(self) -> dict[str, Any]:
        """All that decides the result: the recipe with its defaults, and not its ``speed``."""
        if self.judge == "labels":
            return {"judge": self.judge}
        content = asdict(self) | {"recipe": recipe_of(self, 0).science()}
        content.pop("judge")  # the results of before there was another keep their keys
        return content


@dataclass(frozen=True)
class EvaluateSettings:
    """Section ``science.evaluate``.

    Attributes:
        head: of `satellite.settings.TrainSettings`, without seed and backbone.name: a head trained on the frozen
            teacher; {} takes the linear head in closed form (`satellite.ridge`) on ``blocks``. Where labels are the
            question there is no teacher: a trained head brings its backbone, and {} is the linear
            one on features made by hand (`experiments.satellite.annotation`).
        blocks: of the teacher.
        pool_pixels, pool_metres: sides of the averaged cells of block-R2.
    """

    head: dict[str, Any] = field(default_factory=dict)
    blocks: list[CountOrZero] = field(default_factory=list)
    pool_pixels: Count = 50
    pool_metres: Positive = 16.0

    def __post_init__(self) -> None:
        check(self, "science.evaluate")

    def science(self) -> dict[str, Any]:
        """All that decides the result: the head with its defaults."""
        return asdict(self) | ({"head": head_of(self, "", 0).science()} if self.head else {})


def recipe_of(
    train: TrainSettings, seed: int, device: str = "cpu", statistics: BandStatistics | None = None
) -> PretrainSettings:
    """The recipe with its seed, place and crops."""
    speed = replace(train.recipe.speed, accelerator="cpu" if device == "cpu" else "gpu", **placed())
    views: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in train.views.items()
    }
    return replace(train.recipe, seed=seed, speed=speed, crops=crops_from_above(**views, statistics=statistics))


def budget(train: TrainSettings, _dim: int) -> tuple[float, int, float]:
    """Tiles seen, optimiser steps, and floating-point operations of a pretraining."""
    if train.judge == "labels":
        return 0.0, 0, 0.0
    recipe = recipe_of(train, 0)
    samples = float(recipe.steps * recipe.batch_size)
    return samples, recipe.steps, samples * flops_per_image(recipe)["total"]


def train(run: StageRun) -> dict[str, float]:
    """Stage action: pretrain on the subset. Writes ``run/`` with ``teacher/``, and ``curve.jsonl``.

    Where labels are the question: ``labelled.npy``, the tiles of the subset.
    """
    settings, seed = fill(TrainSettings, run.settings, "science.train"), run.seed or 0
    prepared = run.upstream("prepare")
    rows = Subset.load(run.upstream("curate") / "subset").rows()
    if settings.judge == "labels":
        if not getattr(rank_zero_only, "rank", 0):
            save_array(run.folder / LABELLED, load_array(prepared / "pool_rows.npy")[rows])
        return {"samples": float(len(rows))}
    statistics = BandStatistics.from_json(load_json(prepared / COUNTS)["statistics"])
    recipe = recipe_of(settings, seed, str(run.speed.get("device", "cpu")), statistics)
    pool = open_pool(prepared / POOL)
    result = pretrain(recipe, pool, run.folder / "run", rows, run.progress)
    if not result.finished:
        raise KeyboardInterrupt  # a signal: the same command goes on
    samples, _, flops = budget(settings, 0)
    if getattr(rank_zero_only, "rank", 0):  # one process of several: the first writes
        return {"samples": samples, "flops": flops}
    curve = run.folder / "curve.jsonl"
    curve.unlink(missing_ok=True)
    for point in read_curve(run.folder / "run" / LOG):
        values = {"samples": point["samples"], "train/loss": point["loss"]}
        append_point(curve, int(point["step"]), values)
        run.log(values, int(point["step"]))
    return {"samples": samples, "flops": flops}


def head_of(evaluate: EvaluateSettings, backbone: str, seed: int, device: str = "cpu") -> HeadRun:
    """Settings of the head on a backbone ("": its own); keys and types checked."""
    given = {**evaluate.head, "seed": seed}
    given["backbone"] = {**given.get("backbone", {}), **({"name": backbone} if backbone else {})}
    given["speed"] = {"accelerator": "cpu" if device == "cpu" else "gpu", **given.get("speed", {})}
    return head_settings(given)


def evaluate(run: StageRun) -> dict[str, float]:
    """Stage action: a head on the frozen teacher, and its errors on ground set apart; writes ``metrics.json``.

    Where the pool is unequal over land cover, errors on even ground are added (`experiments.satellite.cover`).
    """
    settings, seed = EvaluateSettings(**run.settings), run.seed or 0
    prepared, trained = run.upstream("prepare"), run.upstream("train")
    by_labels = (trained / LABELLED).exists()
    device, teacher = str(run.speed.get("device", "cpu")), "" if by_labels else str(trained / "run" / TEACHER)
    table, cut = load_tiles(prepared / TILES)
    labelled = np.asarray(load_array((trained if by_labels else prepared) / LABELLED))
    test = np.asarray(load_array(prepared / "test.npy"))
    reader = TileReader(table, cut)
    statistics = BandStatistics.from_json(load_json(prepared / COUNTS)["statistics"])
    model: Callable[[torch.Tensor], torch.Tensor]
    if settings.head:
        head = head_of(settings, teacher, seed, device)
        result = train_head(head, table, cut, run.folder / "head", labelled, run.progress)
        if not result.finished:
            raise KeyboardInterrupt
        trained_model = load_model(result.folder, device)
        model, statistics = trained_model.model, trained_model.statistics
    else:
        chosen = BackboneSettings(teacher, blocks=settings.blocks)
        backbone: Any = HandmadeMaps() if by_labels else open_backbone(chosen, reader.n_bands, cut.size)
        backbone = backbone.to(device)
        ridge = fit_ridge(backbone, batches(reader, statistics, labelled, device))
        model = partial(ridge, backbone)
    predicted, truth = predict_tiles(model, reader, statistics, test, device)
    canopy = CanopySettings(cut.resolution, settings.pool_pixels, settings.pool_metres, n_resamples=200)
    found = canopy_metrics(predicted, truth, canopy)
    metrics = {name: interval.value for name, interval in found.items() if np.isfinite(interval.value)}
    counts = load_json(prepared / COUNTS)
    if (prepared / TEST_COVER).exists():
        metrics |= even_metrics(
            predicted, truth, np.asarray(load_array(prepared / TEST_COVER)), counts["cover"], canopy
        )
    save_json(
        run.folder / "metrics.json",
        {
            "metrics": metrics,
            "intervals": {name: [found[name].low, found[name].high] for name in SHOWN},
            "pool": counts,
            "test_pixels": int(np.isfinite(truth).sum()),
        },
    )
    return {"samples": float(len(labelled) + len(test))}


def batches(
    reader: TileReader, statistics: BandStatistics, tiles: np.ndarray, device: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Normalised pictures and true heights (metres; NaN not known) of tiles, in order."""
    n_batches = max(min(FOLDS, len(tiles)), -(-len(tiles) // BATCH))  # the closed form chooses its penalty over batches
    for part in np.array_split(tiles, n_batches):
        read = [reader.read(int(tile)) for tile in part]
        images = np.stack([normalise(values, valid, statistics) for values, valid, _ in read])
        heights = np.stack([known for _, _, known in read])
        yield torch.from_numpy(images).to(device), torch.from_numpy(heights).to(device)


@torch.inference_mode()
def predict_tiles(
    model: Callable[[torch.Tensor], torch.Tensor],
    reader: TileReader,
    statistics: BandStatistics,
    tiles: np.ndarray,
    device: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true heights of tiles (n, s, s), metres; NaN where the truth is not known."""
    predicted, truth = [], []
    for images, heights in batches(reader, statistics, tiles, device):
        predicted.append(model(images).float().cpu().numpy())
        truth.append(heights.cpu().numpy())
    return np.concatenate(predicted), np.concatenate(truth)
