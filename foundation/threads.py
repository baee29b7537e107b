"""How many threads compute: no more than cores that are free, for threads that wait for a busy core wait for ever."""

import os
import sys
import time
from pathlib import Path

from foundation.numbers import is_digits

STAT = Path("/proc/stat")
VARIABLES = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
MOST = 1024  # threads of a process


def drop_bad_counts() -> None:
    """Take variables that name no number of threads out of the environment, each with a line: numba would fail or
    print a traceback, and OpenMP's runtimes would differ in what they make of them."""
    for name in (*VARIABLES, "MKL_NUM_THREADS"):
        value = os.environ.get(name)
        if value is None or (value.strip() and all(_is_count(part) for part in value.split(","))):
            continue
        del os.environ[name]
        if value.strip():
            print(f"warning: {name}={value[:40]!r} is no number of threads (1 to {MOST}); left out", file=sys.stderr)


def _is_count(text: str) -> bool:
    text = text.strip()
    return is_digits(text) and len(text) < 6 and 1 <= int(text) <= MOST


def useful_processes(asked: int, n_items: int) -> int:
    """Processes that read and decode: no more than have an item to do, nor eight for each core, for they only wait."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(asked, n_items, 8 * cores)


def idle_share(seconds: float = 0.25, stat: Path = STAT) -> float:
    """Share of this machine's processor time that nobody used for so long; 1 where it cannot be known."""

    def read() -> tuple[int, int]:
        fields = [int(part) for part in stat.read_text().splitlines()[0].split()[1:9]]
        return fields[3] + fields[4], sum(fields)

    try:
        idle, total = read()
        time.sleep(seconds)
        idle_now, total_now = read()
    except (OSError, ValueError, IndexError):
        return 1.0
    return (idle_now - idle) / (total_now - total) if total_now > total else 1.0


def set_threads(count: int) -> None:
    """Let torch and numba compute with so many threads in this process; numba never with more than it was given."""
    import numba
    import torch

    torch.set_num_threads(count)
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]


def use_free_cores() -> int:
    """Let OpenMP and numba use the cores that are free now, and sleep while they wait.

    To be called before torch is imported. What the user has set in the environment stays.

    Returns:
        Threads.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = max(1, round(cores * idle_share()))
    for name in VARIABLES:
        os.environ.setdefault(name, str(free))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    return int(os.environ[VARIABLES[0]].split(",")[0])
