"""Linear probe with the sweep of DINOv2: learning rates x inputs (blocks and pooling), all heads in one pass.

The heads of one input are the columns of one matrix, so a step is one product forward and one backward per input,
whatever the number of learning rates. The gradient of softmax cross-entropy is written out; SGD with momentum,
cosine schedule, no weight decay, learning rates multiplied by batch size / 256.

The best head is chosen on a validation part cut from the training set. (The public DINOv2 code chooses it on the set
that it reports, which flatters the figure.)
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import cos, pi
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eval.arrays import as_features, as_labels, count_classes
from eval.splits import validation_split
from foundation.errors import CurationError
from foundation.settings import BelowOne, Choices, Count, Positive, Range, Seed, check

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
INITIAL_STD = 0.01
TIMED, WORTH_A_LINE = 20, 10  # steps that foretell the time; seconds below which it is not said

Inputs = Mapping[str, Float[Tensor, "b _"]]  # name of an input to its features; widths differ
Say = Callable[[str], None]
ReadRows = Callable[[Int[Tensor, "b"]], Inputs]


def silent(_line: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class LinearSettings:
    """How heads are trained; the defaults are DINOv2's for ImageNet-1k.

    Attributes:
        learning_rates: swept; multiplied by batch size / 256.
        steps: of SGD (10 x 1250).
        batch_size: rows per step.
        momentum: of SGD.
        val_share: part of the training rows that chooses the head.
        refit: train the chosen head again on all training rows.
        precision: of the products: "float32", or "bfloat16" on a device that is fast at it; weights stay float32.
        seed: of initial weights, order and validation part.
    """

    learning_rates: tuple[Positive, ...] = LEARNING_RATES
    steps: Count = 12_500
    batch_size: Count = 1024
    momentum: BelowOne = 0.9
    val_share: Annotated[float, Range(gt=0, lt=1)] = 0.1
    refit: bool = False
    precision: Annotated[str, Choices(*PRECISIONS)] = "float32"
    seed: Seed = 0

    def __post_init__(self) -> None:
        check(self)
        if not self.learning_rates:
            raise CurationError("learning_rates is empty; give at least one")


class HeadBank:
    """All heads of one input: columns ``h * classes ... (h + 1) * classes`` belong to learning rate h."""

    def __init__(
        self, width: int, n_classes: int, rates: list[float], momentum: float, precision: str, seed: int, device: Any
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        # the same start for every learning rate: heads differ in nothing else
        start = torch.randn(width, n_classes, generator=generator) * INITIAL_STD
        self.weight: Float[Tensor, "d heads*classes"] = start.repeat(1, len(rates)).to(device)
        self.bias: Float[Tensor, " heads*classes"] = torch.zeros(len(rates) * n_classes, device=device)
        self.weight_velocity, self.bias_velocity = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self.rates: Float[Tensor, " heads*classes"] = torch.tensor(rates).repeat_interleave(n_classes).to(device)
        self.n_heads, self.n_classes, self.momentum = len(rates), n_classes, momentum
        self.dtype = PRECISIONS[precision]

    def logits(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b heads classes"]:
        product = (x.to(self.dtype) @ self.weight.to(self.dtype)).float() + self.bias
        return product.view(len(x), self.n_heads, self.n_classes)

    def step(self, x: Float[Tensor, "b d"], y: Int[Tensor, "b"], factor: float) -> None:
        """One step of SGD with momentum at ``factor`` times each head's learning rate."""
        residual = self.logits(x).softmax(-1)
        residual[torch.arange(len(x), device=x.device), :, y] -= 1
        residual = residual.view(len(x), -1) / len(x)
        self.weight_velocity.mul_(self.momentum).add_((x.to(self.dtype).T @ residual.to(self.dtype)).float())
        self.bias_velocity.mul_(self.momentum).add_(residual.sum(0))
        self.weight.sub_(self.weight_velocity * (factor * self.rates))
        self.bias.sub_(self.bias_velocity * (factor * self.rates))

    def head(self, h: int) -> tuple[Float[Tensor, "d classes"], Float[Tensor, "classes"]]:
        columns = slice(h * self.n_classes, (h + 1) * self.n_classes)
        return self.weight[:, columns].clone(), self.bias[columns].clone()


