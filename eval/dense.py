"""What dense evaluations share: settings, readers of patch features with targets, and the training of a head."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from foundation.errors import CurationError
from foundation.settings import Count, CountOrZero, NonNegative, Positive, Seed, check

Pair = tuple[Float[Tensor, "b h w d"], Tensor]  # patch features and the target at its own size
ReadPairs = Callable[[Int[Tensor, "b"]], Pair]


@dataclass(frozen=True)
class DenseSettings:
    """How a dense head is trained.

    Attributes:
        steps: optimiser steps.
        batch_size: images per step.
        learning_rate, weight_decay: AdamW.
        warmup: steps of linear warm-up, at most a tenth of the run.
        seed: of weights and order.
    """

    steps: Count = 40_000
    batch_size: Count = 16
    learning_rate: Positive = 1e-3
    weight_decay: NonNegative = 1e-4
    warmup: CountOrZero = 1500
    seed: Seed = 0

    def __post_init__(self) -> None:
        check(self)

    def rate(self, step: int) -> float:
        """Share of the learning rate at a step: linear up, then linear down to 0."""
        warmup = min(self.warmup, self.steps // 10)
        if step < warmup:
            return (step + 1) / warmup
        return (self.steps - step) / (self.steps - warmup)


def train_head(
    make: Callable[[int], nn.Module],
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor | None],
    read: ReadPairs,
    n: int,
    settings: DenseSettings,
    device: str | torch.device,
) -> nn.Module:
    """A trained head in evaluation mode."""
    generator = torch.Generator().manual_seed(settings.seed)
    width = read(torch.tensor([0]))[0].shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        head = make(width).to(device)
    optimiser = torch.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    queue = torch.empty(0, dtype=torch.long)
    learnt = False
    for step in range(settings.steps):
        while len(queue) < settings.batch_size:
            queue = torch.cat([queue, torch.randperm(n, generator=generator)])
        rows, queue = queue[: settings.batch_size], queue[settings.batch_size :]
        x, target = read(rows)
        value = loss(head, x.float().to(device), target.to(device))
        if value is None:
            continue
        if not torch.isfinite(value):
            raise CurationError(f"the loss of the dense head is {float(value)} at step {step}; lower learning_rate")
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * settings.rate(step)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        learnt = True
    if not learnt:
        raise CurationError("no training pixel has a valid target")
    return head.eval()


def in_order(read: ReadPairs, n: int, batch_size: int, device: str | torch.device) -> Iterator[Pair]:
    for rows in torch.arange(n).split(batch_size):
        x, target = read(rows)
        yield x.float().to(device), target.to(device)


def reader_of(data: Any, name: str) -> tuple[ReadPairs, int]:
    """How to read rows, and how many there are.

    Raises:
        CurationError: arrays that are not (n, h, w, d) and (n, H, W).
    """
    if callable(data[0]):
        return data[0], int(data[1])
    features, targets = torch.as_tensor(data[0]), torch.as_tensor(data[1])
    if features.ndim != 4 or targets.ndim != 3 or len(features) != len(targets) or not len(features):
        raise CurationError(
            f"{name}: features {tuple(features.shape)} must be (n, h, w, d), targets {tuple(targets.shape)} (n, H, W)"
        )
    return lambda rows: (features[rows], targets[rows]), len(features)
