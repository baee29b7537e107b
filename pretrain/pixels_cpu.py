"""Weights of crops and colour jitter on a CPU: whole formulas while a pixel is at hand.

The arithmetic is that of `pretrain.crops` and `pretrain.colour`, which go through memory for every step of a formula.
"""

import numba
import numpy as np
from jaxtyping import Float, Int


@numba.njit(inline="always")
def _in_range(value):
    return min(max(value, np.float32(0)), np.float32(1))


@numba.njit(inline="always")
def _luma(r, g, b, weights):
    return weights[0] * r + weights[1] * g + weights[2] * b


@numba.njit(inline="always")
def _blend(value, other, factor):
    # as torch.lerp, which is exact at both ends
    difference = value - other
    mixed = other + factor * difference if factor < 0.5 else value - difference * (np.float32(1) - factor)
    return _in_range(mixed)


@numba.njit(error_model="numpy")
def _turn_hue(r, g, b, shift):
    six = np.float32(6)
    for p in range(len(r)):
        red, green, blue = r[p], g[p], b[p]
        value = max(red, max(green, blue))
        chroma = value - min(red, min(green, blue))
        safe = chroma if chroma > 0 else np.float32(1)
        of_red, of_green = (green - blue) / safe, (blue - red) / safe + np.float32(2)
        of_blue = (red - green) / safe + np.float32(4)
        sixth = of_red if red == value else (of_green if green == value else of_blue)
        turned = sixth + six * shift
        k = turned + np.float32(5)
        k -= six * np.floor(k / six)
        r[p] = value - chroma * _in_range(min(k, np.float32(4) - k))
        k = turned + np.float32(3)
        k -= six * np.floor(k / six)
        g[p] = value - chroma * _in_range(min(k, np.float32(4) - k))
        k = turned + np.float32(1)
        k -= six * np.floor(k / six)
        b[p] = value - chroma * _in_range(min(k, np.float32(4) - k))


@numba.njit(cache=True)
def jitter_images(
    images: Float[np.ndarray, "b 3 p"],
    orders: Int[np.ndarray, "b 4"],
    factors: Float[np.ndarray, "4 b"],
    weights: Float[np.ndarray, "3"],
) -> None:
    """`pretrain.colour.jitter` of contiguous float32 images, in place.

    Args:
        orders: of brightness (0), contrast (1), saturation (2) and hue (3) in each image.
        factors: of each of them; of the hue its shift.
        weights: of the three colours in grey.
    """
    for i in range(len(images)):
        r, g, b = images[i, 0], images[i, 1], images[i, 2]
        for place in range(4):
            step = orders[i, place]
            factor = factors[step, i]
            if step == 0:
                for c in range(3):
                    channel = images[i, c]
                    for p in range(len(channel)):
                        channel[p] = _in_range(channel[p] * factor)
            elif step == 1:
                total = 0.0
                for p in range(len(r)):
                    total += np.float64(_luma(r[p], g[p], b[p], weights))
                mean = np.float32(total / len(r))
                for c in range(3):
                    channel = images[i, c]
                    for p in range(len(channel)):
                        channel[p] = _blend(channel[p], mean, factor)
            elif step == 2:
                for p in range(len(r)):
                    grey = _luma(r[p], g[p], b[p], weights)
                    r[p] = _blend(r[p], grey, factor)
                    g[p] = _blend(g[p], grey, factor)
                    b[p] = _blend(b[p], grey, factor)
            else:
                _turn_hue(r, g, b, factor)


@numba.njit(cache=True, error_model="numpy")
def fill_resize_weights(
    start: Int[np.ndarray, "n"], length: Int[np.ndarray, "n"], a: float, weights: Float[np.ndarray, "n out in"]
) -> None:
    """`pretrain.crops.resize_weights`, written into ``weights`` (float32, zero before)."""
    n_out, n_in = weights.shape[1], weights.shape[2]
    half = np.float32(0.5)
    for i in range(len(weights)):
        scale = np.float32(length[i]) / np.float32(n_out)
        spread = max(scale, np.float32(1))
        for o in range(n_out):
            centre = np.float32(start[i]) + (np.float32(o) + half) * scale
            first = max(start[i], int(np.floor(centre - 2 * spread)) - 1, 0)
            last = min(start[i] + length[i], int(np.ceil(centre + 2 * spread)) + 1, n_in)
            total = np.float32(0)
            for p in range(first, last):
                x = abs((np.float32(p) + half - centre) / spread)
                if x <= 1:
                    value = ((a + 2) * x - (a + 3)) * x * x + 1
                elif x < 2:
                    value = ((x - 5) * x + 8) * x * a - 4 * a
                else:
                    value = np.float32(0)
                weights[i, o, p] = value
                total += weights[i, o, p]
            for p in range(first, last):
                weights[i, o, p] /= total
