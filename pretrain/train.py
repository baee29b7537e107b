"""Pretrain on rows of a pool; the same call after a kill goes on and ends the same."""

import hashlib
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from jaxtyping import Int
from torch.utils.data import DataLoader

from curation.pool import pool_fingerprint
from curation.subset import Subset
from foundation.errors import CurationError
from foundation.files import save_json
from pretrain.callbacks import BadImages, Looks, RunLog
from pretrain.data import Batch, CanvasReader, StepDataset, step_loader
from pretrain.export import STATE, TEACHER, export_teacher, load_state, save_state
from pretrain.flops import flops_per_image, meta_network
from pretrain.module import Pretraining
from pretrain.order import Order
from pretrain.probe import make_probe
from pretrain.settings import PretrainSettings
from training.batches import BatchPlan
from training.checkpoints import CHECKPOINT, Checkpoints, resume_step, signals_restored
from training.devices import make_trainer
from training.run_folder import RESULT, claim


@dataclass(frozen=True)
class PretrainResult:
    """What `pretrain` did.

    Attributes:
        finished: False after SIGTERM: the same call resumes.
        folder: the exported teacher, where finished.
        step, samples: optimiser steps and images so far.
        metrics: losses of the last line of the log, and of the last look (knn, effective_rank).
        coverage: epochs, distinct images and repetitions seen (`Order.coverage`).
        bad_images: distinct rows that could not be read.
        images_per_second: of this call, checkpoints and looks included; None where it did no step.
    """

    finished: bool
    folder: Path
    step: int
    samples: int
    metrics: dict[str, float]
    coverage: dict[str, float]
    bad_images: int
    images_per_second: float | None


def subset_rows(pool: Any, subset: Subset) -> Int[np.ndarray, "n"]:
    """Rows of a subset that was made for this pool.

    Raises:
        CurationError: it was made for another pool, or names rows that are not there.
    """
    made_for = subset.metadata.get("pool_fingerprint")
    if made_for is not None and made_for != pool_fingerprint(pool):
        raise CurationError(
            f"the subset was made for another pool (fingerprint {made_for[:12]}, this one has "
            f"{pool_fingerprint(pool)[:12]}); open the pool it came from, or sample again"
        )
    rows = subset.rows()
    if len(rows) and (rows.min() < 0 or rows.max() >= len(pool)):
        raise CurationError(f"the subset names row {rows.max()}, but the pool has {len(pool)} rows")
    return rows


