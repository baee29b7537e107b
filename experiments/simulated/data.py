"""Data whose density or concepts are known: the paper's 2-D mixture, rings, a 1-D density, and two harder toys.

All parameters of the toys were set before any result was seen.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from foundation.errors import CurationError

NOISE = -1  # concept of rows that belong to none

RING_SIZES = (20_000, 200, 1000, 500, 8000)
RING_RADIUS, RING_NOISE, RING_CIRCLE = 1.0, 0.1, 2.5

THEORY_RANGE = 3.0
THEORY_PARTS = ((0.55, -1.2, 0.3), (0.25, 1.2, 0.5))  # weight, mean, standard deviation; the rest is uniform


@dataclass(frozen=True)
class Toy:
    """Rows of known concepts.

    Attributes:
        x: (n, d) float32.
        concept_of: (n,) int64, 0 .. n_concepts - 1, or NOISE.
        n_concepts: how many concepts there are.
        duplicate: (n,) bool, the row is a near-duplicate of another one.
        held_out: (n_concepts * m, d) float32 new rows, m of each concept, concept after concept.
    """

    x: Float[np.ndarray, "n d"]
    concept_of: Int[np.ndarray, "n"]
    n_concepts: int
    duplicate: np.ndarray
    held_out: Float[np.ndarray, "h d"] = field(default_factory=lambda: np.empty((0, 0), np.float32))


def mixture(seed: int) -> Float[np.ndarray, "9000 2"]:
    """The paper's mixture: three Gaussians of standard deviation 0.5 and a uniform background on [-3, 3]^2."""
    rng = np.random.default_rng([seed, 1])
    gaussians = [rng.normal(centre, 0.5, (n, 2)) for centre, n in (((-1, -1), 7000), ((1, -1), 1000), ((0, 1), 500))]
    return np.concatenate([*gaussians, rng.uniform(-3, 3, (500, 2))]).astype(np.float32)


def zipf_sizes(n_rows: int, n_concepts: int) -> Int[np.ndarray, "n_concepts"]:
    """(n_concepts,) int64 sizes in proportion to 1 / rank that sum to ``n_rows``; the largest takes the rounding."""
    shares = 1 / np.arange(1, n_concepts + 1)
    sizes = np.floor(n_rows * shares / shares.sum()).astype(np.int64)
    sizes[0] += n_rows - sizes.sum()
    if sizes.min() < 1:
        raise CurationError(f"{n_rows} rows are too few for {n_concepts} concepts of Zipf sizes; take more rows")
    return sizes


def rings(seed: int) -> Toy:
    """Five equal rings of very different numbers of points, their centres on a regular pentagon.

    The rings are equally large (radius 1, radial standard deviation 0.1), so that uniform over the support and
    uniform over the rings are one and the same; they do not touch.
    """
    rng = np.random.default_rng([seed, 2])
    concept_of = np.repeat(np.arange(5), RING_SIZES)
    turn = np.pi / 2 + 2 * np.pi * concept_of / 5
    angle = rng.uniform(0, 2 * np.pi, len(concept_of))
    radius = rng.normal(RING_RADIUS, RING_NOISE, len(concept_of))
    x = np.stack(
        [RING_CIRCLE * np.cos(turn) + radius * np.cos(angle), RING_CIRCLE * np.sin(turn) + radius * np.sin(angle)],
        axis=1,
    )
    return Toy(x.astype(np.float32), concept_of, 5, np.zeros(len(x), bool))


def manifold(seed: int, n_rows: int = 12_000, n_concepts: int = 200, held_out: int = 0) -> Toy:
    """Concepts of Zipf sizes on a curved 16-dimensional manifold in 256 dimensions.

    Latent rows are N(centre, 0.3^2 I) around centres from N(0, I) in 16-d; a random network
    256 <- tanh <- 64 <- tanh <- 16 bends them smoothly, and noise of standard deviation 0.01 leaves the manifold.
    ``held_out`` rows of every concept are drawn after the pool, which does not depend on them.
    """
    rng = np.random.default_rng([seed, 3])
    concept_of = np.repeat(np.arange(n_concepts), zipf_sizes(n_rows, n_concepts))
    centres = rng.normal(size=(n_concepts, 16))
    latent = centres[concept_of] + rng.normal(0, 0.3, (n_rows, 16))
    bends = [rng.normal(0, 16**-0.5, (16, 64)), rng.normal(0, 0.5, 64)]
    bends += [rng.normal(0, 64**-0.5, (64, 256)), rng.normal(0, 0.5, 256)]

    def place(points: np.ndarray) -> np.ndarray:
        inner = np.tanh(points @ bends[0] + bends[1])
        outer = np.tanh(inner @ bends[2] * 2 + bends[3])
        return (outer + rng.normal(0, 0.01, outer.shape)).astype(np.float32)

    x = place(latent)
    new = np.repeat(centres, held_out, axis=0)
    new = place(new + rng.normal(0, 0.3, new.shape))
    return Toy(x, concept_of, n_concepts, np.zeros(n_rows, bool), new)


