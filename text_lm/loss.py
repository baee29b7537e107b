"""The training loss: cross-entropy in nats, with an optional z-loss."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from text_lm.packing import IGNORE


def language_model_loss(
    logits: Float[Tensor, "b t v"], targets: Int[Tensor, "b t"], z_weight: float = 0.0
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Sums over the targets, in float32 whatever the logits are.

    Args:
        targets: IGNORE where there is none.
        z_weight: weight of the squared log-partition log(Z)^2, which keeps logits small (PaLM, section 5: 1e-4).

    Returns:
        The sum to minimise (cross-entropy + z-loss), and the cross-entropy alone, detached, for the log.
    """
    flat, wanted = logits.float().flatten(0, 1), targets.flatten()
    cross_entropy = F.cross_entropy(flat, wanted, ignore_index=IGNORE, reduction="sum")
    if not z_weight:
        return cross_entropy, cross_entropy.detach()
    log_z = torch.logsumexp(flat, dim=-1)
    z_loss = (log_z.square() * (wanted != IGNORE)).sum()
    return cross_entropy + z_weight * z_loss, cross_entropy.detach()
