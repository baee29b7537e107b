"""The stages train and evaluate of the experiment on visual domains: judge and settings are frozen, the rows change."""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from curation import Subset
from eval.pixel_model import LEVELS, NEIGHBOURS, OFFSETS, fit_pixels, quantised
from eval.rarity import PARTS, parts_by_rank
from experiments.engine.arms import MANUAL
from experiments.engine.stages import StageRun
from experiments.visual_domains.pool import DISTANCE, GREY, MANUAL_ROWS, POOL, ROWS, TEST, pictures_of
from foundation.files import load_array, load_json, save_array, save_json
from foundation.settings import Count, Range, check

BITS = "bits.npy"
THIRD = 1 / 3


@dataclass(frozen=True)
class TrainSettings:
    """Section ``science.train``: the context model of pixels, `eval.pixel_model`.

    Attributes:
        neighbours: pixels that the longest context has.
        levels: of grey.
        pictures: of a subset: the budget, for estimates.
    """

    neighbours: Annotated[int, Range(ge=0, le=len(OFFSETS))] = NEIGHBOURS
    levels: Annotated[int, Range(ge=2, le=LEVELS)] = LEVELS
    pictures: Count = 1000

    def __post_init__(self) -> None:
        check(self, "science.train")


@dataclass(frozen=True)
class EvaluateSettings:
    """Section ``science.evaluate``.

    Attributes:
        parts: of the test pictures by their distance to the pool.
    """

    parts: Count = PARTS

    def __post_init__(self) -> None:
        check(self, "science.evaluate")


def budget(train: TrainSettings, _dim: int) -> tuple[float, int, float]:
    """Pictures counted; no optimiser steps, no floating-point operations to speak of."""
    return float(train.pictures), 0, 0.0


def train(run: StageRun) -> dict[str, float]:
    """Stage action: count the pixels of the subset, and the bits that each test picture takes then.

    Writes ``bits.npy`` (per pixel, of each test picture) and not the model, which is larger than the subset.
    """
    settings, prepared = TrainSettings(**run.settings), run.upstream("prepare")
    subset = Subset.load(run.upstream("curate") / "subset")
    rows = load_array(prepared / (MANUAL_ROWS if subset.metadata["method"] == MANUAL else ROWS))[subset.rows()]
    grey = load_array(pictures_of(prepared) / GREY)
    model = fit_pixels(quantised(grey[rows], settings.levels), settings.neighbours, settings.levels)
    test = quantised(grey[load_array(prepared / TEST)], settings.levels)
    save_array(run.folder / BITS, model.bits(test) / test[0].size)
    data = {"pictures": len(rows), "distinct": len(np.unique(rows)), "levels": settings.levels}
    save_json(run.folder / "data.json", data)
    return {"samples": float(len(rows))}


def evaluate(run: StageRun) -> dict[str, float]:
    """Stage action: bits per pixel of the held-out pictures, by domain and by rarity; writes ``metrics.json``.

    Head and tail are the third of the domains with the most and the fewest pictures in the pool; common and rare the
    tenths of the test pictures nearest to the pool and farthest off under their thumbnails, domains unknown. Own and
    apart are the domain of the hand-curated set, where there is one, and the others.
    """
    settings, prepared, trained = EvaluateSettings(**run.settings), run.upstream("prepare"), run.upstream("train")
    about, data = load_json(prepared / POOL), load_json(trained / "data.json")
    bits = np.asarray(load_array(trained / BITS))
    names = list(about["rows_of"])
    domain = np.repeat(np.arange(len(names)), list(about["test_of"].values()))
    values = np.bincount(domain, weights=bits) / np.bincount(domain)
    shares = np.array(list(about["rows_of"].values()), float)
    ranked = np.argsort(-shares, kind="stable")
    third = max(round(len(names) * THIRD), 1)
    parts = parts_by_rank(load_array(prepared / DISTANCE), settings.parts)
    by_rarity = (np.bincount(parts, weights=bits) / np.bincount(parts)).tolist()
    found: dict[str, Any] = {
        "metrics": {
            "bpp_macro": float(values.mean()),
            "bpp_worst": float(values.max()),
            "bpp_tail": float(values[ranked[-third:]].mean()),
            "bpp_head": float(values[ranked[:third]].mean()),
            "bpp_raw_weighted": float(values @ shares / shares.sum()),
            "bpp_rare": by_rarity[-1],
            "bpp_common": by_rarity[0],
        },
        "data": data,
        "worst_domain": names[int(values.argmax())],
        "domains": {
            name: {"bits_per_pixel": float(value), "pictures": int(n)}
            for name, value, n in zip(names, values, np.bincount(domain), strict=True)
        },
        "by_rarity": by_rarity,
        "untrained": {"before": float(np.log2(data["levels"])), "after": float(values.mean())},
    }
    if about.get("manual"):
        own = np.array(names) == about["manual"]
        found["metrics"] |= {"bpp_own": float(values[own].mean()), "bpp_apart": float(values[~own].mean())}
    save_json(run.folder / "metrics.json", found)
    return {"samples": float(len(bits))}
