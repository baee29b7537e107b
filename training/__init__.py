"""The one path of every training: `pretrain`, `text_lm` and `satellite` bring model, loss, one item, and export.

- settings (what decides a run, what is speed), schedules, order (which row when), data (which samples make a step).
- module (what a model that trains has to say), fit (the loop), log (one line every so many steps), devices, peaks.
- run_folder (whose folder it is), checkpoints (whole, verified, the one before beside it; SIGTERM).

Read first: fit.py, then data.py. The toy of ``tests/training/test_path.py`` is the shortest trainer.
"""

import foundation  # noqa: F401 - before torch is loaded: it sets how threads wait
