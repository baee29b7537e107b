"""``python -m benchmarks.gpu PART OPTIONS``: one part of the check in this process; see `benchmarks.gpu.check`."""

import sys

from benchmarks.gpu.check import run_part

if __name__ == "__main__":
    run_part(sys.argv[1], sys.argv[2])
