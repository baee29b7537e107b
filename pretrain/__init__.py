"""Self-supervised pretraining of vision models, the recipe of DINOv2: `python -m pretrain`, or `train.pretrain`.

- Data: order (which row when), data (decode into canvases), crops and colour (batched arithmetic), multicrop, masking.
- Model: backbone (any timm model), heads, network (student and teacher), ema.
- Loss: centring, losses. Steps: schedules, optimiser, module (the Lightning module that wires all).
- Around it: train (a whole run), callbacks and probe (what is logged), export (what is left), flops and plan, cli.

Read first: settings.py (every switch), module.py (`training_step` is the algorithm), losses.py, data.py, train.py.
"""

import foundation  # noqa: F401 - before torch is loaded: it sets how threads wait
