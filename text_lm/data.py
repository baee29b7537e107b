"""The order of training: which sequences make up step s is a function of (seed, s), whatever the number of processes.

Because nothing is drawn while training, resuming in the middle of an epoch needs the step number and nothing else.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from foundation.errors import CurationError
from text_lm.packing import TokenStream
from training.batches import BatchPlan


class StepDataset(IterableDataset[dict[str, Tensor]]):
    """Micro-batches from ``start_step`` to ``stop_step``, in order.

    Each is a dict of (m, t) int64 ``inputs``, ``targets``, ``documents``, ``positions``, and the scalar ``n_targets``:
    the targets of the whole step over all processes, by which a mean loss is the same however the batch is split.
    """

    def __init__(self, stream: TokenStream, plan: BatchPlan, length: int, start_step: int, stop_step: int):
        super().__init__()
        self.stream, self.plan, self.length = stream, plan, length
        self.start_step, self.stop_step = start_step, stop_step

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        plan = self.plan
        micro_batches = (self.stop_step - self.start_step) * plan.accumulate
        # DataLoader takes one item of each worker in turn, so striding keeps the order
        for item in range(mine, micro_batches, workers):
            step, micro = self.start_step + item // plan.accumulate, item % plan.accumulate
            windows = self.stream.windows(step * plan.batch_size + plan.within_step(micro), self.length)
            tokens = plan.batch_size * self.length
            first = step * tokens
            yield {
                "inputs": torch.from_numpy(windows.inputs),
                "targets": torch.from_numpy(windows.targets),
                "documents": torch.from_numpy(windows.documents),
                "positions": torch.from_numpy(windows.positions),
                "n_targets": torch.tensor(self.stream.count_targets(first, first + tokens)),
            }


def step_loader(
    stream: TokenStream,
    plan: BatchPlan,
    length: int,
    start_step: int,
    stop_step: int,
    n_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[dict[str, Tensor]]:
    """Loader of the micro-batches of steps start..stop, of sequences of ``length`` tokens.

    Raises:
        CurationError: the subset has fewer tokens than one batch.
    """
    tokens = plan.batch_size * length
    if stream.epoch_tokens < tokens:
        raise CurationError(
            f"the subset has {stream.epoch_tokens:,} tokens, fewer than one batch of {plan.batch_size} x {length}"
            f" = {tokens:,}; use a smaller batch or a larger subset"
        )
    dataset = StepDataset(stream, plan, length, start_step, stop_step)
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=n_workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if n_workers else None,
    )
