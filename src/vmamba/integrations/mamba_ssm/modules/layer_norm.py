"""Stands in for ``mamba_ssm.ops.triton.layer_norm``: dropout, sum and norm over the last axis, in one call.

Everything is computed in float32 (float64 for float64) and rounded once, as mamba-ssm's Triton kernels do; the ``_ref``
functions compute in the dtypes that they are given, as mamba-ssm's do.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.errors import InputError
from vmamba.integrations.mamba_ssm.modules.scan import wide, wide_dtype
from vmamba.integrations.mamba_ssm.stand_in import NotProvidedError

__all__ = [
    "RMSNorm",
    "layer_norm_fn",
    "layer_norm_linear_fn",
    "layer_norm_ref",
    "rms_norm_fn",
    "rms_norm_ref",
]

Norms = Tensor | tuple[Tensor, ...]


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> Norms:
    """Norm the sum of ``x``, ``x1`` and ``residual`` over the last axis.

    Args:
        x: ``(…, c)``.
        weight, bias: ``(c,)``; bias may be None.
        residual: ``(…, c)`` or None, added behind dropout.
        x1: ``(…, c)`` or None, a second input with dropout of its own.
        weight1, bias1: ``(c,)`` or None: a second affine map of the same normed sum.
        eps: added to the variance.
        dropout_p: how many of the elements of ``x`` and ``x1`` are dropped.
        rowscale: ``(…)`` or None, a factor for each row of ``x``; not with ``x1``.
        prenorm: also return the sum.
        residual_in_fp32: the sum is returned in float32 where there is no ``residual`` whose dtype it takes.
        is_rms_norm: norm without a mean (arXiv 1910.07467).
        return_dropout_mask: not supported.

    Returns:
        The normed sum in the dtype of ``x``, a second one where there is ``weight1``, and with ``prenorm`` the sum; a
        tuple where there is more than one.
    """
    if return_dropout_mask:
        raise NotProvidedError(
            "return_dropout_mask is not provided by vmamba's stand-in: dropout is torch's, which keeps no mask; "
            "seed torch for the same elements"
        )
    total = _summed(wide(x), residual, x1, dropout_p, rowscale)
    norms = tuple(
        _norm(total, w, b, eps, is_rms_norm).to(x.dtype) for w, b in ((weight, bias), (weight1, bias1)) if w is not None
    )
    if prenorm:
        kept = residual.dtype if residual is not None else wide_dtype(x) if residual_in_fp32 else x.dtype
        norms = (*norms, total.to(kept))
    return norms if len(norms) > 1 else norms[0]


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    return_dropout_mask: bool = False,
) -> Norms:
    """`layer_norm_fn` without the mean (arXiv 1910.07467)."""
    return layer_norm_fn(
        x,
        weight,
        bias,
        residual,
        x1,
        weight1,
        bias1,
        eps,
        dropout_p,
        rowscale,
        prenorm,
        residual_in_fp32,
        True,
        return_dropout_mask,
    )


def layer_norm_linear_fn(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Norms:
    """Norm as `layer_norm_fn` does, then project by ``linear_weight (m, c)``: ``(…, c) → (…, m)``."""
    normed, total = layer_norm_fn(
        x,
        norm_weight,
        norm_bias,
        residual,
        eps=eps,
        prenorm=True,
        residual_in_fp32=residual_in_fp32,
        is_rms_norm=is_rms_norm,
    )
    out = F.linear(normed, linear_weight, linear_bias)
    return (out, total) if prenorm else out


class RMSNorm(nn.Module):
    """Norm over the last axis without a mean (arXiv 1910.07467).

    Args:
        hidden_size: channels ``c``.
        eps: added to the mean square.
        dropout_p: dropout of the input while training.
        device, dtype: of the weight.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.drop = nn.Dropout(dropout_p) if dropout_p > 0.0 else None
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def reset_parameters(self) -> None:
        """Set the weight to one."""
        nn.init.ones_(self.weight)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Norms:
        """Norm ``x + residual (…, c)``; with ``prenorm`` also return the sum; see `layer_norm_fn`."""
        return rms_norm_fn(
            x,
            self.weight,
            None,
            residual=residual,
            eps=self.eps,
            dropout_p=self.drop.p if self.drop is not None and self.training else 0.0,
            prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
        )


