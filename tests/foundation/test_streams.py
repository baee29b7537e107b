"""Closed or full streams and odd variables: the command ends as it would, and says at most a line."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from foundation.command import run_command
from foundation.errors import CurationError

def body():
    print("a result")
    with open("written", "w") as file:
        import os
        os.write(2, b"a message of a library")
        file.write("x" * 10)
    from tqdm import tqdm
    list(tqdm(range(3)))
    if "fail" in sys.argv:
        raise CurationError("a mistake")

run_command("make", body)
"""


def ended(folder: Path, redirected: str, *words: str, **environment: str) -> tuple[int, str]:
    command = f"{sys.executable} script.py {' '.join(words)} {redirected}"
    (folder / "script.py").write_text(SCRIPT)
    variables = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **environment}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=variables, capture_output=True, text=True)
    return done.returncode, done.stderr.replace("a message of a library", "")


@pytest.mark.parametrize("redirected", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams_change_nothing(redirected: str, tmp_path: Path):
    """A closed stream's number goes to the next file: messages of libraries would stand in a user's results."""
    assert ended(tmp_path, redirected)[0] == 0
    assert (tmp_path / "written").read_text() == "x" * 10
    assert ended(tmp_path, redirected, "fail")[0] == 2


def test_a_full_disk_is_a_line(tmp_path: Path):
    for words in ((), ("fail",)):
        code, err = ended(tmp_path, "> /dev/full", *words)
        assert (code, "no space is left where the output goes" in err.splitlines()[-1]) == (2, True)
        assert "Exception" not in err
    assert ended(tmp_path, "2> /dev/full", "fail")[0] == 2


@pytest.mark.parametrize("value", ["abc", "0", "-3", "1.5", "99999999999", "\u0665", "2,x"])
def test_odd_numbers_of_threads_are_left_out_with_a_line(value: str, tmp_path: Path):
    script = "import os, foundation; print([os.environ.get(n) for n in ('OMP_NUM_THREADS', 'NUMBA_NUM_THREADS')])"
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2,1", "NUMBA_NUM_THREADS": value}
    done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True)
    assert done.stdout == "['2,1', None]\n"
    assert done.stderr.count("\n") == 1
    assert "NUMBA_NUM_THREADS" in done.stderr
