"""The cells of the benchmark: pools of rows whose concepts are known to the measure alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from benchmarks.balance.sources import NETWORK, VISUAL, Sources, locate
from curation.trees.neighbours import principal_axes
from experiments.simulated.data import NOISE, TOYS, zipf_sizes

WIDEST = 160  # leading axes of rows that have over 512: the benchmark takes minutes then, not hours


@dataclass(frozen=True)
class Pool:
    """Rows of known concepts.

    Attributes:
        x: (n, d) float32.
        concept_of: (n,) int64 from 0, or NOISE (-1) for junk, which has none.
        duplicate: (n,) bool, the row is a near-duplicate of another.
    """

    x: Float[np.ndarray, "n d"]
    concept_of: Int[np.ndarray, "n"]
    duplicate: Bool[np.ndarray, "n"]


@dataclass(frozen=True)
class Cell:
    """One pool of the benchmark.

    Attributes:
        title: as the table names it.
        needs: sources whose files must be there.
        draw: (sources, generator, seed) -> pool.
        bursts: it has near-duplicates, so that methods with preparation are tried as well.
        weak: kept apart: a pool where the default is known to do little or harm, run by its name alone.
    """

    title: str
    needs: tuple[str, ...]
    draw: Callable[..., Pool]
    bursts: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    weak: bool = False

    def pool(self, sources: Sources, seed: int) -> Pool:
        """The pool of a seed: another seed draws other rows, and another toy.

        Rows of zeros, as the thumbnail of a black picture, are left out: they have no direction.
        """
        drawn = self.draw(sources, np.random.default_rng([seed, 81]), seed, **self.settings)
        kept = drawn.x.any(axis=1)
        return Pool(drawn.x[kept], drawn.concept_of[kept], drawn.duplicate[kept])

    def missing(self) -> list[Path]:
        """Files that are not there."""
        return [path for path in map(locate, self.needs) if not path.exists()]

    def file_sizes(self) -> dict[str, int]:
        """Bytes of each file: results of other data are not reused."""
        return {name: locate(name).stat().st_size for name in self.needs}


def _plain(x: np.ndarray, concept_of: np.ndarray) -> Pool:
    x = principal_axes(x, WIDEST if x.shape[1] > 512 else x.shape[1])
    return Pool(x, np.unique(concept_of, return_inverse=True)[1], np.zeros(len(x), bool))


def zipf_rows(
    concept_of: Int[np.ndarray, "n"],
    n_rows: int,
    exponent: float,
    rng: np.random.Generator,
    head: int | None = None,
    least: int = 2,
) -> Int[np.ndarray, "m"]:
    """Rows, in random order, whose concepts have sizes in proportion to 1 / rank^exponent.

    Ranks are drawn, but for the head; a size goes to the next concept that has so many rows, or else to the one that
    has most, as far as they go: a pool may be smaller than asked.
    """
    available = np.bincount(concept_of)
    shares = np.arange(1, len(available) + 1) ** -float(exponent)
    sizes = np.maximum(least, np.rint(n_rows * shares / shares.sum()).astype(np.int64))
    left = [int(concept) for concept in rng.permutation(len(available))]
    if head is not None:
        left = [head, *(concept for concept in left if concept != head)]
    taken = []
    for size in sizes:
        concept = next((c for c in left if available[c] >= size), max(left, key=lambda c: available[c]))
        left.remove(concept)
        members = np.flatnonzero(concept_of == concept)
        taken.append(rng.choice(members, min(size, len(members)), replace=False))
    return rng.permutation(np.concatenate(taken))


def classes(
    sources: Sources, rng: np.random.Generator, seed: int, domain: str, rows: int, exponent: float | None
) -> Pool:
    """Classes within one domain of pictures; exponent None: as frequent as they are."""
    x, concept = sources.pictures(domain)
    chosen = rng.permutation(len(x))[:rows] if exponent is None else zipf_rows(concept, rows, exponent, rng)
    return _plain(x[chosen], concept[chosen])


def domains(
    sources: Sources,
    rng: np.random.Generator,
    seed: int,
    *,
    rows: int,
    exponent: float,
    head: str | None = None,
    of: Sequence[str] = VISUAL,
    embedder: str = NETWORK,
    burst_of: str | None = None,
) -> Pool:
    """Domains of pictures as concepts; without a head each seed puts another first.

    Args:
        burst_of: of the drawn pictures of this domain, those that have near-duplicates get all of them, and pictures
            of nothing are added.
    """
    parts = [sources.pictures(domain, embedder)[0] for domain in of]
    concept = np.repeat(np.arange(len(of)), [len(part) for part in parts])
    first = seed % len(of) if head is None else of.index(head)
    chosen = zipf_rows(concept, rows, exponent, rng, first)
    x, concept_of = np.concatenate(parts)[chosen], concept[chosen]
    if burst_of is None:
        return _plain(x, concept_of)
    copies, original = sources.bursts(burst_of)
    place = of.index(burst_of)
    copies = copies[np.isin(original + sum(len(part) for part in parts[:place]), chosen)]
    nothing = sources.junk()
    order = rng.permutation(len(x) + len(copies) + len(nothing))
    concept_of = np.concatenate([concept_of, np.full(len(copies), place), np.full(len(nothing), NOISE)])
    duplicate = (np.arange(len(order)) >= len(x)) & (concept_of != NOISE)
    return Pool(
        principal_axes(np.concatenate([x, copies, nothing])[order], WIDEST), concept_of[order], duplicate[order]
    )


def shares(sources: Sources, rng: np.random.Generator, seed: int, rows: int, of: dict[str, float]) -> Pool:
    """Domains of pictures in given shares."""
    parts = []
    for domain, share in of.items():
        x = sources.pictures(domain)[0]
        parts.append(x[rng.choice(len(x), round(share * rows), replace=False)])
    order = rng.permutation(sum(len(part) for part in parts))
    concept = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return _plain(np.concatenate(parts)[order], concept[order])


def passages(
    sources: Sources, rng: np.random.Generator, seed: int, form: str, rows: int, exponent: float, few: int = 0
) -> Pool:
    """Domains of text; few: so many of those with over 300 passages, drawn anew for every seed."""
    x, concept = sources.passages(form)
    if few:
        large = np.flatnonzero(np.bincount(concept) > 300)
        mine = np.isin(concept, rng.choice(large, few, replace=False))
        x, concept = x[mine], np.unique(concept[mine], return_inverse=True)[1]
    chosen = zipf_rows(concept, rows, exponent, rng)
    return _plain(x[chosen], concept[chosen])


def toy(sources: Sources, rng: np.random.Generator, seed: int, kind: str, rows: int) -> Pool:
    """A toy of `experiments.simulated.data`, or so many of its rows."""
    sized: dict[str, Any] = {} if kind == "rings" else {"n_rows": rows}
    found = TOYS[kind](seed, **sized)
    mine = np.sort(rng.permutation(len(found.x))[:rows])
    return Pool(found.x[mine], found.concept_of[mine], found.duplicate[mine])


def gaussians(sources: Sources, rng: np.random.Generator, seed: int, rows: int, concepts: int, dim: int) -> Pool:
    """Gaussians of one width, 0.7 of the distance of their centres' coordinates, with sizes 1 / rank."""
    concept = np.repeat(np.arange(concepts), zipf_sizes(rows, concepts))
    centres = rng.normal(size=(concepts, dim))
    return _plain(centres[concept] + 0.7 * rng.normal(size=(rows, dim)), concept)


