"""A norm before a product, put into the product's weight and bias as far as it is linear."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vmamba.layers.norm import BatchNorm, LayerNorm


def can_fold(norm: nn.Module) -> bool:
    """Whether `fold` knows the norm, in evaluation mode."""
    if type(norm) is BatchNorm:
        return norm.track_running_stats
    return type(norm) in (LayerNorm, nn.LayerNorm, nn.Identity)


def fold(norm: nn.Module, linear: nn.Linear) -> tuple[Tensor, Tensor, float | None]:
    """The weight and bias of a product with those of the norm before it in them.

    Args:
        norm: over the last axis, in evaluation mode; see `can_fold`.
        linear: what follows.

    Returns:
        weight ``(c_out, c_in)`` and bias ``(c_out)``, float64, and the ``eps`` of the layer norm, without weight and
        bias, that is left before them; None where nothing is.
    """
    weight = linear.weight.detach().double()
    scale, shift, eps = affine_and_eps(norm, weight.shape[1])
    bias = weight @ shift
    if linear.bias is not None:
        bias = bias + linear.bias.detach().double()
    return weight * scale, bias, eps


def affine_and_eps(norm: nn.Module, width: int) -> tuple[Tensor, Tensor, float | None]:
    """What a norm multiplies with and then adds.

    Returns:
        both ``(width)``, float64, and the ``eps`` of the layer norm before that; None where there is none.
    """
    scale, shift = (torch.full((width,), value, dtype=torch.float64, device="cpu") for value in (1.0, 0.0))
    if isinstance(norm, nn.Identity):
        return scale, shift, None
    assert isinstance(norm, nn.LayerNorm | BatchNorm)
    if norm.weight is not None:
        scale = norm.weight.detach().double()
    if norm.bias is not None:
        shift = norm.bias.detach().double()
    if isinstance(norm, nn.LayerNorm):
        return scale, shift, norm.eps
    # Batch norm in evaluation mode is a weight and a bias and nothing else.
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = scale / (norm.running_var.double() + norm.eps).sqrt()
    return scale, shift - norm.running_mean.double() * scale, None
