"""Losses of heights in metres; pixels that are not valid never count, a batch without any gives 0."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from satellite.settings import LossSettings

Heights = Float[Tensor, "b h w"]
Valid = Bool[Tensor, "b h w"]
Scalar = Float[Tensor, ""]
SCALES = 4


def masked_mean(values: Heights, valid: Valid) -> Scalar:
    """Mean over valid pixels."""
    return torch.where(valid, values, torch.zeros_like(values)).sum() / valid.sum().clamp_min(1)


def sig_loss(p: Heights, t: Heights, valid: Valid, offset: float, with_variance: bool = True) -> Scalar:
    """sqrt(var(g) + 0.15 mean(g)^2), g = log(p + offset) - log(t + offset) (Eigen et al. 2014; Bhat et al. 2021).

    Canopy heights are often 0, which depths are not: hence the offset, in metres.
    """
    g = log_difference(p, t, valid, offset)
    mean = masked_mean(g, valid)
    found = 0.15 * mean.square()
    if with_variance:
        found = found + masked_mean((g - mean).square(), valid)
    return (found + 1e-8).sqrt()  # the root has no gradient at 0


def gradient_loss(p: Heights, t: Heights, valid: Valid, offset: float) -> Scalar:
    """Mean |gradient of g| at four scales, each half as fine (Li & Snavely 2018): sharp edges of crowns."""
    g = log_difference(p, t, valid, offset)
    total = g.new_zeros(())
    for scale in range(SCALES):
        step = 2**scale
        part, known = g[:, ::step, ::step], valid[:, ::step, ::step]
        for a, b, ka, kb in (
            (part[:, 1:], part[:, :-1], known[:, 1:], known[:, :-1]),
            (part[:, :, 1:], part[:, :, :-1], known[:, :, 1:], known[:, :, :-1]),
        ):
            total = total + masked_mean((a - b).abs(), ka & kb)
    return total / SCALES


def l1_loss(p: Heights, t: Heights, valid: Valid) -> Scalar:
    """Mean absolute error, metres."""
    return masked_mean((p - clean(t, valid)).abs(), valid)


def huber_loss(p: Heights, t: Heights, valid: Valid, delta: float) -> Scalar:
    """Quadratic below ``delta`` metres, linear above."""
    return masked_mean(F.huber_loss(p, clean(t, valid), reduction="none", delta=delta), valid)


def height_loss(p: Heights, t: Heights, valid: Valid, settings: LossSettings, step: int) -> Scalar:
    """The weighted sum of the losses of the settings at a step of the optimiser."""
    total = p.new_zeros(())
    if settings.sig:
        total = total + settings.sig * sig_loss(p, t, valid, settings.offset, step >= settings.sig_warmup)
    if settings.gradient:
        total = total + settings.gradient * gradient_loss(p, t, valid, settings.offset)
    if settings.l1:
        total = total + settings.l1 * l1_loss(p, t, valid)
    if settings.huber:
        total = total + settings.huber * huber_loss(p, t, valid, settings.delta)
    return total


def log_difference(p: Heights, t: Heights, valid: Valid, offset: float) -> Heights:
    """log(p + offset) - log(t + offset); 0 where it is not valid."""
    g = (p.clamp_min(0) + offset).log() - (clean(t, valid).clamp_min(0) + offset).log()
    return torch.where(valid, g, torch.zeros_like(g))


def clean(t: Heights, valid: Valid) -> Heights:
    """0 where not valid: a NaN there would come back as a NaN gradient."""
    return torch.where(valid, t, torch.zeros_like(t))
