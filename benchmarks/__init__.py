"""Benchmarks without training: speed of k-means, whole jobs at scale, balance of subsets; pages and figures."""