@dataclass
class LinearProbe:
    """The chosen head.

    Attributes:
        input: which blocks and pooling it reads.
        learning_rate: before the batch-size scaling.
        weight: (d, classes).
        bias: (classes,).
        val_accuracy: of every head: (input, learning rate) to accuracy; 0 for a head that diverged.
    """

    input: str
    learning_rate: float
    weight: Float[Tensor, "d classes"]
    bias: Float[Tensor, "classes"]
    val_accuracy: dict[tuple[str, float], float] = field(default_factory=dict)

    def scores(self, features: Any, rows_per_block: int = 8192) -> Float[Tensor, "n classes"]:
        """Logits of a matrix, of a mapping of inputs, or of an object with ``inputs(rows)``; on the CPU."""
        read, n = _reader(features, "features")
        blocks = torch.arange(n).split(rows_per_block)
        parts = []
        for rows in blocks:
            inputs = read(rows)
            if self.input not in inputs:
                raise CurationError(f"the probe reads {self.input!r}; these features have {', '.join(inputs)}")
            parts.append((inputs[self.input].to(self.weight) @ self.weight + self.bias).cpu())
        return torch.cat(parts)


def train_heads(
    batches: Iterable[tuple[Inputs, Int[Tensor, "b"]]],
    n_classes: int,
    settings: LinearSettings,
    device: str | torch.device = "cpu",
    say: Say = silent,
) -> dict[str, HeadBank]:
    """Train every head on a stream of at most ``settings.steps`` batches: cached features, or images on the fly.

    Args:
        batches: of (inputs by name, labels); every batch has the same inputs.
        say: is told how much there is to do, and after the first steps how long it takes.
    """
    scaled = [rate * settings.batch_size / 256 for rate in settings.learning_rates]
    banks: dict[str, HeadBank] = {}
    say(f"{settings.steps:,} steps x {settings.batch_size:,} rows; steps= and train_batch= change them")
    with torch.no_grad():
        for step, (inputs, y) in zip(range(settings.steps), batches, strict=False):
            if not banks:
                banks = {
                    name: HeadBank(
                        x.shape[1], n_classes, scaled, settings.momentum, settings.precision, settings.seed, device
                    )
                    for name, x in inputs.items()
                }
            if step == 1:  # the first one warms up
                started = _when_done(banks)
            elif step == TIMED:
                left = (_when_done(banks) - started) / (TIMED - 1) * (settings.steps - step)
                if left >= WORTH_A_LINE:
                    say(f"about {left / 60:,.1f} minutes to go")
            factor = 0.5 * (1 + cos(pi * step / settings.steps))
            y = y.to(device)
            for name, bank in banks.items():
                bank.step(inputs[name].float().to(device), y, factor)
    if not banks:
        raise CurationError("the linear probe got no batch to train on")
    return banks


def _when_done(banks: Mapping[str, HeadBank]) -> float:
    """Seconds on a clock, once the device has done what it was given."""
    for bank in banks.values():
        bank.bias[0].item()
    return time.perf_counter()


def choose_head(
    banks: dict[str, HeadBank], settings: LinearSettings, batches: Iterable[tuple[Inputs, Int[Tensor, "b"]]]
) -> LinearProbe:
    """The head with the best validation accuracy; ties go to the first input and the lowest learning rate.

    Raises:
        CurationError: every head diverged.
    """
    correct = {name: torch.zeros(bank.n_heads, dtype=torch.long) for name, bank in banks.items()}
    n = 0
    with torch.no_grad():
        for inputs, y in batches:
            n += len(y)
            for name, bank in banks.items():
                logits = bank.logits(inputs[name].float().to(bank.weight.device))
                hit = (logits.argmax(-1) == y.to(logits.device)[:, None]) & torch.isfinite(logits).all(-1)
                correct[name] += hit.sum(0).cpu()
    finite = {
        name: torch.isfinite(bank.weight).view(-1, bank.n_heads, bank.n_classes).all(2).all(0)
        for name, bank in banks.items()
    }
    if not any(bool(which.any()) for which in finite.values()):
        raise CurationError(
            "every head of the linear probe diverged; lower the learning rates or normalise the features"
        )
    rates = settings.learning_rates
    accuracy = {(name, rates[h]): int(count[h]) / n for name, count in correct.items() for h in range(len(rates))}
    best_name, best_rate = max(accuracy, key=lambda key: accuracy[key])
    weight, bias = banks[best_name].head(rates.index(best_rate))
    return LinearProbe(best_name, best_rate, weight, bias, accuracy)


