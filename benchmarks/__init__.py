"""Benchmarks without training: speed of k-means, whole jobs at scale, balance of subsets; pages and figures."""

import foundation  # noqa: F401 - before torch is loaded: it sets how threads wait
