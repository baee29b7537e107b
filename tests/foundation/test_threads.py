"""How many threads and processes are of use."""

import os

import numba
import torch

from foundation.threads import set_threads, useful_processes


def test_a_thousand_processes_are_not_started_for_two_items():
    """`speed.n_workers=1000` on two cores took longer to start than any run of a test."""
    assert useful_processes(1000, 2) == 2
    assert useful_processes(0, 2) == 0
    assert useful_processes(1000, 10**6) == 8 * len(os.sched_getaffinity(0))


def test_numba_takes_no_more_threads_than_it_was_given():
    before = torch.get_num_threads(), numba.get_num_threads()
    try:
        set_threads(numba.config.NUMBA_NUM_THREADS + 1)
        assert numba.get_num_threads() == numba.config.NUMBA_NUM_THREADS
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])
