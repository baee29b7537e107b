"""Intervals and verdicts: one that is too narrow calls a difference that is not there."""

import numpy as np
import pytest
from scipy import stats

from foundation.errors import CurationError
from foundation.intervals import (
    N_BOOTSTRAP,
    NO_DIFFERENCE,
    TOO_FEW,
    bootstrap,
    judge_difference,
    mean_interval,
    paired_interval,
    weighted_mean,
)


def test_interval_has_the_width_of_theory_and_covers():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        found = mean_interval(rng.random(400) < 0.7, seed=trial, n_resamples=400)
        covered += found.low <= 0.7 <= found.high
        assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(0.7 * 0.3 / 400), rel=0.25)
    assert 51 <= covered <= 60


def test_pairing_narrows_the_interval_of_a_difference():
    rng = np.random.default_rng(1)
    base = rng.random(500)
    better = base + 0.02 + 0.01 * rng.normal(size=500)
    paired = paired_interval(better, base)
    assert 0 < paired.low < paired.value < paired.high
    assert paired.value == pytest.approx((better - base).mean())
    alone = mean_interval(better)
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)


def test_rows_of_one_group_are_drawn_together():
    values = np.repeat(np.random.default_rng(2).random(20), 50)
    clustered, naive = mean_interval(values, groups=np.repeat(np.arange(20), 50)), mean_interval(values)
    assert clustered.n == 20
    assert clustered.high - clustered.low > 4 * (naive.high - naive.low)
    assert np.isnan(mean_interval([1.0, 0.0], groups=[3, 3]).low)


def test_blocks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(3).random(100)
    whole = mean_interval(values)
    monkeypatch.setattr("foundation.intervals.COUNTS_PER_BLOCK", 700)
    assert mean_interval(values) == whole


def test_bootstrap_mistakes_are_named():
    for message, call in {
        "no test row": lambda: bootstrap(weighted_mean([]), 0),
        "level": lambda: mean_interval([1.0, 2.0], level=1.0),
        "not finite": lambda: mean_interval([1.0, np.nan]),
        "one per test row": lambda: mean_interval(np.ones((2, 2))),
        "one per row": lambda: mean_interval([1.0, 2.0], groups=[1]),
        "same test rows": lambda: paired_interval([1.0], [1.0, 2.0]),
    }.items():
        with pytest.raises(CurationError, match=message):
            call()


def test_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(0).normal(1, 2, 40)
    found = mean_interval(values, n_resamples=N_BOOTSTRAP)
    reference = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=0.05)


def test_false_calls_stay_near_five_percent_with_five_seeds():
    rng = np.random.default_rng(0)
    calls = [judge_difference(rng.normal(0, 1, 5), "higher")[3] for _ in range(400)]
    wrong = np.mean([call != NO_DIFFERENCE for call in calls])
    assert wrong < 0.08, f"{wrong:.1%} of comparisons without an effect were called"
    alone = [mean_interval(rng.normal(0, 1, 5), n_resamples=500) for _ in range(400)]
    assert (
        np.mean([found.low > 0 or found.high < 0 for found in alone]) > 0.08
    )  # why the bootstrap does not decide alone


def test_a_plain_effect_is_called_in_the_right_direction():
    differences = np.array([1.0, 1.1, 0.9, 1.05, 0.95])
    assert judge_difference(differences, "higher")[3] == "better"
    assert judge_difference(differences, "lower")[3] == "worse"
    assert judge_difference(-differences, "lower")[3] == "better"
    assert judge_difference(differences[:2], "higher")[3] == TOO_FEW
    assert judge_difference(np.array([]), "higher")[3] == TOO_FEW
    assert judge_difference(np.zeros(5), "higher")[3] == NO_DIFFERENCE
