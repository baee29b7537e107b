"""``python -m experiments.gpu PART OPTIONS``: one part of the check in this process; see `experiments.gpu.check`."""

import sys

from experiments.gpu.check import run_part

if __name__ == "__main__":
    run_part(sys.argv[1], sys.argv[2])
