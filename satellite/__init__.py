"""Canopy height from pictures taken from above: `python -m satellite`. Needs the extra `satellite`.

- Rasters: rasters (lazy windows, one grid), lidar (point cloud to colour and height), tiles (a pool with footprints,
  spatial folds), normalise (band statistics, colour matching).
- Model: backbone (any timm model, frozen or not), bins and head (linear, DPT), model (both), losses.
- Runs: data (a micro-batch), train (a whole run, and its step), export (what is left), infer (large rasters), pictures,
  cli.
- Pretraining: `pretrain` on a pool of tiles, with the views of pretraining.py.

Read first: tiles.py (what is a tile, how are train and test apart), head.py, train.py, infer.py.
"""

import foundation  # noqa: F401 - before torch is loaded: it sets how threads wait
