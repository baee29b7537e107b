"""The summary of a run and the number of threads: a user reads the one, and waits for the other."""

import subprocess
import sys
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


def test_a_busy_machine_gets_fewer_threads_and_what_the_user_set_stays(tmp_path: Path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 50 800 50 0 0 0 0 0\n")
    assert threads.idle_share(0.0, stat) == 1.0  # nothing has passed
    assert threads.idle_share(0.0, tmp_path / "none") == 1.0  # not Linux
    code = (
        "import os, sys; from foundation import threads; threads.idle_share = lambda: float(sys.argv[1]); "
        "os.sched_getaffinity = lambda pid: range(8); n = threads.use_free_cores(); import torch; "
        "print(n, torch.get_num_threads(), os.environ['OMP_NUM_THREADS'])"
    )
    for idle, given, wanted in (("0.5", {}, "4 4 4"), ("0.0", {}, "1 1 1"), ("1.0", {"OMP_NUM_THREADS": "3"}, "3 3 3")):
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(threads.__file__).parents[1]), **given}
        done = subprocess.run([sys.executable, "-c", code, idle], env=environment, capture_output=True, text=True)
        assert done.stdout.split() == wanted.split(), done.stderr
