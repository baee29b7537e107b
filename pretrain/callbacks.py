"""What is watched while it pretrains: unreadable images, a teacher that collapses, and looks at its features."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning

from foundation.errors import CurationError
from pretrain.data import Batch
from pretrain.probe import Probe
from training.log import RunLog, append_line, step_is_due
from training.run_folder import BAD_IMAGES, PROBE, forget_after

LOOKS = 3  # in a row with a collapsed teacher before the run stops


class CollapseGuard(lightning.Callback):
    """Stops the run when several lines of the log in a row tell of a collapsed teacher.

    Args:
        log: which has taken in the step before this hears of it.
        least: information of the teacher's assignments, nats; 0 never stops.
    """

    def __init__(self, log: RunLog, least: float):
        self.run_log, self.least = log, least
        self.collapsed = 0

    def state_dict(self) -> dict[str, Any]:
        return {"collapsed": self.collapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.collapsed = state_dict["collapsed"]

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not step_is_due(trainer, batch_idx, pl_module.settings.speed.log_every):
            return
        step, information = trainer.global_step, self.run_log.last["information"]
        self.collapsed = self.collapsed + 1 if information < self.least else 0
        if self.least and self.collapsed >= LOOKS:
            raise CurationError(
                f"the teacher has collapsed at step {step}: its assignments tell {information:.4f} nats about a sample "
                f"(collapse={self.least}). Look at information and koleo in {self.run_log.path}; a lower learning "
                "rate, loss.centring=sinkhorn, a higher teacher momentum or a lower teacher temperature help"
            )


class BadImages(lightning.Callback):
    """Counts unreadable images, logs each once with its row, and stops the run when there are too many."""

    def __init__(self, folder: Path, n_rows: int, max_share: float):
        self.path, self.limit = folder / BAD_IMAGES, max_share * n_rows
        self.n_rows = n_rows
        self.seen: set[int] = set()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        for line in self.path.read_text(errors="replace").splitlines() if self.path.exists() else ():
            with suppress(ValueError, KeyError, TypeError):  # a line that a kill cut: its row is logged again
                self.seen.add(json.loads(line)["row"])

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        new = {row: reason for row, reason in batch.bad.items() if row not in self.seen}
        if not new:
            return
        self.seen |= new.keys()
        for row, reason in new.items():
            append_line(self.path, {"row": row, "reason": reason})
        if len(self.seen) > self.limit:
            row, reason = next(iter(new.items()))
            raise CurationError(
                f"{len(self.seen)} of {self.n_rows} images cannot be read, more than max_bad allows; the last is row "
                f"{row} ({reason}). All are in {self.path}; raise max_bad or leave them out of the subset"
            )


class Looks(lightning.Callback):
    """Looks at the teacher every so many steps: lines of ``probe.jsonl``."""

    def __init__(self, folder: Path, probe: Probe | None):
        self.path, self.probe = folder / PROBE, probe
        self.last: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last = state_dict["last"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            forget_after(self.path, trainer.global_step)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.probe is None or not step_is_due(trainer, batch_idx, self.probe.settings.every):
            return
        pl_module.check_finite()
        # all processes look, since a sharded model needs them all; one writes
        backbone = pl_module.teacher.backbone.eval()
        self.last = self.probe.look(backbone, pl_module.device)
        backbone.train()
        if trainer.is_global_zero:
            append_line(self.path, {"step": trainer.global_step, **self.last})
