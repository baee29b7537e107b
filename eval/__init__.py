"""Measures of a frozen image model, and of text as training data: `python -m eval`, or plain functions on arrays.

This room imports no other room: a model comes in as a feature function (models.py).

- The way of a run: images (registry, datasets, hub, pairs, images) -> features (models, features, transforms) ->
  tasks (tasks/, one commented dataclass each, on a bench) -> results (results, run, cli). Lists of tasks: suites/.
- Plain functions on arrays: knn, linear, logistic, fewshot, retrieval, robustness, corruptions, longtail, fairness,
  segmentation, depth (both on dense), feature_stats.
- Text as training data: ngram (a byte n-gram model as judge), rarity (test rows by their distance to a pool);
  ngram_task is their command, which refuses test texts that the training texts hold (`foundation.overlap`).
- language: benchmarks through lm_eval.

Read first: knn.py (the shape of every plain function), linear.py (the sweep), tasks/classification.py, bench.py.
"""

import foundation  # noqa: F401 - before torch is loaded: it sets how threads wait
