"""Masks: how much the student sees decides what iBOT learns."""

import math

import numpy as np
import pytest

from foundation.errors import CurationError
from pretrain.masking import MaskSettings, block_mask, make_mask, mask_shares, step_masks


def reference_mask(grid: int, target: int, rng: np.random.Generator) -> np.ndarray:
    """Blockwise masking as the BEiT paper's algorithm 1 says it, with the sizes of DINOv2."""
    mask = np.zeros((grid, grid), bool)
    while mask.sum() < target:
        for _ in range(10):
            room = min(target - mask.sum(), 0.5 * grid * grid)
            s, r = rng.uniform(4, max(room, 4)), math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            a, b = round(math.sqrt(s * r)), round(math.sqrt(s / r))
            if a >= grid or b >= grid or a < 1 or b < 1:
                continue
            t, left = rng.integers(grid - a + 1), rng.integers(grid - b + 1)
            trial = mask.copy()
            trial[t : t + a, left : left + b] = True
            if 0 < trial.sum() - mask.sum() <= room:
                mask = trial
                break
        else:
            return mask
    return mask


@pytest.mark.parametrize(("grid", "share"), [(14, 0.15), (14, 0.45), (7, 0.3)])
def test_statistics_of_block_masks_are_those_of_the_algorithm(grid: int, share: float):
    target, n = int(grid * grid * share), 400
    ours = np.array([block_mask((grid, grid), target, MaskSettings(), np.random.default_rng([1, i])) for i in range(n)])
    theirs = np.array([reference_mask(grid, target, np.random.default_rng([2, i])) for i in range(n)])
    for measure in (
        lambda m: m.sum((1, 2)),  # masked patches
        lambda m: (m[:, 1:] & m[:, :-1]).sum((1, 2)),  # neighbours masked together: how blocky it is
        lambda m: m[:, grid // 2, grid // 2].astype(float),  # the middle
    ):
        a, b = measure(ours), measure(theirs)
        assert abs(a.mean() - b.mean()) < 4 * np.hypot(a.std(), b.std()) / np.sqrt(n) + 1e-9


def test_half_of_the_crops_are_masked_by_shares_spread_evenly():
    shares = mask_shares(64, MaskSettings(), np.random.default_rng(0))
    masked = np.sort(shares[shares > 0])
    assert len(masked) == 32
    edges = np.linspace(0.1, 0.5, 33)
    assert ((masked >= edges[:-1]) & (masked <= edges[1:])).all()


def test_no_block_is_larger_than_half_of_the_grid_even_where_the_side_is_odd():
    # 0.5 * 112 // 16 * 112 // 16, read from left to right, would give 21 in place of 24 patches
    largest = int(MaskSettings().max_share * 7 * 7)
    assert largest == 24
    counts = [int(block_mask((7, 7), 24, MaskSettings(), np.random.default_rng(i)).sum()) for i in range(200)]
    assert max(counts) == 24


def test_a_filled_mask_has_just_its_share_and_blocks_first():
    filled = MaskSettings(fill=True)
    for i in range(100):
        share = np.random.default_rng(i).uniform(0.1, 0.5)
        mask = make_mask((14, 14), share, filled, np.random.default_rng(i))
        plain = make_mask((14, 14), share, MaskSettings(), np.random.default_rng(i))
        assert mask.sum() == int(196 * share)
        assert (mask | ~plain).all()


@pytest.mark.parametrize("kind", ["block", "random"])
def test_a_mask_never_exceeds_its_share(kind: str):
    for i in range(50):
        mask = make_mask((4, 6), 0.4, MaskSettings(kind=kind), np.random.default_rng(i))
        assert mask.shape == (4, 6)
        assert mask.sum() <= int(24 * 0.4)
    assert make_mask((1, 1), 0.5, MaskSettings(kind=kind), np.random.default_rng(0)).sum() == 0


def test_processes_draw_the_masks_of_their_own_crops():
    everything = step_masks((4, 4), np.arange(16), 16, MaskSettings(), seed=0, step=3)
    part = step_masks((4, 4), np.array([3, 11]), 16, MaskSettings(), seed=0, step=3)
    assert np.array_equal(part, everything[[3, 11]])


def test_bad_settings_name_themselves():
    with pytest.raises(CurationError, match=r"mask\.kind"):
        MaskSettings(kind="stripes")
    with pytest.raises(CurationError, match=r"mask\.low"):
        MaskSettings(low=0.6, high=0.5)
