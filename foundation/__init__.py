"""The ground floor: what every room stands on, and which imports none of them."""

import os

from foundation.threads import drop_bad_counts

# Threads that wait for each other go to sleep, where OpenMP lets them spin: beside other busy processes spinning costs
# a factor of ten and more (`scripts/bench_kmeans.py --busy`). The runtimes of torch, numba and faiss read this when
# they are loaded, so every room imports this one first; what the user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")
drop_bad_counts()
