"""A context model of pixels as a judge of pictures: fitted in seconds on a thousand of them, exact, nothing to tune.

Pictures are small, grey and of few levels; a pixel is predicted from the pixels around it that come before it, row by
row, as in lossless compression (Weinberger, Rissanen and Arps 1996, "Applications of universal context modeling to
lossless compression of gray-scale images"). Counts of contexts that grow by one neighbour, the nearest first, are mixed
as the n-gram judge of text does (`eval.ngram`, interpolated Witten-Bell): after a context h that was followed by c(h)
pixels of T(h) levels,

    p(w | h) = (c(hw) + T(h) p(w | h without its farthest neighbour)) / (c(h) + T(h))

down to no neighbour at all, which backs off to every level alike.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt64
from PIL import Image

from foundation.errors import CurationError

SIDE, LEVELS, NEIGHBOURS = 32, 16, 4
# (rows, columns) from a pixel to those before it, the nearest first: W, N, NW, NE, WW, NN, ...
OFFSETS = (
    (0, -1),
    (-1, 0),
    (-1, -1),
    (-1, 1),
    (0, -2),
    (-2, 0),
    (-1, -2),
    (-2, -1),
    (-2, 1),
    (-1, 2),
    (-2, -2),
    (-2, 2),
)
REACH = 2  # rows and columns that they go back
BITS, PIXEL_BITS = np.uint64(5), np.uint64(4)  # of a neighbour, which may lie outside; of a pixel: 64 in all


@dataclass(frozen=True)
class Contexts:
    """Contexts of as many neighbours, and what followed them, each as one number, ascending.

    Attributes:
        keys: (k,) contexts that were seen.
        totals: (k,) how often: c(h).
        kinds: (k,) levels that followed: T(h).
        grams: (g,) contexts with the pixel that followed.
        counts: (g,) how often: c(hw).
    """

    keys: UInt64[np.ndarray, "k"]
    totals: Int[np.ndarray, "k"]
    kinds: Int[np.ndarray, "k"]
    grams: UInt64[np.ndarray, "g"]
    counts: Int[np.ndarray, "g"]


@dataclass(frozen=True)
class PixelModel:
    """Counts by number of neighbours, none first. Make one with `fit_pixels`.

    Attributes:
        contexts: for each number of neighbours.
        levels: of a pixel.
        n_pixels: that it was fitted on.
    """

    contexts: tuple[Contexts, ...]
    levels: int
    n_pixels: int

    def bits(self, pictures: UInt8[np.ndarray, "n h w"]) -> Float[np.ndarray, "n"]:
        """Bits that each picture takes, float64: minus log2 of its probability, pixel by pixel."""
        pictures = _checked(pictures, self.levels)
        return -np.log2(self._probabilities(pictures)).reshape(len(pictures), -1).sum(axis=1)

    def distribution(self, picture: UInt8[np.ndarray, "h w"], row: int, column: int) -> Float[np.ndarray, "levels"]:
        """Probability of each level of one pixel, given those before it."""
        filled = np.repeat(picture[None], self.levels, axis=0)
        filled[:, row, column] = np.arange(self.levels)
        return self._probabilities(_checked(filled, self.levels)).reshape(filled.shape)[:, row, column]

    def _probabilities(self, pictures: UInt8[np.ndarray, "n h w"]) -> Float[np.ndarray, "t"]:
        pixels = pictures.ravel().astype(np.uint64)
        p = np.full(len(pixels), 1 / self.levels)
        left = np.arange(len(pixels))  # pixels whose context was seen: no longer one of the others can have been
        for known, context in zip(self.contexts, _contexts(pictures, len(self.contexts) - 1), strict=True):
            keys = context[left]
            place = np.minimum(np.searchsorted(known.keys, keys), len(known.keys) - 1)
            seen = known.keys[place] == keys
            left, keys, place = left[seen], keys[seen], place[seen]
            grams = keys << PIXEL_BITS | pixels[left]
            where = np.minimum(np.searchsorted(known.grams, grams), len(known.grams) - 1)
            count = np.where(known.grams[where] == grams, known.counts[where], 0)
            kinds = known.kinds[place]
            p[left] = (count + kinds * p[left]) / (known.totals[place] + kinds)
        return p


def fit_pixels(pictures: UInt8[np.ndarray, "n h w"], neighbours: int = NEIGHBOURS, levels: int = LEVELS) -> PixelModel:
    """Count what follows contexts of up to ``neighbours`` pixels, within each picture.

    A picture that is given twice counts twice.

    Args:
        pictures: values below ``levels``, see `quantised`.

    Raises:
        CurationError: no picture, values that are no level, or more neighbours or levels than there is room for.
    """
    if not 0 <= neighbours <= len(OFFSETS):
        raise CurationError(f"neighbours {neighbours} of the pixel model must lie in 0..{len(OFFSETS)}")
    if not 2 <= levels <= LEVELS:
        raise CurationError(f"levels {levels} of the pixel model must lie in 2..{LEVELS}")
    pictures = _checked(pictures, levels)
    if not pictures.size:
        raise CurationError("there is no picture to fit a pixel model on")
    pixels = pictures.ravel().astype(np.uint64)
    found = []
    for context in _contexts(pictures, neighbours):
        grams, counts = np.unique(context << PIXEL_BITS | pixels, return_counts=True)
        keys = grams >> PIXEL_BITS
        starts = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
        totals, kinds = np.add.reduceat(counts, starts), np.diff(starts, append=len(keys))
        found.append(Contexts(keys[starts], totals, kinds, grams, counts))
    return PixelModel(tuple(found), levels, len(pixels))


def grey_pictures(pictures: Iterable[Image.Image], side: int = SIDE) -> UInt8[np.ndarray, "n side side"]:
    """Pictures in grey (ITU-R 601 luma), 0 to 255, stretched to ``side`` x ``side`` pixels."""
    small = [np.asarray(p.convert("L").resize((side, side), Image.Resampling.BICUBIC)) for p in pictures]
    return np.stack(small) if small else np.zeros((0, side, side), np.uint8)


def quantised(grey: UInt8[np.ndarray, "n h w"], levels: int = LEVELS) -> UInt8[np.ndarray, "n h w"]:
    """Grey values of 0 to 255 in ``levels`` steps of the same width."""
    return (np.asarray(grey).astype(np.uint16) * levels // 256).astype(np.uint8)


def _checked(pictures: UInt8[np.ndarray, "n h w"], levels: int) -> UInt8[np.ndarray, "n h w"]:
    pictures = np.asarray(pictures)
    if pictures.ndim != 3 or pictures.dtype != np.uint8 or (pictures.size and pictures.max() >= levels):
        raise CurationError(
            f"pictures for the pixel model must be (n, h, w) uint8 below {levels}, not {pictures.dtype} of "
            f"{pictures.shape}{f' up to {pictures.max()}' if pictures.size else ''}; see eval.pixel_model.quantised"
        )
    return pictures


def _contexts(pictures: UInt8[np.ndarray, "n h w"], neighbours: int) -> Iterator[UInt64[np.ndarray, "t"]]:
    """Contexts of every pixel, of no neighbour, of one, ...; what lies outside the picture is a level of its own."""
    n, height, width = pictures.shape
    around = np.pad(pictures, ((0, 0), (REACH, 0), (REACH, REACH)), constant_values=LEVELS)
    context = np.zeros(n * height * width, np.uint64)
    yield context
    for down, right in OFFSETS[:neighbours]:
        top, left = REACH + down, REACH + right
        value = around[:, top : top + height, left : left + width].ravel()
        context = context << BITS | value.astype(np.uint64)
        yield context
