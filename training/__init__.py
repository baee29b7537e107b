"""What every Lightning run of this project shares: whole checkpoints, a folder that belongs to one run, the trainer."""

import foundation  # noqa: F401 - before torch is loaded: it sets how threads wait