def layer_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    dropout_mask: Tensor | None = None,
    dropout_mask1: Tensor | None = None,
    upcast: bool = False,
) -> Norms:
    """Compute the same in the inputs' dtypes, or in float32 with ``upcast``.

    Args:
        x, weight, bias, residual, x1, weight1, bias1, eps, dropout_p, rowscale, prenorm: as of `layer_norm_fn`.
        dropout_mask, dropout_mask1: which elements of ``x`` and ``x1`` stay, ``(…, c)`` of bools, or None to draw them.
        upcast: convert to float32 first; the norms are still returned in the dtype of ``x``.
    """
    ways = ((weight, bias), (weight1, bias1))
    masks = (dropout_mask, dropout_mask1)
    return _plain(x, ways, residual, x1, eps, dropout_p, rowscale, prenorm, masks, upcast, False)


def rms_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    dropout_mask: Tensor | None = None,
    dropout_mask1: Tensor | None = None,
    upcast: bool = False,
) -> Norms:
    """`layer_norm_ref` without the mean."""
    ways = ((weight, bias), (weight1, bias1))
    masks = (dropout_mask, dropout_mask1)
    return _plain(x, ways, residual, x1, eps, dropout_p, rowscale, prenorm, masks, upcast, True)


def _norm(total: Tensor, weight: Tensor, bias: Tensor | None, eps: float, rms: bool) -> Tensor:
    weight = weight.to(total.dtype)
    bias = None if bias is None else bias.to(total.dtype)
    if not rms:
        return F.layer_norm(total, weight.shape, weight, bias, eps)
    normed = F.rms_norm(total, weight.shape, weight, eps)
    return normed if bias is None else normed + bias


def _summed(
    x: Tensor,
    residual: Tensor | None,
    x1: Tensor | None,
    dropout_p: float,
    rowscale: Tensor | None,
    masks: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    """``dropout(rowscale · x) + dropout(x1) + residual`` in the dtype of ``x``."""
    if x1 is not None and rowscale is not None:
        raise InputError("rowscale and x1 exclude each other; multiply x by its scales before the call")

    def dropped(t: Tensor, mask: Tensor | None) -> Tensor:
        if not dropout_p:
            return t
        return F.dropout(t, dropout_p) if mask is None else t.masked_fill(~mask, 0.0) / (1.0 - dropout_p)

    total = dropped(x if rowscale is None else x * rowscale[..., None].to(x.dtype), masks[0])
    if x1 is not None:
        total = total + dropped(x1.to(x.dtype), masks[1])
    return total if residual is None else (total + residual).to(x.dtype)


def _plain(
    x: Tensor,
    ways: tuple[tuple[Tensor | None, Tensor | None], ...],
    residual: Tensor | None,
    x1: Tensor | None,
    eps: float,
    dropout_p: float,
    rowscale: Tensor | None,
    prenorm: bool,
    masks: tuple[Tensor | None, Tensor | None],
    upcast: bool,
    rms: bool,
) -> Norms:
    total = _summed(x.float() if upcast else x, residual, x1, dropout_p, rowscale, masks)
    norms = []
    for weight, bias in ways:
        if weight is None:
            continue
        t = total.to(torch.promote_types(total.dtype, weight.dtype))
        centred = t if rms else t - t.mean(-1, keepdim=True)
        normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight
        norms.append((normed if bias is None else normed + bias).to(x.dtype))
    results = (*norms, total) if prenorm else tuple(norms)
    return results if len(results) > 1 else results[0]