def pretrain(
    settings: PretrainSettings,
    pool: Any,
    folder: str | Path,
    rows: Int[np.ndarray, "n"] | None = None,
    progress: bool = True,
    origin: dict[str, Any] | None = None,
) -> PretrainResult:
    """Train on rows of a pool.

    ``folder`` gets ``run.json`` (settings and data), ``metrics.jsonl``, ``probe.jsonl``, ``bad_images.jsonl`` where
    there are some, ``last.ckpt`` while it runs, and at the end ``teacher/`` (for timm, with its model card),
    ``state.safetensors`` (for ``init_from``) and ``result.json``.

    Args:
        pool: `datasets.Dataset` with a column ``image`` (`curation.pool.open_pool`).
        rows: to train on, repeated as often as they are taken; None takes all.
        origin: what is known of the rows, as JSON, for the model card: of a subset its metadata.

    Raises:
        CurationError: bad settings or data, the folder holds another run, the loss is not finite, the teacher
            collapsed, or too many images cannot be read.
    """
    folder = Path(folder)
    rows = np.arange(len(pool)) if rows is None else np.sort(np.asarray(rows, np.int64))
    if not len(rows):
        raise CurationError("there are no rows to train on; the subset is empty")
    identity = {
        "settings": settings.science(),
        "pool": pool_fingerprint(pool),
        "rows": hashlib.blake2b(rows.astype("<i8").tobytes(), digest_size=16).hexdigest(),
    }
    grid = meta_network(settings).backbone.grid(settings.crops.global_size)  # settings are checked before it is claimed
    done = claim(folder, identity)
    if done is not None:
        return PretrainResult(**{**done, "folder": folder / TEACHER})

    reader = CanvasReader(pool, settings.crops.canvas_size, cache_rows(settings))
    order = Order(rows, settings.seed)
    start = resume_step(folder)
    module = Pretraining(settings)
    if settings.init_from and not start:
        module.configure_model()
        load_state(module, settings.init_from)
    log = RunLog(folder, flops_per_image(settings)["total"], progress)
    bad = BadImages(folder, len(np.unique(rows)), settings.max_bad)
    looks = Looks(folder, make_probe(pool, reader, settings.probe, settings.crops))
    # the log first: its sums must be up to date when the checkpoint takes them
    callbacks: list[lightning.Callback] = [log, bad, looks, Checkpoints(folder, settings.speed.checkpoint_every)]
    trainer = make_trainer(
        settings.speed, folder, settings.steps, settings.batch_size, settings.precision, callbacks, _blocks()
    )
    data = _StepData(reader, order, grid, settings, start)
    data.plan(0, trainer.world_size)
    with warnings.catch_warnings(), signals_restored():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and loggers, none of it true here
        trainer.fit(module, datamodule=data, ckpt_path=folder / CHECKPOINT if start else None, weights_only=True)
    step = trainer.global_step
    samples = step * settings.batch_size
    result = PretrainResult(
        finished=step >= settings.steps,
        folder=folder / TEACHER,
        step=step,
        samples=samples,
        metrics={**log.last, **looks.last},
        coverage=order.coverage(samples),
        bad_images=len(bad.seen),
        images_per_second=log.timed_steps * settings.batch_size / log.seconds if log.seconds else None,
    )
    if result.finished:
        about = {**identity, "n_rows": len(rows), "data": origin or {}}
        _export(trainer, settings, about, result, folder)
    return result


def cache_rows(settings: PretrainSettings) -> int:
    """How many canvases fit into the cache; none with workers, which would each hold their own."""
    if settings.speed.n_workers:
        return 0
    return int(settings.speed.cache_gb * 1e9 / (3 * settings.crops.canvas_size**2))


def _blocks() -> set[type]:
    """What FSDP shards one by one."""
    from timm.models.eva import EvaBlock
    from timm.models.vision_transformer import Block

    return {Block, EvaBlock}


class _StepData(lightning.LightningDataModule):
    """The loader is made when the processes are there: only then is it known which share is whose."""

    def __init__(
        self, reader: CanvasReader, order: Order, grid: tuple[int, int], settings: PretrainSettings, start: int
    ):
        super().__init__()
        self.reader, self.order, self.grid, self.settings, self.start = reader, order, grid, settings, start

    def plan(self, rank: int, world_size: int) -> BatchPlan:
        settings = self.settings
        micro = settings.speed.micro_batch_size or max(settings.batch_size // world_size, 1)
        return BatchPlan(settings.batch_size, micro, rank, world_size)

    def train_dataloader(self) -> DataLoader[Batch]:
        assert self.trainer is not None
        plan = self.plan(self.trainer.global_rank, self.trainer.world_size)
        dataset = StepDataset(self.reader, self.order, plan, self.grid, self.settings, self.start)
        cuda = self.trainer.strategy.root_device.type == "cuda"
        return step_loader(dataset, self.settings.speed.n_workers, cuda)


def _export(
    trainer: lightning.Trainer,
    settings: PretrainSettings,
    about: dict[str, Any],
    result: PretrainResult,
    folder: Path,
) -> None:
    state = trainer.strategy.lightning_module_state_dict()  # gathers the pieces where the model is sharded
    if trainer.is_global_zero:
        prefix = "teacher.backbone."
        teacher = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        about = {**about, "coverage": result.coverage, "metrics": result.metrics}
        export_teacher(teacher, settings, folder, about)
        save_state(state, folder / STATE)
        save_json(folder / RESULT, {**vars(result), "folder": TEACHER})
        (folder / CHECKPOINT).unlink(missing_ok=True)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # Lightning makes an empty one
    trainer.strategy.barrier("export")