def fit_linear(
    train: Any,
    train_labels: Any,
    settings: LinearSettings | None = None,
    n_classes: int | None = None,
    device: str | torch.device = "cpu",
    say: Say = silent,
) -> LinearProbe:
    """Sweep heads over cached features and choose one on a validation part of them.

    Args:
        train: (n, d) features, a mapping of input names to such, or an object with ``inputs(rows)`` (`FeatureSet`).
        say: of `train_heads`.
    """
    settings = settings or LinearSettings()
    read, n = _reader(train, "train features")
    y = as_labels(train_labels, n, "train labels").cpu()
    n_classes = n_classes or count_classes(y)
    fit_rows, val_rows = validation_split(y, settings.val_share, settings.seed)
    banks = train_heads(_shuffled(read, y, fit_rows, settings), n_classes, settings, device, say)
    probe = choose_head(banks, settings, ((read(rows), y[rows]) for rows in val_rows.split(4096)))
    if settings.refit:
        alone = LinearSettings(**{**vars(settings), "learning_rates": (probe.learning_rate,)})
        everything = _shuffled(read, y, torch.arange(n), alone)
        only = (({probe.input: inputs[probe.input]}, labels) for inputs, labels in everything)
        probe.weight, probe.bias = train_heads(only, n_classes, alone, device, say)[probe.input].head(0)
    return probe


def linear_probe(
    train: Any,
    train_labels: Any,
    test: Any,
    test_labels: Any,
    settings: LinearSettings | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Test accuracy of the head chosen on the validation part; the test labels choose nothing.

    Returns:
        ``accuracy``, ``correct`` (n,) per test row, ``val_accuracy``, ``input``, ``learning_rate`` and the ``probe``.
    """
    probe = fit_linear(train, train_labels, settings, device=device)
    scores = probe.scores(test)
    correct = scores.argmax(1) == as_labels(test_labels, len(scores), "test labels").cpu()
    return {
        "accuracy": float(correct.double().mean()),
        "correct": correct,
        "val_accuracy": probe.val_accuracy[probe.input, probe.learning_rate],
        "input": probe.input,
        "learning_rate": probe.learning_rate,
        "probe": probe,
    }


def _shuffled(
    read: ReadRows, labels: Int[Tensor, "n"], rows: Int[Tensor, "m"], settings: LinearSettings
) -> Iterator[tuple[Inputs, Int[Tensor, "b"]]]:
    """Endless batches: every row once per epoch, in a new order; an epoch's last batch is filled from the next."""
    generator = torch.Generator().manual_seed(settings.seed)
    queue = rows[:0]
    while True:
        while len(queue) < settings.batch_size:
            queue = torch.cat([queue, rows[torch.randperm(len(rows), generator=generator)]])
        batch, queue = queue[: settings.batch_size], queue[settings.batch_size :]
        yield read(batch), labels[batch]


def _reader(features: Any, name: str) -> tuple[ReadRows, int]:
    """How to read rows of a matrix, of a mapping of matrices, or of a feature set; and how many rows there are."""
    if hasattr(features, "inputs"):
        return features.inputs, len(features)
    if isinstance(features, Mapping):
        if not features:
            raise CurationError(f"{name} has no input")
        parts = {key: as_features(x, f"{name} {key!r}") for key, x in features.items()}
        lengths = {len(x) for x in parts.values()}
        if len(lengths) > 1:
            raise CurationError(f"the inputs of {name} have different numbers of rows: {sorted(lengths)}")
        return lambda rows: {key: x[rows.to(x.device)] for key, x in parts.items()}, lengths.pop()
    x = as_features(features, name)
    return lambda rows: {"features": x[rows.to(x.device)]}, len(x)
