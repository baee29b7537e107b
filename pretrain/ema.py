"""The teacher: a moving average of the student."""

import torch
from torch import nn


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Parameters and buffers of ``source`` into ``target``; both have the same shape."""
    target.load_state_dict(source.state_dict())


@torch.no_grad()
def ema_update(student: nn.Module, teacher: nn.Module, momentum: float) -> None:
    """teacher <- momentum teacher + (1 - momentum) student, for every parameter; buffers are the teacher's own."""
    ours: list[torch.Tensor] = list(teacher.parameters())
    theirs = [parameter.detach() for parameter in student.parameters()]
    torch._foreach_lerp_(ours, theirs, 1.0 - momentum)
