"""Stands in for ``mamba_ssm.ops.triton.layernorm_gated``: norms of groups of channels, before or behind a gate.

Everything is computed in float32 (float64 for float64) and rounded once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.errors import InputError
from vmamba.integrations.mamba_ssm.modules.scan import wide

__all__ = ["LayerNorm", "RMSNorm", "layernorm_fn", "rms_norm_ref", "rmsnorm_fn"]


def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """Norm each group of channels: ``norm(x) · silu(z)``, or ``norm(x · silu(z))``.

    Args:
        x: ``(…, c)``.
        weight, bias: ``(c,)``; bias may be None.
        z: gate ``(…, c)`` or None for none.
        eps: added to the variance.
        group_size: channels that are normed together, next to each other; None is all.
        norm_before_gate: which of the two.
        is_rms_norm: norm without a mean (arXiv 1910.07467).

    Returns:
        ``(…, c)`` in the dtype of ``x``.

    Raises:
        InputError: a gate of another shape, or channels that are no multiple of the groups.
    """
    c = x.shape[-1]
    group_size = c if group_size is None else group_size
    if group_size < 1 or c % group_size:
        raise InputError(f"{c} channels cannot be normed in groups of {group_size}; group_size must divide them")
    if z is not None and z.shape != x.shape:
        raise InputError(f"z has shape {tuple(z.shape)}, want x's shape {tuple(x.shape)}")
    t = wide(x)
    if z is not None and not norm_before_gate:
        t = t * F.silu(z.to(t.dtype))
    groups = t.unflatten(-1, (-1, group_size))
    centred = groups if is_rms_norm else groups - groups.mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    t = normed.flatten(-2) * weight.to(t.dtype)
    if bias is not None:
        t = t + bias.to(t.dtype)
    if z is not None and norm_before_gate:
        t = t * F.silu(z.to(t.dtype))
    out: Tensor = t.to(x.dtype)
    return out


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """`layernorm_fn` without the mean."""
    return layernorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate, True)


def rms_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    upcast: bool = True,
) -> Tensor:
    """`rmsnorm_fn`, which is PyTorch here anyway; ``upcast`` changes nothing."""
    return rmsnorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate)


class RMSNorm(nn.Module):
    """Norm without a mean over groups of channels, with a gate.

    Args:
        hidden_size: channels ``c``.
        eps: added to the mean square.
        group_size, norm_before_gate: as of `layernorm_fn`.
        device, dtype: of the parameters.
    """

    is_rms_norm = True
    bias: nn.Parameter | None

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.eps = eps
        self.group_size = group_size
        self.norm_before_gate = norm_before_gate
        self.weight = nn.Parameter(torch.ones(hidden_size, **factory))
        self.register_parameter("bias", None if self.is_rms_norm else nn.Parameter(torch.zeros(hidden_size, **factory)))

    def reset_parameters(self) -> None:
        """Set the weight to one and the bias, where there is one, to zero."""
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Norm ``x (…, c)``, gated by ``z (…, c)``; see `layernorm_fn`."""
        return layernorm_fn(
            x, self.weight, self.bias, z, self.eps, self.group_size, self.norm_before_gate, self.is_rms_norm
        )


class LayerNorm(RMSNorm):
    """`RMSNorm` with a mean and a bias."""

    is_rms_norm = False
