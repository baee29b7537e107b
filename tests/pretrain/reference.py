"""The papers' formulas in float64, one loop per sum, written without looking at the code that they check."""

import math

import numpy as np


def softmax(row: np.ndarray) -> np.ndarray:
    e = np.exp(row - row.max())
    return e / e.sum()


def entropy_of(target: np.ndarray, logits: np.ndarray, temperature: float) -> float:
    p = softmax(logits / temperature)
    return -float(sum(t * math.log(q) for t, q in zip(target, p, strict=True)))


def dino(globals_: np.ndarray, locals_: np.ndarray, targets: np.ndarray, temperature: float) -> float:
    """Equation 3 of DINO: every teacher view against every other view, each pair weighing alike."""
    views = [*globals_, *locals_]
    pairs = []
    for t, target in enumerate(targets):
        for v, view in enumerate(views):
            if v != t:
                b = len(view)
                pairs.append(sum(entropy_of(target[i], view[i], temperature) for i in range(b)) / b)
    return sum(pairs) / len(pairs)


def ibot(logits: np.ndarray, targets: np.ndarray, crop_of: np.ndarray, n_crops: int, temperature: float) -> float:
    total = 0.0
    for crop in range(n_crops):
        mine = [i for i in range(len(logits)) if crop_of[i] == crop]
        if mine:
            total += sum(entropy_of(targets[i], logits[i], temperature) for i in mine) / len(mine)
    return total / n_crops


def koleo(x: np.ndarray) -> float:
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    n = len(x)
    nearest = [min(np.linalg.norm(x[i] - x[j]) for j in range(n) if j != i) for i in range(n)]
    return -float(np.mean(np.log(nearest)))


def gram(x: np.ndarray, y: np.ndarray) -> float:
    found = []
    for a, b in zip(x, y, strict=True):
        a = a / np.linalg.norm(a, axis=1, keepdims=True)
        b = b / np.linalg.norm(b, axis=1, keepdims=True)
        found.append(((a @ a.T - b @ b.T) ** 2).mean())
    return float(np.mean(found))


def sinkhorn(logits: np.ndarray, temperature: float, iterations: int) -> np.ndarray:
    q = np.exp(logits / temperature)
    n, k = q.shape
    for _ in range(iterations):
        for j in range(k):
            q[:, j] /= q[:, j].sum() * k
        for i in range(n):
            q[i] /= q[i].sum() * n
    return q * n


def cosine_schedule(start: float, peak: float, end: float, warmup: int, steps: int) -> list[float]:
    rise = list(np.linspace(start, peak, warmup, endpoint=False)) if warmup else []
    rest = steps - warmup
    fall = [end + 0.5 * (peak - end) * (1 + math.cos(math.pi * i / max(rest - 1, 1))) for i in range(rest)]
    return rise + fall
