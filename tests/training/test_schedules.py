"""Schedules: a warm-up that starts or ends a step off changes every run and no test of a loss would show it."""

import importlib.util
import itertools
from pathlib import Path

import pytest

from foundation.errors import CurationError
from training.schedules import RATES, ScheduleSettings, rate_factor, schedule

spec = importlib.util.spec_from_file_location("reference", Path(__file__).parents[1] / "pretrain/reference.py")
assert spec is not None
assert spec.loader is not None
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 10), (3, 10), (9, 10), (0, 1)])
def test_cosine_with_warmup_is_the_formula(warmup: int, steps: int):
    value = schedule(ScheduleSettings(0.0, 2.0, 0.5, warmup), steps)
    found = [value(step) for step in range(steps)]
    assert found == pytest.approx(reference.cosine_schedule(0.0, 2.0, 0.5, warmup, steps))
    assert value(steps + 100) == pytest.approx(found[-1])


def test_linear_and_constant():
    linear = schedule(ScheduleSettings(0.0, 1.0, 0.0, 0, "linear"), 5)
    assert [linear(step) for step in range(5)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    constant = schedule(ScheduleSettings(0.04, 0.07, 0.0, 0.3, "constant"), 10)
    assert [constant(step) for step in (0, 3, 9)] == pytest.approx([0.04, 0.07, 0.07])


@pytest.mark.parametrize("name", RATES)
def test_schedules_warm_up_reach_one_and_end_where_they_should(name: str):
    rate = rate_factor(name, 100, 10, 0.1, 20)
    rates = [rate(step) for step in range(101)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(rates) == rates[10] == 1
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[100] == pytest.approx(1.0 if name == "constant" else 0.1)
    if name == "wsd":
        assert rates[80] == 1
        assert rates[90] == pytest.approx(0.55)
    if name == "cosine":
        assert rates[55] == pytest.approx(0.55)
    assert rate_factor(name, 100, 0)(0) == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("linear", 100, 10), "schedule 'linear' is unknown"),
        (("cosine", 100, 101), "warmup 101 must lie in 0..100 steps"),
        (("wsd", 100, 90, 0.1, 20), "do not fit into 100 steps"),
    ],
)
def test_parts_that_do_not_fit_are_refused(given: tuple, words: str):
    with pytest.raises(CurationError, match=words):
        rate_factor(*given)
