"""The order of training: which rows a step sees must not depend on machines, or no two runs can be compared."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from foundation.errors import CurationError
from training.data import BatchPlan, Slot, StepBatches
from training.order import Order, permuted


def numbers(slot: Slot) -> list[int]:
    return slot.numbers.tolist()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 5), st.integers(1, 4))
def test_any_number_of_processes_and_any_start_see_the_same_steps(world, micro, accumulate, start, steps):
    size = world * micro * accumulate
    parts = [
        list(StepBatches(numbers, BatchPlan(size, micro, rank, world), start, start + steps)) for rank in range(world)
    ]
    for step in range(steps):
        mine = [part[step * accumulate + i] for part in parts for i in range(accumulate)]
        assert sorted(chain(*mine)) == list(range((start + step) * size, (start + step + 1) * size))


def test_loader_workers_keep_the_order():
    batches = StepBatches(numbers, BatchPlan(4, 2), 3, 9)
    alone = list(DataLoader(batches, batch_size=None, collate_fn=list))
    assert alone == list(DataLoader(batches, batch_size=None, collate_fn=list, num_workers=2))
    assert [*chain(*alone)] == list(range(12, 36))


@pytest.mark.parametrize("n", [1, 2, 3, 10, 1000, 4097])
def test_an_epoch_is_a_permutation_and_epochs_differ(n: int):
    first = permuted(np.arange(n), n, seed=0, epoch=0)
    assert np.array_equal(np.sort(first), np.arange(n))
    if n >= 1000:
        second = permuted(np.arange(n), n, seed=0, epoch=1)
        assert (first != second).mean() > 0.9
        assert abs(np.corrcoef(np.arange(n), first)[0, 1]) < 4 / np.sqrt(n)
        assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 4 / np.sqrt(n)


def test_a_billion_rows_are_permuted_without_a_list_of_them():
    found = permuted(np.arange(1000), 10**9, seed=1, epoch=0)
    assert len(np.unique(found)) == 1000
    assert 0 <= found.min() < found.max() < 10**9


def test_coverage_counts_distinct_rows_and_repetitions():
    order = Order(np.array([5, 5, 7, 9]), seed=0)  # row 5 is taken twice
    assert sorted(order.sample(np.arange(4))) == [5, 5, 7, 9]
    assert order.coverage(8) == {"samples": 8, "epochs": 2.0, "unique_samples": 3, "times_seen": 8 / 3}
    assert order.coverage(1)["unique_samples"] == 1


def test_processes_and_micro_batches_share_a_batch_without_overlap_or_loss():
    plans = [BatchPlan(24, 4, rank, 3) for rank in range(3)]
    places = [place for plan in plans for micro in range(plan.accumulate) for place in plan.within_step(micro)]
    assert sorted(places) == list(range(24))
    with pytest.raises(CurationError, match="multiple"):
        BatchPlan(10, 4, 0, 3)
    with pytest.raises(CurationError, match="positive multiple"):
        BatchPlan(6, 4)