def between(concept_of: Int[np.ndarray, "n"], least: int, most: int, rng: np.random.Generator) -> Int[np.ndarray, "m"]:
    """Rows, in random order, of which every concept has a number drawn from ``least`` to ``most``, or all its rows."""
    members = [rng.permutation(np.flatnonzero(concept_of == concept)) for concept in range(int(concept_of.max()) + 1)]
    return rng.permutation(np.concatenate([rows[: rng.integers(least, most + 1)] for rows in members]))


def few_rows(
    sources: Sources, rng: np.random.Generator, seed: int, domain: str, least: int, most: int, concepts: int = 0
) -> Pool:
    """Classes of one domain with so many rows each; concepts: so many of those that have them; 0: all."""
    x, concept = sources.pictures(domain)
    if concepts:
        mine = np.isin(concept, rng.choice(np.flatnonzero(np.bincount(concept) >= most), concepts, replace=False))
        x, concept = x[mine], np.unique(concept[mine], return_inverse=True)[1]
    chosen = between(concept, least, most, rng)
    return _plain(x[chosen], concept[chosen])


def all_classes(sources: Sources, rng: np.random.Generator, seed: int, rows: int) -> Pool:
    """Every class of every visual domain is a concept, as frequent as it is; at most 1,500 rows of a domain."""
    parts, concepts, first = [], [], 0
    for domain in VISUAL:
        x, concept = sources.pictures(domain)
        chosen = rng.permutation(len(x))[:1500]
        parts.append(x[chosen])
        concepts.append(concept[chosen] + first)
        first += int(concept.max()) + 1
    chosen = rng.permutation(sum(map(len, parts)))[:rows]
    return _plain(np.concatenate(parts)[chosen], np.concatenate(concepts)[chosen])


