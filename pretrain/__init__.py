"""Self-supervised pretraining of vision models, the recipe of DINOv2: `python -m pretrain`, or `train.pretrain`.

- Data: data (decode into canvases, a micro-batch), crops and colour (batched arithmetic; pixels_cpu the same
  on a CPU), multicrop, masking.
- Model: backbone (any timm model), heads, network (student and teacher), ema.
- Loss: centring, losses. Steps: optimiser, train (a whole run, and the step that wires all).
- Around it: callbacks and probe (what is watched), export (what is left), flops and plan, cli. What every training
  shares (order, schedules, log, checkpoints, devices) is in `training`.

Read first: settings.py (every switch), train.py (`training_step` is the algorithm), losses.py, data.py.
"""

import foundation  # noqa: F401 - before torch is loaded: it sets how threads wait
