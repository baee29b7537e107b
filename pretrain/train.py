"""Pretrain on rows of a pool; the same call after a kill goes on and ends the same.

`pretrain` is the run from the pool to the exported teacher, `Pretraining` the step of DINOv2 from crops to loss.
"""

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from curation.pools.pool import pool_fingerprint
from curation.trees.subset import Subset
from foundation.errors import CurationError
from foundation.files import checksum
from foundation.paths import is_regular
from pretrain.callbacks import BadImages, CollapseGuard, Looks
from pretrain.centring import assignment_information
from pretrain.data import Batch, CanvasReader, CropBatches
from pretrain.ema import copy_weights, ema_update
from pretrain.export import STATE, TEACHER, export_teacher, load_state, save_state
from pretrain.flops import flops_per_image, meta_network
from pretrain.losses import dino_loss, gram_loss, ibot_loss, koleo_loss
from pretrain.multicrop import multi_crop
from pretrain.network import build_networks, build_targets
from pretrain.optimiser import parameter_groups, parameter_kinds, set_rates
from pretrain.probe import make_probe
from pretrain.settings import PretrainSettings
from training.checkpoints import find_checkpoint
from training.devices import in_fast_precision
from training.fit import fit
from training.log import RunLog, Work
from training.module import StepModule
from training.order import Order
from training.run_folder import claimed, restored
from training.schedules import in_steps


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


def pretrain(
    settings: PretrainSettings,
    pool: Any,
    folder: str | Path,
    rows: Int[np.ndarray, "n"] | None = None,
    progress: bool = True,
    origin: dict[str, Any] | None = None,
    source: str = "",
) -> PretrainResult:
    """Train on rows of a pool.

    ``folder`` gets ``run.json`` (settings and data), ``metrics.jsonl``, ``probe.jsonl``, ``bad_images.jsonl`` where
    there are some, ``last.ckpt`` and ``earlier.ckpt`` while it runs, and at the end ``teacher/`` (for timm, with its
    model card), ``state.safetensors`` (for ``init_from``) and ``result.json``.

    Args:
        pool: `datasets.Dataset` with a column ``image`` (`curation.pools.pool.open_pool`).
        rows: to train on, repeated as often as they are taken; None takes all.
        origin: what is known of the rows, as JSON, for the model card: of a subset its metadata.
        source: where the pool lies, for ``result.json``: `eval` warns of test images from there.

    Raises:
        CurationError: bad settings or data, the folder holds another run, the loss is not finite, the teacher
            collapsed, or too many images cannot be read.
    """
    folder, settings = Path(folder), in_fast_precision(settings)
    rows = np.arange(len(pool)) if rows is None else np.sort(np.asarray(rows, np.int64))
    if not len(rows):
        raise CurationError("there are no rows to train on; the subset is empty")
    identity: dict[str, Any] = {
        "settings": settings.science(),
        "pool": pool_fingerprint(pool),
        "rows": hashlib.blake2b(rows.astype("<i8").tobytes(), digest_size=16).hexdigest(),
    }
    if settings.init_from and is_regular(state := Path(settings.init_from) / STATE):  # of a finished run it may be gone
        identity["initial_weights"] = checksum(state)
    grid = meta_network(settings).backbone.grid(settings.crops.global_size)  # settings are checked before it is claimed
    reader = CanvasReader(pool, settings.crops.canvas_size, cache_rows(settings))
    with claimed(folder, identity) as done:
        if done is not None:
            return restored(PretrainResult, done, folder / TEACHER)
        order = Order(rows, settings.seed)
        start = find_checkpoint(folder)
        module = Pretraining(settings)
        if settings.init_from and not start.step:
            module.configure_model()
            load_state(module, settings.init_from)
        work = Work("samples", "images", settings.batch_size, flops_per_image(settings)["total"])
        log = RunLog(folder, work, "pretrain", progress)
        bad = BadImages(folder, len(np.unique(rows)), settings.max_bad)
        looks = Looks(folder, make_probe(pool, reader, settings.probe, settings.crops))
        watchers = [CollapseGuard(log, settings.collapse), bad, looks]
        batches = CropBatches(reader, order, grid, settings)
        fitted = fit(module, batches, folder, start, log, watchers)
        samples = fitted.step * settings.batch_size
        result = PretrainResult(
            finished=fitted.finished,
            folder=folder / TEACHER,
            step=fitted.step,
            samples=samples,
            metrics={**log.last, **looks.last},
            coverage=order.coverage(samples),
            bad_images=len(bad.seen),
            images_per_second=log.rate,
        )
        about = {
            **identity,
            "n_rows": len(rows),
            "data": origin or {},
            "coverage": result.coverage,
            "metrics": result.metrics,
        }

        def write(state: dict[str, Tensor]) -> None:
            prefix = "teacher.backbone."
            teacher = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            export_teacher(teacher, settings, folder, about)
            save_state(state, folder / STATE)

        if result.finished:
            fitted.export(write, {**vars(result), "folder": TEACHER, "source": source}, (STATE, TEACHER))
        return result


