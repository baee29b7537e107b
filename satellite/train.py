"""Train a canopy-height model on tiles; the same call after a kill goes on and ends the same."""

import hashlib
import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pyarrow as pa
from jaxtyping import Int
from torch.utils.data import DataLoader
from tqdm import tqdm

from foundation.errors import CurationError
from foundation.files import save_json
from satellite.backbone import self_contained, statistics_of
from satellite.data import Batch, StepTiles, TileReader, labelled_rows, step_loader, with_white
from satellite.export import save_model
from satellite.module import CanopyTraining
from satellite.normalise import PUBLISHED, BandStatistics, white_of
from satellite.settings import TrainSettings
from satellite.tiles import TileSettings
from training.batches import BatchPlan
from training.checkpoints import CHECKPOINT, Checkpoints, resume_step, signals_restored
from training.devices import make_trainer
from training.run_folder import LOG, RESULT, claim, forget_after

MODEL = "model"


@dataclass(frozen=True)
class TrainResult:
    """What `train` did.

    Attributes:
        finished: False after SIGTERM: the same call resumes.
        folder: of the model, where finished.
        step: optimiser steps so far.
        loss: at the last line of the log.
        tiles: distinct tiles trained on.
    """

    finished: bool
    folder: Path
    step: int
    loss: float
    tiles: int


def train(
    settings: TrainSettings,
    table: pa.Table,
    tiles: TileSettings,
    folder: str | Path,
    rows: Int[np.ndarray, "n"] | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train on rows of a table of tiles.

    ``folder`` gets ``run.json``, ``metrics.jsonl``, ``last.ckpt`` while it runs, and at the end ``model/`` and
    ``result.json``.

    Args:
        table, tiles: of `satellite.tiles.load_tiles`.
        rows: to train on; None takes all with heights.

    Raises:
        CurationError: bad settings or data, the folder holds another run, or the loss is not finite.
    """
    folder = Path(folder)
    rows = labelled_rows(table, rows, settings.min_valid)
    resolution = _resolution(table, rows)
    identity = {
        "settings": settings.science(),
        "tiles": hashlib.blake2b(
            json.dumps(table.select(["image", "heights", "row", "col"]).take(rows).to_pylist()).encode(),
            digest_size=16,
        ).hexdigest(),
    }
    done = claim(folder, identity)
    if done is not None:
        return TrainResult(**{**done, "folder": folder / MODEL})
    reader = TileReader(table, tiles, _cache_tiles(settings, tiles))
    statistics = _statistics(settings, reader, rows)
    start = resume_step(folder)
    data = _Tiles(reader, rows, statistics, settings, start)
    module = CanopyTraining(settings, reader.n_bands, tiles.size)
    log = _Log(folder, settings, progress)
    checkpoints = Checkpoints(folder, settings.speed.checkpoint_every)
    trainer = make_trainer(
        settings.speed, folder, settings.steps, settings.batch_size, settings.precision, [log, checkpoints]
    )
    data.plan(0, trainer.world_size)
    with warnings.catch_warnings(), signals_restored():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and loggers, none of it true here
        trainer.fit(module, datamodule=data, ckpt_path=folder / CHECKPOINT if start else None, weights_only=True)
    step = trainer.global_step
    result = TrainResult(step >= settings.steps, folder / MODEL, step, log.last, len(np.unique(rows)))
    if result.finished and trainer.is_global_zero:
        module.check_finite()
        alone = replace(settings, backbone=self_contained(settings.backbone))
        bands = tuple(reader.rasters(int(rows[0]))[0].bands)
        save_model(folder / MODEL, module.model, alone, statistics, bands, tiles.size, resolution)
        save_json(folder / RESULT, {**vars(result), "folder": MODEL})
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return result


def _resolution(table: pa.Table, rows: Int[np.ndarray, "n"]) -> float:
    """Metres per pixel of all tiles."""
    found = table["resolution"].to_numpy()[rows]
    if found.max() > 1.01 * found.min():
        raise CurationError(
            f"the tiles have {found.min():g} to {found.max():g} m per pixel; cut them at one resolution: --resolution"
        )
    return float(np.median(found))


def _cache_tiles(settings: TrainSettings, tiles: TileSettings) -> int:
    if settings.speed.n_workers:
        return 0
    bands = len(tiles.bands) or 4
    return int(settings.speed.cache_gb * 1e9 / (tiles.size**2 * 4 * (bands + 2)))


def _statistics(settings: TrainSettings, reader: TileReader, rows: Int[np.ndarray, "n"]) -> BandStatistics:
    white = white_of(reader.dtype, settings.white)
    if settings.statistics == "backbone":
        return statistics_of(settings.backbone, white)
    own = reader.statistics(rows, settings.white)
    if settings.statistics == "data":
        return own
    # the published means come without percentiles: those of the data serve to match colours later
    return replace(with_white(PUBLISHED[settings.statistics], white), low=own.low, high=own.high)


class _Tiles(lightning.LightningDataModule):
    """The loader is made when the processes are there: only then is it known which share is whose."""

    def __init__(
        self,
        reader: TileReader,
        rows: Int[np.ndarray, "n"],
        statistics: BandStatistics,
        settings: TrainSettings,
        start: int,
    ):
        super().__init__()
        self.reader, self.rows, self.statistics = reader, rows, statistics
        self.settings, self.start = settings, start

    def plan(self, rank: int, world_size: int) -> BatchPlan:
        micro = self.settings.speed.micro_batch_size or max(self.settings.batch_size // world_size, 1)
        return BatchPlan(self.settings.batch_size, micro, rank, world_size)

    def train_dataloader(self) -> DataLoader[Batch]:
        assert self.trainer is not None
        plan = self.plan(self.trainer.global_rank, self.trainer.world_size)
        dataset = StepTiles(self.reader, self.rows, self.statistics, self.settings, plan, self.start)
        return step_loader(dataset, self.settings.speed.n_workers)


class _Log(lightning.Callback):
    """Loss and learning rate every so many steps, and a progress bar."""

    def __init__(self, folder: Path, settings: TrainSettings, progress: bool):
        self.path, self.settings, self.progress = folder / LOG, settings, progress
        self.last = float("nan")
        self.bar: Any = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            forget_after(self.path, trainer.global_step)
        self.bar = tqdm(
            desc="train",
            unit="step",
            total=self.settings.steps,
            initial=trainer.global_step,
            disable=not self.progress or not trainer.is_global_zero,
        )

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self.bar.update()
        step, module = trainer.global_step, trainer.lightning_module
        if step % self.settings.speed.log_every and step != self.settings.steps:
            return
        loss: Any = module.step_loss
        self.last = float(loss)
        self.bar.set_postfix(loss=f"{self.last:.4f}")
        if trainer.is_global_zero:
            with open(self.path, "a") as stream:
                point = {"step": step, "loss": self.last, "rate": trainer.optimizers[0].param_groups[0]["lr"]}
                stream.write(json.dumps(point) + "\n")

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.bar.close()