def clutter(seed: int, n_rows: int = 10_000, n_concepts: int = 100, held_out: int = 0) -> Toy:
    """What web pools are full of: concepts of very different spread, near-duplicates, background noise; 64-d.

    75 % of the rows are concepts of Zipf sizes: N(centre, spread^2 I) with centres from N(0, I) and a spread
    log-uniform in [0.03, 0.6], independent of the size. 20 % are copies of 10 of these rows, with jitter of standard
    deviation 0.001; they belong to the concept of their original. 5 % are background from N(0, 1.5^2 I), no concept.
    ``held_out`` rows of every concept are drawn after the pool, which does not depend on them.
    """
    rng = np.random.default_rng([seed, 4])
    n_noise, n_copies = n_rows // 20, n_rows // 5
    sizes = zipf_sizes(n_rows - n_noise - n_copies, n_concepts)
    concept_of = np.repeat(np.arange(n_concepts), sizes)
    spread = np.exp(rng.uniform(np.log(0.03), np.log(0.6), n_concepts))
    centres = rng.normal(size=(n_concepts, 64))
    clean = centres[concept_of]
    clean += rng.normal(size=clean.shape) * spread[concept_of, None]
    originals = rng.choice(len(clean), 10, replace=False)[np.arange(n_copies) % 10]
    copies = clean[originals] + rng.normal(0, 0.001, (n_copies, 64))
    x = np.concatenate([clean, copies, rng.normal(0, 1.5, (n_noise, 64))]).astype(np.float32)
    concept_of = np.concatenate([concept_of, concept_of[originals], np.full(n_noise, NOISE)])
    duplicate = np.arange(n_rows) >= len(clean)
    new = np.repeat(centres, held_out, axis=0)
    new = new + rng.normal(size=new.shape) * np.repeat(spread, held_out)[:, None]
    return Toy(x, concept_of, n_concepts, duplicate & (concept_of != NOISE), new.astype(np.float32))


TOYS: dict[str, Callable[..., Toy]] = {"rings": rings, "manifold": manifold, "clutter": clutter}


def theory_density(x: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Density of `theory_points`, but for the cut of the Gaussians at the ends, which moves less than 0.02 % of it."""
    uniform = 1 - sum(weight for weight, _mean, _std in THEORY_PARTS)
    density = np.where(np.abs(x) <= THEORY_RANGE, uniform / (2 * THEORY_RANGE), 0.0)
    for weight, mean, std in THEORY_PARTS:
        density = density + weight * np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    return density


def theory_points(seed: int, n: int) -> Float[np.ndarray, "n"]:
    """(n,) float64, ascending: two Gaussians on a uniform floor over [-3, 3].

    The floor keeps several points in every cell, so that the limit of many points a cell, for which the theory
    holds, is not far even where the density is lowest.
    """
    rng = np.random.default_rng([seed, 5])
    weights = [weight for weight, _mean, _std in THEORY_PARTS]
    part = rng.choice(len(weights) + 1, n, p=[*weights, 1 - sum(weights)])
    x = rng.uniform(-THEORY_RANGE, THEORY_RANGE, n)
    for number, (_weight, mean, std) in enumerate(THEORY_PARTS):
        mine = part == number
        drawn = rng.normal(mean, std, mine.sum())
        while (outside := np.abs(drawn) > THEORY_RANGE).any():
            drawn[outside] = rng.normal(mean, std, outside.sum())
        x[mine] = drawn
    return np.sort(x)