class Pretraining(StepModule):
    """Student and teacher (DINOv2, section 4).

    Attributes:
        student, teacher: networks; the teacher gets no gradient.
        anchor: earlier teacher of Gram anchoring, or None.
        losses: of the last micro-batch.
        information: see `assignment_information`, of the last micro-batch's class tokens.
    """

    settings: PretrainSettings
    information: Tensor

    def __init__(self, settings: PretrainSettings):
        super().__init__(settings)
        self.schedules = settings.schedules()
        self.student: Any = None
        self.teacher: Any = None
        self.anchor: Any = None

    def configure_model(self) -> None:
        if self.student is not None:  # Lightning calls this again for every stage
            return
        settings = self.settings
        self.student, self.teacher = build_networks(settings)
        if not self.student.backbone.has_patches and settings.speed.strategy != "fsdp":
            # convolutions are faster so; what goes in takes the layout of the weights
            for network in (self.student, self.teacher):
                network.backbone.to(memory_format=torch.channels_last)
        if settings.loss.gram.weight:
            self.anchor = copy.deepcopy(self.teacher.backbone)
        self.dino_targets, self.ibot_targets = build_targets(settings.loss)
        given = settings.optimiser
        self.kinds = parameter_kinds(self.student, given.layer_decay, given.patch_embed_factor)
        if settings.speed.checkpoint_activations:
            self.student.backbone.model.set_grad_checkpointing(True)
        if settings.speed.compile:
            for network in (self.student, self.teacher):
                network.backbone.compile()  # in place: the names in the checkpoint stay

    def configure_optimizers(self) -> torch.optim.Optimizer:
        given = self.settings.optimiser
        groups = parameter_groups(self.student.named_parameters(), self.kinds)
        # scaled gradients would be unscaled twice by a fused step
        fused = self.device.type in ("cpu", "cuda") and self.settings.precision != "16-mixed"
        return torch.optim.AdamW(groups, lr=self.settings.peak_rate, betas=given.betas, fused=fused)

    def train(self, mode: bool = True) -> "Pretraining":
        super().train(mode)
        # the teacher stays as it is set: it has no stochastic depth, and its batch norms, if any, see its own crops
        if self.anchor is not None:
            self.anchor.eval()
        return self

    def rates(self, step: int) -> dict[str, float]:
        values = {name: value(step) for name, value in self.schedules.items()}
        return {"learning_rate": self.settings.peak_rate * values.pop("rate"), **values}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        step, micro, rates = batch.slot.step, batch.slot.micro, self.rates(batch.slot.step)
        frozen = step < self.settings.frozen_steps
        set_rates(self.trainer.optimizers[0], rates["learning_rate"], rates["weight_decay"], frozen)
        # stochastic depth: drawn anew for every micro-batch, so that a resumed run draws the same
        draw = np.random.SeedSequence([self.settings.seed, step, micro, self.global_rank])
        torch.manual_seed(int(draw.generate_state(1, np.uint64)[0]))
        if self.anchor is not None and micro == 0:
            self._move_anchor(step)

    def _move_anchor(self, step: int) -> None:
        gram = self.settings.loss.gram
        since = step - in_steps(gram.start, self.settings.steps)
        if since == 0 or (since > 0 and gram.refresh and since % gram.refresh == 0):
            copy_weights(self.teacher.backbone, self.anchor)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        settings, loss, step = self.settings, self.settings.loss, batch.slot.step
        with torch.autocast(self.device.type, enabled=False), torch.no_grad():
            views, local_views = multi_crop(batch.canvases, batch.sizes, batch.draws, settings.crops)
        b, n_local = len(batch.canvases), settings.crops.n_local
        masks = batch.masks if batch.masks.shape[1] else None
        temperature = self.schedules["teacher_temperature"](step)

        with torch.no_grad():
            cls, patches = self.teacher.backbone(views)
            targets = self.dino_targets(self.teacher.dino_head(cls), temperature)
            self.information = assignment_information(targets)
            if masks is not None:
                hidden = patches.flatten(0, 1)[batch.masked]
                patch_targets = self.ibot_targets(self.teacher.ibot_head(hidden), temperature)

        cls, patches = self.student.backbone(views, masks)
        tokens = cls
        if n_local:
            tokens = torch.cat([cls, self.student.backbone(local_views)[0]])
        logits = self.student.dino_head(tokens)
        losses = {}
        if loss.dino:
            pairs, locals_ = logits[: 2 * b].unflatten(0, (2, b)), logits[2 * b :].unflatten(0, (n_local, b))
            losses["dino"] = dino_loss(pairs, locals_, targets.unflatten(0, (2, b)), loss.student_temperature)
        if masks is not None:
            logits = self.student.ibot_head(patches.flatten(0, 1)[batch.masked])
            losses["ibot"] = ibot_loss(logits, patch_targets, batch.weights, 2 * b, loss.student_temperature)
        if loss.koleo:
            # each global crop by itself: the two crops of an image are meant to be close
            losses["koleo"] = koleo_loss(cls[:b]) + koleo_loss(cls[b:])
        weights = {"dino": loss.dino, "ibot": loss.ibot, "koleo": loss.koleo, "gram": loss.gram.weight}
        if self.anchor is not None and step >= in_steps(loss.gram.start, settings.steps):
            with torch.no_grad():
                anchors = self.anchor(views)[1]
            losses["gram"] = gram_loss(patches, anchors)
        total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        self.losses = {"loss": total.detach(), **{name: value.detach() for name, value in losses.items()}}
        return total

    def logged(self, step_is_done: bool) -> dict[str, Tensor]:
        return {**self.losses, "information": self.information}

    def clipped_parts(self) -> list[nn.Module]:
        return self.student.parts()  # type: ignore[no-any-return]

    def shards(self) -> list[nn.Module]:
        parts = [*self.student.parts(), *self.teacher.parts(), *([] if self.anchor is None else [self.anchor])]
        blocks = [module for part in parts for module in part.modules() if isinstance(module, (Block, EvaBlock))]
        return [*blocks, *parts]

    @property
    def largest_norm(self) -> float:
        return self.settings.optimiser.clip

    def advice(self) -> str:
        return (
            f"look at the learning rate (peak {self.settings.peak_rate:.2g}), its warm-up and optimiser.clip, and try "
            "precision=bf16-mixed in place of 16-mixed. The last checkpoint is from before"
        )

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        step = self.global_step
        super().optimizer_step(*args, **options)
        # here and not at the end of the batch: checkpoints are written before the module hears of that
        ema_update(self.student, self.teacher, self.schedules["teacher_momentum"](step))


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


def cache_rows(settings: PretrainSettings) -> int:
    """How many canvases fit into the cache; none with workers, which would each hold their own."""
    if settings.speed.n_workers:
        return 0
    return int(settings.speed.cache_gb * 1e9 / (3 * settings.crops.canvas_size**2))
