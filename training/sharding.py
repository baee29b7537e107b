"""Training whose weights, gradients and moments are cut into pieces, one for each process: FSDP2 of torch.

A checkpoint is the one that a single process writes, tensor for tensor: any number of processes goes on from it, with
pieces or without.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


class Sharded(ModelParallelStrategy):
    """Every process holds a piece of each parameter of `training.module.StepModule.shards`; batches differ.

    Args:
        half: weights travel in bfloat16; gradients are summed in float32 all the same.
    """

    def __init__(self, half: bool):
        super().__init__(save_distributed_checkpoint=False)
        self.half = half

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def setup(self, trainer: lightning.Trainer) -> None:
        module: Any = self.lightning_module
        shard(module.shards(), self.device_mesh["data_parallel"], self.half)
        super().setup(trainer)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors on the CPU of the first process, nothing on the others."""
        assert self.model is not None
        return self._gathered(self.model.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As `lightning_module_state_dict`, in the form of the optimiser's own ``state_dict``."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        content = optimizer.state_dict()
        states = {number: self._gathered(state) for number, state in content["state"].items()}
        return {**content, "state": states} if self.is_global_zero else {}

    def _gathered(self, state: Mapping[str, Any]) -> dict[str, Any]:
        whole = {}
        for name, value in state.items():
            value = full(value)
            if self.is_global_zero:
                whole[name] = value.cpu() if isinstance(value, Tensor) else value
        return whole

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        # mapped: a process reads its own pieces only
        content: dict[str, Any] = torch.load(checkpoint_path, map_location="cpu", weights_only=True, mmap=True)
        return content

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.model is not None
        own = self.model.state_dict()
        given = checkpoint["state_dict"]
        self.model.load_state_dict({name: _piece(given[name], own.get(name)) for name in given}, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, given in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            numbers = [number for group in given["param_groups"] for number in group["params"]]
            states = {}
            for number, parameter in zip(numbers, parameters, strict=True):
                states[number] = {
                    name: _piece(value, parameter if value.shape == parameter.shape else None)  # moments; not the step
                    for name, value in given["state"].get(number, {}).items()
                }
            optimizer.load_state_dict({**given, "state": states})


def shard(modules: list[torch.nn.Module], mesh: DeviceMesh, half: bool) -> None:
    """Cut the parameters of modules along a mesh of one dimension, inner modules before those that hold them.

    Args:
        half: see `Sharded`.
    """
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if half:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for module in modules:
        # said for the outermost too: a teacher that has no backward pass would keep the weights of its first step
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def full(value: Any) -> Any:
    """A sharded tensor gathered from all processes; anything else as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _piece(whole: Any, like: Any) -> Any:
    """This process's piece of a whole tensor, cut and placed as another; whole where that is not sharded."""
    if not isinstance(like, DTensor):
        return whole
    # each process cuts its own from what all have, and keeps no view of the file
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None).clone()
