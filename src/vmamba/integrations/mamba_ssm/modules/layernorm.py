"""Stands in for ``mamba_ssm.ops.triton.layernorm``: `layer_norm` as mamba-ssm 1.0 and 1.1 had it.

The functions have fewer arguments there, in another order, which positional calls tell apart.
"""

from __future__ import annotations

from torch import Tensor

from vmamba.integrations.mamba_ssm.modules import layer_norm
from vmamba.integrations.mamba_ssm.modules.layer_norm import Norms, RMSNorm, layer_norm_linear_fn

__all__ = [
    "RMSNorm",
    "layer_norm_fn",
    "layer_norm_linear_fn",
    "layer_norm_ref",
    "rms_norm_fn",
    "rms_norm_ref",
]


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Norms:
    """Norm ``x + residual (…, c)``; see `layer_norm.layer_norm_fn`."""
    return layer_norm.layer_norm_fn(
        x,
        weight,
        bias,
        residual,
        eps=eps,
        prenorm=prenorm,
        residual_in_fp32=residual_in_fp32,
        is_rms_norm=is_rms_norm,
    )


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Norms:
    """`layer_norm_fn` without the mean."""
    return layer_norm_fn(x, weight, bias, residual, eps, prenorm, residual_in_fp32, True)


def layer_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    upcast: bool = False,
) -> Norms:
    """Compute the same in the inputs' dtypes; see `layer_norm.layer_norm_ref`."""
    return layer_norm.layer_norm_ref(x, weight, bias, residual, eps=eps, prenorm=prenorm, upcast=upcast)


def rms_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    upcast: bool = False,
) -> Norms:
    """`layer_norm_ref` without the mean."""
    return layer_norm.rms_norm_ref(x, weight, bias, residual, eps=eps, prenorm=prenorm, upcast=upcast)
