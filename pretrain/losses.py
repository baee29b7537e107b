"""The losses: DINO on class tokens, iBOT on masked patches, KoLeo on their spread, Gram on patch similarities."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def cross_entropy(
    student_logits: Float[Tensor, "n k"], targets: Float[Tensor, "n k"], temperature: float
) -> Float[Tensor, "n"]:
    """-sum_k targets log softmax(logits / temperature), of each row (DINO, equation 2)."""
    return -(targets * F.log_softmax(student_logits.float() / temperature, dim=-1)).sum(-1)


def dino_loss(
    global_logits: Float[Tensor, "two b k"],
    local_logits: Float[Tensor, "l b k"],
    targets: Float[Tensor, "two b k"],
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """Mean over all pairs of a teacher's global crop and another crop of the student (DINO, equation 3).

    The 2 pairs of global crops and the 2 l pairs with local crops weigh alike, so the loss is comparable whatever
    the number of local crops. A crop is never compared with itself.

    Args:
        global_logits, targets: crop 1, crop 2 of every image.
        local_logits: l local crops; none is (0, b, k).
    """
    pairs = [cross_entropy(global_logits[0], targets[1], temperature)]
    pairs.append(cross_entropy(global_logits[1], targets[0], temperature))
    total = torch.stack(pairs).mean(1).sum()
    if len(local_logits):
        # the cross-entropy is linear in the targets: the sum over both teachers is one pass with their sum
        total = total + cross_entropy(local_logits, targets.sum(0).expand_as(local_logits), temperature).mean(1).sum()
    return total / (2 + 2 * len(local_logits))


def ibot_loss(
    student_logits: Float[Tensor, "m k"],
    targets: Float[Tensor, "m k"],
    weights: Float[Tensor, "m"],
    n_crops: int,
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """Cross-entropy of masked patches: mean over a crop's masked patches, sum over crops / number of global crops.

    Crops without a mask count as zero, as in DINOv2 (iBOT, equation 2; DINOv2, section 4).

    Args:
        weights: of each patch, 1 / (masked patches of its crop).
        n_crops: global crops of the batch, masked or not.
    """
    return (cross_entropy(student_logits, targets, temperature) * weights).sum() / n_crops


def koleo_loss(features: Float[Tensor, "n d"], eps: float = 1e-8) -> Float[Tensor, ""]:
    """- mean log distance to the nearest other feature, on the unit sphere (Sablayrolles et al. 2019, equation 2).

    Squared distances get ``eps``: an exact duplicate costs log(1e4) = 9.2 and has no gradient, where the formula would
    be infinite. A batch of one has no neighbour and costs nothing.
    """
    if len(features) < 2:
        return features.sum() * 0.0
    with torch.autocast(features.device.type, enabled=False):
        x = F.normalize(features.float(), dim=1)
        with torch.no_grad():
            products = x @ x.T
            products.fill_diagonal_(-2.0)
            nearest = products.argmax(1)
        squared = (x - x[nearest]).square().sum(1)
        return -0.5 * torch.log(squared + eps).mean()


def gram_loss(student: Float[Tensor, "b p d"], teacher: Float[Tensor, "b p d"]) -> Float[Tensor, ""]:
    """Mean squared difference of the patches' cosine similarities (DINOv3, section 4.2, equation 2)."""
    with torch.autocast(student.device.type, enabled=False):
        x, y = F.normalize(student.float(), dim=-1), F.normalize(teacher.float(), dim=-1)
        return F.mse_loss(x @ x.mT, y @ y.mT)


def patch_weights(rows: Int[Tensor, "m"], n_crops: int) -> Float[Tensor, "m"]:
    """1 / (masked patches of the crop) of each masked patch; ``rows`` says which crop it is in."""
    return 1.0 / torch.bincount(rows, minlength=n_crops)[rows].float()
