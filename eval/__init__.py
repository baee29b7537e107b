"""Measures of a frozen image model: `python -m eval`, or plain functions on features and labels.

This room imports no other room: a model comes in as a feature function (models.py).

- The way of a run: images (registry, datasets, hub, pairs, images) -> features (models, features, transforms) ->
  tasks (tasks/, one commented dataclass each, on a bench) -> results (results, run, cli). Lists of tasks: suites/.
- Plain functions on arrays: knn, linear, logistic, fewshot, retrieval, robustness, corruptions, longtail, fairness,
  segmentation, depth (both on dense), feature_stats, bootstrap.

Read first: knn.py (the shape of every plain function), linear.py (the sweep), tasks/classification.py, bench.py.
"""
