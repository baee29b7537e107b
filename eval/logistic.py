"""Multinomial logistic regression by L-BFGS, with a sweep of the regularisation on a validation split.

Minimises  sum_i CE(x_i W + b, y_i) / n + |W|^2 / (2 C n): the objective and the C of scikit-learn; b is not penalised.
The published protocol (DINOv2) sweeps C over 45 values from 1e-6 to 1e5.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from eval.arrays import as_features, as_labels, check_same_width, count_classes
from eval.splits import validation_split
from foundation.errors import CurationError

DEFAULT_CS: tuple[float, ...] = tuple(10.0 ** (-6 + 11 * i / 44) for i in range(45))


@dataclass
class LogisticModel:
    """A fitted model.

    Attributes:
        weight: (d, classes).
        bias: (classes,).
        c: inverse strength of the regularisation.
        iterations: of L-BFGS.
        gradient: largest absolute entry of the gradient at the end.
        val_accuracy: of every C of the sweep.
    """

    weight: Float[Tensor, "d classes"]
    bias: Float[Tensor, "classes"]
    c: float
    iterations: int
    gradient: float
    val_accuracy: dict[float, float] = field(default_factory=dict)

    def scores(self, x: Any) -> Float[Tensor, "n classes"]:
        """Logits."""
        x = as_features(x)
        return x.to(self.weight) @ self.weight + self.bias


def fit_logistic(
    features: Any,
    labels: Any,
    c: float = 1.0,
    n_classes: int | None = None,
    max_iterations: int = 1000,
    tolerance: float = 1e-5,
    start: LogisticModel | None = None,
    rows_per_block: int = 1 << 16,
) -> LogisticModel:
    """Fit one model; the logits are made block by block, so memory is one block of them.

    Args:
        features: (n, d) float32 or float64, which is also the precision of the fit.
        c: see above.
        tolerance: stops where no entry of the gradient is larger.
        start: a model to begin from.
    """
    x = as_features(features, "train features")
    y = as_labels(labels, len(x), "train labels").to(x.device)
    if c <= 0 or max_iterations < 1:
        raise CurationError(f"C = {c} and max_iterations = {max_iterations}: both must be positive")
    n, d = x.shape
    n_classes = n_classes or count_classes(y)
    theta = torch.zeros(d + 1, n_classes, dtype=x.dtype, device=x.device)  # the last row is the bias
    if start is not None:
        theta[:-1], theta[-1] = start.weight, start.bias
    theta.grad = torch.zeros_like(theta)
    optimiser = torch.optim.LBFGS(
        [theta], lr=1, max_iter=max_iterations, max_eval=2 * max_iterations, tolerance_grad=tolerance,
        tolerance_change=0.0, history_size=10, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def objective() -> Tensor:
        weight, bias = theta[:-1], theta[-1]
        gradient = torch.zeros_like(theta)
        loss = weight.square().sum() / (2 * c)
        gradient[:-1] = weight / c
        for first in range(0, n, rows_per_block):
            part, truth = x[first : first + rows_per_block], y[first : first + rows_per_block]
            log_p = torch.log_softmax(part @ weight + bias, dim=1)
            loss = loss - log_p.gather(1, truth[:, None]).sum()
            residual = log_p.exp()
            residual[torch.arange(len(part), device=x.device), truth] -= 1
            gradient[:-1] += part.T @ residual
            gradient[-1] += residual.sum(0)
        theta.grad = gradient / n
        return loss / n

    with torch.no_grad():
        optimiser.step(objective)  # type: ignore[arg-type]
        objective()
    iterations = int(optimiser.state[theta]["n_iter"])
    return LogisticModel(theta[:-1].clone(), theta[-1].clone(), c, iterations, float(theta.grad.abs().max()))


def logistic_regression(
    train_features: Any,
    train_labels: Any,
    cs: Sequence[float] = DEFAULT_CS,
    val_share: float = 0.1,
    n_classes: int | None = None,
    max_iterations: int = 1000,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> LogisticModel:
    """Choose C on a validation part of the training set, then fit on all of it.

    The sweep goes from strong to weak regularisation, each fit starting where the last one ended; equal accuracies
    take the stronger. The test set plays no part.
    """
    x = as_features(train_features, "train features")
    y = as_labels(train_labels, len(x), "train labels").to(x.device)
    if not cs:
        raise CurationError("no C is given; logistic regression needs at least one")
    n_classes = n_classes or count_classes(y)
    fit_rows, val_rows = (rows.to(x.device) for rows in validation_split(y, val_share, seed))
    x_fit, y_fit, x_val, y_val = x[fit_rows], y[fit_rows], x[val_rows], y[val_rows]
    accuracy: dict[float, float] = {}
    best: LogisticModel | None = None
    model: LogisticModel | None = None
    for c in sorted(cs):
        model = fit_logistic(x_fit, y_fit, c, n_classes, max_iterations, tolerance, start=model)
        accuracy[c] = float((model.scores(x_val).argmax(1) == y_val).double().mean())
        if best is None or accuracy[c] > accuracy[best.c]:
            best = model
    assert best is not None
    final = fit_logistic(x, y, best.c, n_classes, max_iterations, tolerance, start=best)
    final.val_accuracy = accuracy
    return final


def logistic_accuracy(
    train_features: Any, train_labels: Any, test_features: Any, test_labels: Any, **options: Any
) -> dict[str, float]:
    """Test accuracy, the C chosen on the validation part, and the accuracy there. Options: `logistic_regression`."""
    train, test = as_features(train_features, "train features"), as_features(test_features, "test features")
    check_same_width(train, test)
    truth = as_labels(test_labels, len(test), "test labels")
    model = logistic_regression(train, train_labels, **options)
    correct = model.scores(test).argmax(1).cpu() == truth.cpu()
    return {
        "accuracy": float(correct.double().mean()),
        "c": model.c,
        "val_accuracy": max(model.val_accuracy.values()),
    }
