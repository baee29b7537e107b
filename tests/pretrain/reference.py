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


def dino_gradient(globals_: np.ndarray, locals_: np.ndarray, targets: np.ndarray, temperature: float) -> np.ndarray:
    """Of `dino` by the student's logits, global views first: softmax minus target of every pair."""
    views = [*globals_, *locals_]
    n_pairs = len(targets) * (len(views) - 1)
    found = np.zeros((len(views), *views[0].shape))
    for t, target in enumerate(targets):
        for v, view in enumerate(views):
            if v != t:
                for i in range(len(view)):
                    found[v, i] += (softmax(view[i] / temperature) - target[i]) / (temperature * len(view) * n_pairs)
    return found


def ibot_gradient(logits: np.ndarray, targets: np.ndarray, crop_of: np.ndarray, n_crops: int, temperature: float):
    found = np.zeros_like(logits)
    for i in range(len(logits)):
        n_masked = sum(crop == crop_of[i] for crop in crop_of)
        found[i] = (softmax(logits[i] / temperature) - targets[i]) / (temperature * n_masked * n_crops)
    return found


def difference_quotient(function, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Gradient of a scalar function, one number after the other."""
    found = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[place] += step
        down[place] -= step
        found[place] = (function(up) - function(down)) / (2 * step)
    return found


def prototypes(x: np.ndarray, weight: np.ndarray, norms: np.ndarray | None, kind: str) -> np.ndarray:
    """Logits of features on the sphere."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    if kind == "linear":
        return x @ weight.T
    cosines = x @ (weight / np.linalg.norm(weight, axis=1, keepdims=True)).T
    return cosines if norms is None else cosines * norms[:, 0]


def cubic(x: float, a: float) -> float:
    """Kernel of Keys (1981)."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def resized_line(line: np.ndarray, n_out: int, offset: float) -> np.ndarray:
    """(n, d) to (n_out, d): four neighbours of each sample, those beyond an end taken from the end, no antialiasing."""
    n = len(line)
    found = np.zeros((n_out, line.shape[1]))
    for i in range(n_out):
        place = (i + 0.5) * n / (n_out + offset) - 0.5
        first = math.floor(place)
        for k in range(first - 1, first + 3):
            found[i] += cubic(place - k, -0.75) * line[min(max(k, 0), n - 1)]
    return found


def resized_positions(grid: np.ndarray, new: tuple[int, int], offset: float = 0.1) -> np.ndarray:
    """(h, w, d) to (new h, new w, d)."""
    columns = np.stack([resized_line(row, new[1], offset) for row in grid])
    return np.stack([resized_line(columns[:, j], new[0], offset) for j in range(new[1])], axis=1)


def rotary_angles(rows: int, columns: int, head_dim: int, base: float = 100.0) -> np.ndarray:
    """DINOv3, section 3.2: patch centres in -1..1, a quarter of the head's numbers for each axis; (patches, d / 2)."""
    periods = [base ** (2 * i / (head_dim / 2)) for i in range(head_dim // 4)]
    found = []
    for i in range(rows):
        for j in range(columns):
            y, x = 2 * (i + 0.5) / rows - 1, 2 * (j + 0.5) / columns - 1
            found.append([2 * math.pi * y / p for p in periods] + [2 * math.pi * x / p for p in periods])
    return np.array(found)


def rotated(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """(patches, d): number i and number i + d / 2 turn together."""
    a, b = np.split(x, 2, axis=1)
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], axis=1)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float = 1e-6) -> np.ndarray:
    centred = x - x.mean(1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(1, keepdims=True) + eps) * weight + bias


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def vit(w: dict[str, np.ndarray], image: np.ndarray, patch: int, n_heads: int, depth: int) -> np.ndarray:
    """Tokens of one image (3, h, w) after the last norm, class token first, of a transformer with LayerScale.

    Positions are learned where there are any, else those of `rotary_angles`; gated where the first layer of the MLP is
    twice as wide as the second.
    """
    rows, columns = image.shape[1] // patch, image.shape[2] // patch
    kernel = w["patch_embed.proj.weight"]
    tokens = [w["cls_token"][0, 0]]
    for i in range(rows):
        for j in range(columns):
            pixels = image[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            tokens.append((kernel * pixels).sum((1, 2, 3)) + w["patch_embed.proj.bias"])
    x = np.stack(tokens)
    d = x.shape[1]
    angles = None
    if "pos_embed" in w:
        side = round(math.sqrt(w["pos_embed"].shape[1] - 1))
        positions = w["pos_embed"][0, 1:].reshape(side, side, d)
        if (rows, columns) != (side, side):
            positions = resized_positions(positions, (rows, columns))
        x = x + np.concatenate([w["pos_embed"][0, :1], positions.reshape(-1, d)])
    else:
        angles = rotary_angles(rows, columns, d // n_heads)
    for block in range(depth):
        part = {name.removeprefix(f"blocks.{block}."): value for name, value in w.items()}
        y = layer_norm(x, part["norm1.weight"], part["norm1.bias"])
        q, k, v = np.split(y @ part["attn.qkv.weight"].T + part["attn.qkv.bias"], 3, axis=1)
        heads = []
        for head in range(n_heads):
            own = slice(head * d // n_heads, (head + 1) * d // n_heads)
            a, b = q[:, own], k[:, own]
            if angles is not None:
                a, b = (np.concatenate([z[:1], rotated(z[1:], angles)]) for z in (a, b))
            weights = np.stack([softmax(row) for row in a @ b.T / math.sqrt(d / n_heads)])
            heads.append(weights @ v[:, own])
        y = np.concatenate(heads, axis=1) @ part["attn.proj.weight"].T + part["attn.proj.bias"]
        x = x + y * part.get("ls1.gamma", part.get("gamma_1"))
        y = layer_norm(x, part["norm2.weight"], part["norm2.bias"]) @ part["mlp.fc1.weight"].T + part["mlp.fc1.bias"]
        if y.shape[1] == 2 * part["mlp.fc2.weight"].shape[1]:
            gate, value = np.split(y, 2, axis=1)
            y = gate / (1 + np.exp(-gate)) * value
        else:
            y = gelu(y)
        y = y @ part["mlp.fc2.weight"].T + part["mlp.fc2.bias"]
        x = x + y * part.get("ls2.gamma", part.get("gamma_2"))
    return layer_norm(x, w["norm.weight"], w["norm.bias"])


def adamw_step(
    weight, gradient, rate: float, decay: float, betas: tuple[float, float], eps: float = 1e-8
) -> np.ndarray:
    """The first step of AdamW (Loshchilov and Hutter 2019, algorithm 2)."""
    m, v = (1 - betas[0]) * gradient, (1 - betas[1]) * gradient**2
    m, v = m / (1 - betas[0]), v / (1 - betas[1])
    return weight - rate * (m / (np.sqrt(v) + eps) + decay * weight)
