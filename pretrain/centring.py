"""From teacher logits to targets: Sinkhorn-Knopp or a moving centre, so that prototypes are used alike."""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

CENTRINGS = ("sinkhorn", "softmax")


def _all_reduce(x: Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """Over all processes; nothing to do for one."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(x, operation)
    return x


@torch.no_grad()
def sinkhorn(logits: Float[Tensor, "n k"], temperature: float, iterations: int = 3) -> Float[Tensor, "n k"]:
    """Targets whose mean over the samples of all processes is close to uniform (SwAV, section 3.1; DINOv2, section 4).

    Alternately every prototype gets the same total weight and every sample weight one; the last step leaves the rows
    as distributions. Logarithms throughout, so that no sample or prototype underflows, whatever the temperature.
    Processes may hold different numbers of samples, none included.
    """
    scaled = logits.float() / temperature
    rows = scaled.new_zeros(len(scaled), 1)
    columns = scaled.new_zeros(1, scaled.shape[1])
    for _ in range(iterations):
        columns = _log_sum_over_samples(scaled - rows)
        rows = torch.logsumexp(scaled - columns, 1, keepdim=True)
    return torch.exp(scaled - columns - rows)


def _log_sum_over_samples(x: Float[Tensor, "n k"]) -> Float[Tensor, "one k"]:
    """log sum exp of the columns over the samples of all processes."""
    lowest = torch.finfo(x.dtype).min
    top = x.amax(0, keepdim=True) if len(x) else x.new_full((1, x.shape[1]), lowest)
    top = _all_reduce(top, dist.ReduceOp.MAX)
    return top + _all_reduce(torch.exp(x - top).sum(0, keepdim=True)).log()


class SoftmaxCentre(nn.Module):
    """Softmax of logits minus their moving mean (DINO, section 3.1, equation 4)."""

    centre: Tensor

    def __init__(self, n_prototypes: int, momentum: float = 0.9):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(n_prototypes))

    @torch.no_grad()
    def forward(self, logits: Float[Tensor, "n k"], temperature: float) -> Float[Tensor, "n k"]:
        """Targets with the centre of the batches before; then the centre takes this batch in."""
        logits = logits.float()
        targets = torch.softmax((logits - self.centre) / temperature, dim=1)
        total = _all_reduce(logits.sum(0))
        count = _all_reduce(logits.new_tensor(float(len(logits))))
        if count > 0:
            self.centre.lerp_(total / count, 1 - self.momentum)
        return targets


class Sinkhorn(nn.Module):
    """`sinkhorn` with the interface of `SoftmaxCentre`; it keeps no state."""

    def __init__(self, iterations: int = 3):
        super().__init__()
        self.iterations = iterations

    def forward(self, logits: Float[Tensor, "n k"], temperature: float) -> Float[Tensor, "n k"]:
        return sinkhorn(logits, temperature, self.iterations)


@torch.no_grad()
def assignment_information(targets: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """Nats that a sample's assignment tells about the sample: entropy of the mean minus mean of the entropies.

    Near zero every sample has the same targets, uniform or one-hot: the two ways in which a teacher collapses
    (DINO, section 5.3). At most the logarithm of the samples or of the prototypes, whichever are fewer.
    """
    mean = targets.mean(0)
    return torch.special.entr(mean).sum() - torch.special.entr(targets).sum(1).mean()
