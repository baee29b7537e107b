"""Whole checkpoints every so many steps and on SIGTERM, and the step from which a run goes on."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch

from foundation.errors import CurationError

CHECKPOINT = "last.ckpt"


class Checkpoints(lightning.Callback):
    """Weights, optimiser and progress in one file that is whole or absent.

    The module's ``check_finite()`` is asked first: a checkpoint that cannot go on is worse than none.

    Attributes:
        interrupted: training ended early, on a signal.
    """

    def __init__(self, folder: Path, every: int):
        self.folder, self.every = folder, every
        self.interrupted = False
        self._asked = threading.Event()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():  # signals can be handled nowhere else
            signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked.set()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        # one process may hear of the end before the others; all must act at the same step
        stop = trainer.strategy.reduce_boolean_decision(self._asked.is_set(), all=False)
        if stop and step < trainer.max_steps:
            self.interrupted = trainer.should_stop = True
        if self.interrupted or step % self.every == 0:
            self.save(trainer)

    def save(self, trainer: lightning.Trainer) -> None:
        """Write the checkpoint beside the old one, then replace it."""
        module: Any = trainer.lightning_module
        module.check_finite()
        temporary = self.folder / f".{CHECKPOINT}.tmp"
        try:
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                with open(temporary, "rb") as stream:
                    os.fsync(stream.fileno())
                os.replace(temporary, self.folder / CHECKPOINT)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise CurationError(
                f"{self.folder / CHECKPOINT} cannot be written ({error.strerror or error}); the one before it is "
                "whole: make room and run the same again"
            ) from error
        trainer.strategy.barrier("checkpoint")


@contextmanager
def signals_restored() -> Iterator[None]:
    """Give SIGTERM back to whom it belonged: Lightning and `Checkpoints` both put themselves in between."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def resume_step(folder: Path) -> int:
    """Optimiser steps in the folder's checkpoint; 0 where there is none.

    Raises:
        CurationError: it cannot be read.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return 0
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception as error:
        raise CurationError(f"{path} cannot be read ({type(error).__name__}); delete it to start again") from error


def count_batches_anew(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Let Lightning's count of micro-batches fit a resumed run that splits its batches otherwise."""
    done = checkpoint["global_step"] * accumulate
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for count in (progress["total"], progress["current"]):
        count.update(dict.fromkeys(count, done))
