"""What the Lightning modules of all rooms share: rates before a step, clipping, values for the log, finite numbers."""

from typing import Any

import lightning
import torch
from torch import Tensor, nn

from foundation.errors import CurationError
from training.checkpoints import count_batches_anew
from training.settings import RunSettings
from training.sharding import full


class StepModule(lightning.LightningModule):
    """A model that trains step by step; a room adds its networks, its optimiser, and ``training_step``.

    Attributes:
        settings: of the run.
        losses: name -> detached value, of this step so far or of its last micro-batch; they must be finite.
        gradient_norm: of the first of `clipped_parts` before clipping, at the last step.
    """

    def __init__(self, settings: RunSettings):
        super().__init__()
        self.settings = settings
        self.losses: dict[str, Tensor] = {}
        self.gradient_norm: Tensor | None = None

    def configure_model(self) -> None:
        """Make the networks; Lightning calls this for every stage, after the processes have met."""

    def shards(self) -> list[nn.Module]:
        """Modules whose weights FSDP gathers one by one when they are called, inner before outer.

        Together they hold every parameter, and the step calls the outermost as functions.
        """
        return [child for child in self.children() if any(True for _ in child.parameters())]

    def rates(self, step: int) -> dict[str, float]:
        """Learning rate, and whatever else follows a schedule, at a step: what its line of the log says."""
        raise NotImplementedError

    def logged(self, step_is_done: bool) -> dict[str, Tensor]:
        """What the log takes in after a micro-batch; a line is the mean of all that it took, over all processes."""
        return self.losses if step_is_done else {}

    def clipped_parts(self) -> list[nn.Module]:
        """Modules whose gradients are clipped one by one."""
        return [self]

    @property
    def largest_norm(self) -> float:
        """Of the gradient of each part; 0 clips nothing."""
        raise NotImplementedError

    def advice(self) -> str:
        """What to do where a loss is not finite."""
        raise NotImplementedError

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        count_batches_anew(checkpoint, self.trainer.accumulate_grad_batches)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        limit = self.largest_norm or float("inf")
        norms = [nn.utils.clip_grad_norm_(part.parameters(), limit) for part in self.clipped_parts()]
        self.gradient_norm = full(norms[0])

    def check_finite(self) -> None:
        """Stop at a loss or gradient that is not finite; called where the log synchronises anyway.

        Raises:
            CurationError: which it is, at which step, and what helps.
        """
        for name, value in {**self.losses, "gradient norm": self.gradient_norm}.items():
            if value is not None and not bool(torch.isfinite(value)):
                raise CurationError(f"the {name} is {float(value)} at step {self.global_step}; {self.advice()}")
