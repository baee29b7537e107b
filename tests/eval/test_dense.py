"""Segmentation and depth: heads that learn what is there, and measures that agree with their definitions."""

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from eval.dense import DenseSettings
from eval.depth import depth_metrics, linear_depth, scale_invariant_loss
from eval.segmentation import confusion, linear_segmentation, segmentation_result
from foundation.errors import CurationError

QUICK = DenseSettings(steps=150, batch_size=4, learning_rate=0.02)


def scenes(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Patch features (n, 4, 4, 6) that say the class of their 8 x 8 pixels, and masks (n, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(3, (n, 4, 4), generator=generator)
    x = torch.eye(6)[blocks] + 0.2 * torch.randn(n, 4, 4, 6, generator=generator)
    return x, blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)


def test_segmentation_learns_and_ignores_the_unlabelled():
    x, masks = scenes(24, 0)
    masks[:, :4] = 255
    x_test, masks_test = scenes(12, 1)
    found = linear_segmentation((x, masks), (x_test, masks_test), 3, QUICK)
    assert found.miou.value > 0.6  # bilinear borders cost the rest
    assert found.miou.low <= found.miou.value <= found.miou.high
    assert found.confusion.sum() == masks_test.numel()
    streamed = linear_segmentation((lambda rows: (x[rows], masks[rows]), 24), (x_test, masks_test), 3, QUICK)
    assert streamed.miou == found.miou


def test_miou_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    truth, guess = (torch.from_numpy(rng.integers(4, size=(5, 9, 9))) for _ in range(2))
    truth[0, :3] = 255
    found = segmentation_result(confusion(guess, truth, 6).numpy())
    valid = truth != 255
    expected = jaccard_score(truth[valid].numpy(), guess[valid].numpy(), average=None)
    np.testing.assert_allclose(found.per_class[:4], expected)
    assert np.isnan(found.per_class[4:]).all()  # classes of no mask count neither for nor against
    assert found.miou.value == pytest.approx(expected.mean())
    assert found.pixel_accuracy.value == pytest.approx(float((truth == guess)[valid].double().mean()))


def test_depth_learns_and_leaves_holes_out():
    generator = torch.Generator().manual_seed(2)
    depth = 1 + 8 * torch.rand(32, 4, 4, generator=generator)
    x = torch.stack([depth / 10, 1 - depth / 10, torch.ones_like(depth)], 3)
    target = depth.repeat_interleave(4, 1).repeat_interleave(4, 2)
    target[:, 0] = 0
    target[:, 1] = torch.nan
    found = linear_depth((x[:24], target[:24]), (x[24:], target[24:]), 0.5, 10.0, QUICK, n_bins=32)
    guess_the_mean = float((target[24:, 2:] - target[:24, 2:].mean()).square().mean().sqrt())
    assert found["rmse"].value < 0.6 * guess_the_mean
    assert set(found) == {"rmse", "abs_rel", "log10", "a1"}


def test_depth_measures_by_hand():
    found = depth_metrics(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0]))
    assert found == pytest.approx({"rmse": np.sqrt(2), "abs_rel": 0.5, "log10": np.log10(2) / 2, "a1": 0.5})
    truth = torch.tensor([1.0, 2.0, 5.0])
    assert scale_invariant_loss(2 * truth, truth) == pytest.approx(np.sqrt(0.15) * np.log(2))
    g = np.log([1.5, 2.0, 0.5])
    expected = np.sqrt(g.var() + 0.15 * g.mean() ** 2)
    assert scale_invariant_loss(truth * torch.tensor([1.5, 2.0, 0.5]), truth) == pytest.approx(expected)


def test_dense_mistakes_are_named():
    x, masks = scenes(4, 0)
    for message, call in {
        "value 2": lambda: linear_segmentation((x, masks), (x, masks), 2, QUICK),
        r"must be \(n, h, w, d\)": lambda: linear_segmentation((x[0], masks), (x, masks), 3, QUICK),
        "no training pixel": lambda: linear_segmentation((x, masks * 0 + 255), (x, masks), 3, QUICK),
        "units": lambda: linear_depth((x, masks + 1.0), (x, masks + 100.0), settings=QUICK),
        "nearest": lambda: linear_depth((x, masks), (x, masks), 5.0, 1.0),
        "steps is 0; it must be at least 1": lambda: DenseSettings(steps=0),
    }.items():
        with pytest.raises(CurationError, match=message):
            call()
