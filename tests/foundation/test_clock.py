"""The summary of a run and the number of threads: a user reads the one, and waits for the other."""

import os
from pathlib import Path

import pytest

from foundation import clock, threads


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (185, "3 min 5 s"),
        (3599.6, "1 h"),
        (7600, "2 h 7 min"),
    ],
)
def test_times_are_spoken_as_people_do(seconds: float, words: str):
    assert clock.spoken(seconds) == words


def test_steps_add_up_and_short_ones_are_left_out(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    said: list[str] = []
    steps = clock.Clock(said.append)
    for name, seconds in (("embed", 62.0), ("sample", 0.1), ("embed", 1.0), ("report", 5.0)):
        steps.begin(name, "with a network" if name == "embed" else "")
        now[0] += seconds
    assert steps.line() == "embed 1 min 3 s, report 5.0 s; 1 min 8 s in all"
    assert said == ["embed: with a network"] * 2
    assert steps.seconds["sample"] == pytest.approx(0.1)


@pytest.mark.parametrize(("idle", "given", "wanted"), [(0.5, None, 4), (0.0, None, 1), (0.97, None, 8), (1.0, "3", 3)])
def test_a_busy_machine_gets_fewer_threads_and_what_the_user_set_stays(
    idle: float, given: str | None, wanted: int, monkeypatch: pytest.MonkeyPatch
):
    environment = {} if given is None else {"OMP_NUM_THREADS": given}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: range(8))
    monkeypatch.setattr(threads, "idle_share", lambda: idle)
    assert threads.use_free_cores() == wanted
    assert environment["OMP_NUM_THREADS"] == str(wanted)
    assert environment["OMP_WAIT_POLICY"] == "passive"


def test_the_idle_share_is_that_of_the_time_between_two_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 50 800 50 0 0 0 0 0\n")
    monkeypatch.setattr(threads.time, "sleep", lambda _s: stat.write_text("cpu  130 0 80 830 60 0 0 0 0 0\n"))
    assert threads.idle_share(stat=stat) == 0.4  # 40 of 100 ticks
    assert threads.idle_share(stat=tmp_path / "none") == 1.0  # not Linux