def even_gaussians(
    sources: Sources, rng: np.random.Generator, seed: int, rows: int, concepts: int, dim: int, noise: float, copies: int
) -> Pool:
    """Gaussians of equal size, as wide as ``noise`` distances of their centres' coordinates; each row so many times."""
    concept = rng.permutation(np.repeat(np.arange(concepts), rows // concepts // copies))
    x = rng.normal(size=(concepts, dim))[concept] + noise * rng.normal(size=(len(concept), dim))
    x, concept = np.repeat(x, copies, axis=0), np.repeat(concept, copies)
    return _plain((x + 1e-4 * rng.normal(size=x.shape)).astype(np.float32), concept)


def plane(sources: Sources, rng: np.random.Generator, seed: int, rows: int, concepts: int) -> Pool:
    """An even square, cut into the places nearest to each of so many points: concepts without a seam."""
    from scipy.spatial import cKDTree

    x = rng.random((rows, 2))
    return _plain(x.astype(np.float32), cKDTree(rng.random((concepts, 2))).query(x)[1])


def _weak(title: str, draw: Callable[..., Pool], needs: tuple[str, ...] = (), **settings: Any) -> Cell:
    return Cell(title, needs, draw, settings=settings, weak=True)


def _visual(title: str, bursts: bool = False, **settings: Any) -> Cell:
    return Cell(title, tuple(settings.get("of", VISUAL)), domains, bursts, settings)


def _classes(title: str, domain: str, rows: int, exponent: float | None, needs: tuple[str, ...] = ()) -> Cell:
    settings = {"domain": domain, "rows": rows, "exponent": exponent}
    return Cell(title, (domain, *needs), classes, settings=settings)


def _text(title: str, form: str, rows: int = 4000, exponent: float = 1.2, few: int = 0) -> Cell:
    settings = {"form": form, "rows": rows, "exponent": exponent, "few": few}
    return Cell(title, ("passages",), passages, settings=settings)


def _toy(title: str, kind: str, rows: int, bursts: bool = False) -> Cell:
    return Cell(title, (), toy, bursts, {"kind": kind, "rows": rows})


THREE = ("photos", "characters", "speech")
_head = partial(_visual, exponent=1.5)
CELLS = {
    "domains_photos": _visual("6 visual domains, photographs first", rows=7000, exponent=2.0, head="photos"),
    "domains_cifar": _visual("6 visual domains, CIFAR-10 first", rows=7000, exponent=1.2, head="cifar"),
    "domains_speech": _head("6 visual domains, speech first", rows=3300, head="speech"),
    "domains_characters": _head("6 visual domains, characters first", rows=5000, head="characters"),
    "domains_turns": _visual("6 visual domains, each first in turn", rows=4000, exponent=1.2),
    "domains_bursts_photos": _visual(
        "photographs first, with bursts and junk", True, rows=6000, exponent=2.0, head="photos", burst_of="photos"
    ),
    "domains_bursts_characters": _head(
        "characters first, with bursts and junk", True, rows=5000, head="characters", burst_of="characters"
    ),
    "domains_thumbnails": _visual("6 visual domains, thumbnails", rows=4000, exponent=1.2, embedder="thumbnails"),
    "domains_three": _head("3 visual domains", rows=3500, of=THREE),
    "compact_head": Cell(
        "89 % characters, speech, clip art",
        ("characters", "speech", "clipart"),
        shares,
        settings={"rows": 4000, "of": {"characters": 0.89, "speech": 0.055, "clipart": 0.055}},
    ),
    "cifar_even": _classes("CIFAR-10, even", "cifar", 8000, None),
    "cifar_tail": _classes("CIFAR-10, Zipf 1.5", "cifar", 2300, 1.5),
    "photos_tail": _classes("20 classes of photographs, Zipf 1", "photos", 1500, 1.0),
    "speech_tail": _classes("spoken digits, Zipf 1", "speech", 900, 1.0),
    "clipart": _classes("clip art, 159 folders", "clipart", 6000, None),
    "land": _classes("land cover, as it is", "land", 3000, None, ("heights",)),
    "land_tail": _classes("land cover, Zipf 1", "land", 1500, 1.0, ("heights",)),
    "text_bytes": _text("27 text domains, bytes", "bytes"),
    "text_characters": _text("27 text domains, characters", "characters"),
    "text_words": _text("27 text domains, words", "words"),
    "text_sentences": _text("27 text domains, sentences", "sentences"),
    "text_few_characters": _text("8 text domains, characters", "characters", 2500, 1.0, 8),
    "text_few_sentences": _text("8 text domains, sentences", "sentences", 2500, 1.0, 8),
    "rings": _toy("toy: rings", "rings", 8000),
    "manifold": _toy("toy: manifold", "manifold", 6000),
    "clutter": _toy("toy: clutter, with bursts and junk", "clutter", 6000, True),
    "gaussians": Cell("toy: 100 Gaussians", (), gaussians, settings={"rows": 8000, "concepts": 100, "dim": 64}),
    "few_characters": _weak(
        "242 characters of 4 to 20 rows", few_rows, ("characters",), domain="characters", least=4, most=20
    ),
    "all_classes": _weak("all classes of 6 visual domains", all_classes, (*VISUAL, "heights"), rows=5000),
    "few_clipart": _weak(
        "10 folders of clip art, 60 rows each", few_rows, ("clipart",), domain="clipart", least=60, most=60, concepts=10
    ),
    "overlap_2": _weak(
        "even Gaussians that overlap, 2-D", even_gaussians, rows=3000, concepts=10, dim=2, noise=0.35, copies=1
    ),
    "overlap_3": _weak(
        "even Gaussians that overlap, 3-D", even_gaussians, rows=3000, concepts=12, dim=3, noise=0.6, copies=1
    ),
    "twice": _weak(
        "even Gaussians, each row twice", even_gaussians, rows=3000, concepts=20, dim=32, noise=0.6, copies=2
    ),
    "plane": _weak("16 parts of an even square", plane, rows=3000, concepts=16),
}
USUAL = [name for name, cell in CELLS.items() if not cell.weak]
