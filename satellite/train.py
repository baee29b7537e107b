"""Train a canopy-height model on tiles; the same call after a kill goes on and ends the same.

`train` is the run from the table of tiles to the exported model, `CanopyTraining` the step from pictures to loss.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int
from torch import Tensor

from foundation.errors import CurationError
from foundation.files import digest_json
from satellite.backbone import initial_weights, self_contained, statistics_of
from satellite.data import TileBatches, TileReader, labelled_rows, with_white
from satellite.export import Seen, save_model
from satellite.losses import height_loss
from satellite.model import CanopyModel
from satellite.normalise import PUBLISHED, BandStatistics, is_float, require_white, white_of
from satellite.settings import TrainSettings
from satellite.tiles import TileSettings, rasters_of
from training.checkpoints import find_checkpoint
from training.devices import in_fast_precision
from training.fit import fit
from training.log import RunLog, Work
from training.module import StepModule
from training.run_folder import claimed, restored
from training.schedules import ScheduleSettings, in_steps, schedule

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

    ``folder`` gets ``run.json``, ``metrics.jsonl``, ``last.ckpt`` and ``earlier.ckpt`` while it runs, and at the end
    ``model/`` and ``result.json``.

    Args:
        table, tiles: of `satellite.tiles.load_tiles`.
        rows: to train on; None takes all with heights.

    Raises:
        CurationError: bad settings or data, the folder holds another run, or the loss is not finite.
    """
    folder, settings = Path(folder), in_fast_precision(settings)
    rows = labelled_rows(table, rows, settings.min_valid)
    places = table.select(["image", "heights", "row", "col"]).take(rows).to_pylist()
    identity: dict[str, Any] = {
        "settings": settings.science(),
        "tiles": hashlib.blake2b(json.dumps(places).encode(), digest_size=16).hexdigest(),
    }
    identity |= {"rasters": digest_json(known)} if (known := rasters_of(table)) else {}
    identity |= {} if (start := initial_weights(settings.backbone)) is None else {"backbone_weights": start}
    resolution = _resolution(table, rows)
    reader = TileReader(table, tiles, _cache_tiles(settings, tiles))
    with claimed(folder, identity) as done:
        if done is not None:
            return restored(TrainResult, done, folder / MODEL)
        statistics = _statistics(settings, reader, rows)
        module = CanopyTraining(settings, reader.n_bands, tiles.size)
        batches = TileBatches(reader, rows, statistics, settings)
        log = RunLog(folder, Work("tiles", "tiles", settings.batch_size), "train", progress, averaged=1)
        fitted = fit(module, batches, folder, find_checkpoint(folder), log)
        loss = log.last.get("loss", float("nan"))
        result = TrainResult(fitted.finished, folder / MODEL, fitted.step, loss, len(np.unique(rows)))

        def write(state: dict[str, Tensor]) -> None:
            module.check_finite()
            weights = {name.removeprefix("model."): value for name, value in state.items()}
            alone = replace(settings, backbone=self_contained(settings.backbone))
            bands = tuple(reader.rasters(int(rows[0]))[0].bands)
            save_model(folder / MODEL, weights, alone, statistics, Seen(bands, tiles.size, resolution, reader.dtype))

        if result.finished:
            fitted.export(write, {**vars(result), "folder": MODEL}, [MODEL])
        return result


class CanopyTraining(StepModule):
    """Regression of heights.

    Attributes:
        model: see `CanopyModel`.
        losses: mean over the micro-batches of the current step.
    """

    settings: TrainSettings

    def __init__(self, settings: TrainSettings, n_bands: int, image_size: int):
        super().__init__(settings)
        self.n_bands, self.image_size = n_bands, image_size
        self.model: Any = None
        self.loss = replace(settings.loss, sig_warmup=in_steps(settings.loss.sig_warmup, settings.steps))
        self.factor = schedule(ScheduleSettings(0.0, 1.0, 0.0, settings.warmup), settings.steps, "warmup")

    def configure_model(self) -> None:
        if self.model is not None:  # Lightning calls this again for every stage
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            self.model = CanopyModel(self.settings, self.n_bands, self.image_size)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        settings = self.settings
        groups = [{"params": list(self.model.head.parameters()), "factor": 1.0}]
        if settings.backbone.trainable:
            groups.append({"params": list(self.model.backbone.parameters()), "factor": settings.backbone_rate})
        return torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)

    def rates(self, step: int) -> dict[str, float]:
        return {"rate": self.settings.learning_rate * self.factor(step)}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        rate = self.rates(self.global_step)["rate"]
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate * group["factor"]
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.losses = {"loss": torch.zeros((), device=self.device)}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        heights = batch["heights"]
        valid = torch.isfinite(heights)
        loss = height_loss(self.model(batch["images"]), heights, valid, self.loss, self.global_step)
        self.losses["loss"] += loss.detach() / self.trainer.accumulate_grad_batches
        return loss

    @property
    def largest_norm(self) -> float:
        return self.settings.clip

    def advice(self) -> str:
        return f"lower learning_rate (now {self.settings.learning_rate})"


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
    white, first = white_of(reader.dtype, settings.white), reader.place(int(rows[0]))["image"]
    own = None if settings.statistics == "backbone" else reader.statistics(rows, settings.white)
    if settings.statistics != "data":  # which are of the same numbers, whatever white is
        white = require_white(reader.dtype, settings.white, first)
    if is_float(reader.dtype) and (settings.statistics != "data" or (own is not None and own.of_shares)):
        for row in rows:
            require_white(reader.dtype, settings.white, reader.place(int(row))["image"], reader.read(int(row))[0])
    if own is None:
        return statistics_of(settings.backbone, white)
    if settings.statistics == "data":
        return own
    # the published means come without percentiles: those of the data serve to match colours later
    return replace(with_white(PUBLISHED[settings.statistics], white), low=own.low, high=own.high)
