"""Whole checkpoints every so many steps and on SIGTERM, and the one from which a run goes on."""

import os
import signal
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch

from foundation.errors import CurationError
from training.run_folder import CHECKPOINT, EARLIER


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on.

    Attributes:
        step: optimiser steps that are done.
        path: of the checkpoint; None: from the start.
    """

    step: int = 0
    path: Path | None = None


class Checkpoints(lightning.Callback):
    """Weights, optimiser and progress in one file that is whole or absent; the one before it stays beside it.

    The module's ``check_finite()`` is asked first: a checkpoint that cannot go on is worse than none.

    Args:
        folder: of the run.
        every: steps.
        start: what the run went on from.

    Attributes:
        interrupted: training ended early, on a signal.
    """

    def __init__(self, folder: Path, every: int, start: ResumePoint):
        self.path, self.earlier, self.every = folder / CHECKPOINT, folder / EARLIER, every
        self.is_good = start.path == self.path  # a damaged one must not take the place of the one before it
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
        """Write the checkpoint beside the old one, then replace it.

        Raises:
            CurationError: a value is not finite, or the disk is full.
        """
        module: Any = trainer.lightning_module
        module.check_finite()
        temporary = self.path.with_name(f".{CHECKPOINT}.tmp")
        try:
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                with open(temporary, "rb") as stream:
                    os.fsync(stream.fileno())
                if self.is_good:
                    _link(self.path, self.earlier)
                os.replace(temporary, self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise CurationError(
                f"{self.path} cannot be written ({error.strerror or error}); the one before it is whole: make room and "
                "run the same again"
            ) from error
        self.is_good = True
        trainer.strategy.barrier("checkpoint")


def _link(path: Path, second: Path) -> None:
    """A second name for a file, in place of what had it; on a disk without links nothing."""
    temporary = second.with_name(f".{second.name}.tmp")
    with suppress(OSError):
        temporary.unlink(missing_ok=True)
        os.link(path, temporary)
        os.replace(temporary, second)


@contextmanager
def signals_restored() -> Iterator[None]:
    """Give SIGTERM and Ctrl-C back to whom they belonged: Lightning and `Checkpoints` put themselves in between."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def find_checkpoint(folder: Path) -> ResumePoint:
    """The last whole checkpoint of a folder; the start where there is none.

    A damaged one is told on the error stream, and the one before it is taken.

    Raises:
        CurationError: there are some, and none is whole.
    """
    damaged: list[str] = []
    for name in (CHECKPOINT, EARLIER):
        path = folder / name
        if not path.exists():
            continue
        try:
            point = ResumePoint(_step_of(path), path)
        except CurationError as error:
            damaged.append(str(error))
            continue
        for line in damaged:
            print(f"warning: {line}; going on from {path.name}, step {point.step}", file=sys.stderr, flush=True)
        return point
    if damaged:
        raise CurationError(f"{damaged[0]}; delete it to start again")
    return ResumePoint()


def _step_of(path: Path) -> int:
    """Optimiser steps in a checkpoint whose every byte is as it was written.

    The file is a zip archive with a checksum of each part, which torch writes and does not compare.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise CurationError(f"{path} is damaged: the checksum of its part {broken} is another")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        step, counted = content["global_step"], optimiser_steps(content)
        if step != counted:
            raise CurationError(f"{path} is damaged: it counts {step!r} and {counted!r} steps")
    except CurationError:
        raise
    except Exception as error:  # zipfile, zlib and torch raise many types on damaged files
        raise CurationError(f"{path} cannot be read ({type(error).__name__})") from error
    return step


def remove_checkpoints(folder: Path) -> None:
    """What a finished run no longer needs."""
    for name in (CHECKPOINT, EARLIER):
        (folder / name).unlink(missing_ok=True)


# Lightning's private state of its loops is touched here and nowhere else: a test holds its shape for every version
# that we support


def optimiser_steps(checkpoint: dict[str, Any]) -> int:
    """Steps that Lightning's loop counts in a checkpoint."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
    return int(progress["optimizer"]["step"]["total"]["completed"])


def count_batches_anew(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Let Lightning's count of micro-batches fit a resumed run that splits its batches otherwise."""
    done = checkpoint["global_step"] * accumulate
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for count in (progress["total"], progress["current"]):
        count.update(dict.fromkeys(count, done))
