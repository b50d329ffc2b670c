"""The residual block around a mixer: add, norm, mix (mamba-ssm 1.x's ``Block``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vmamba.errors import ConfigError
from vmamba.integrations.mamba_ssm.modules.layer_norm import RMSNorm, layer_norm_fn


class Block(nn.Module):
    """``residual = residual + x``, ``x = mixer(norm(residual))``, both handed on to the next block.

    Args:
        dim: channels ``c``.
        mixer_cls: makes the mixer from ``dim``, such as `Mamba` or a `functools.partial` of it.
        norm_cls: makes the norm from ``dim``.
        fused_add_norm: whether sum and norm are one call of `layer_norm_fn`, in float32.
        residual_in_fp32: whether the residual is kept in float32.
    """

    def __init__(
        self,
        dim: int,
        mixer_cls: Callable[[int], nn.Module],
        norm_cls: Callable[[int], nn.Module] = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__()
        self.residual_in_fp32 = residual_in_fp32
        self.fused_add_norm = fused_add_norm
        self.mixer = mixer_cls(dim)
        self.norm = norm_cls(dim)
        if fused_add_norm and not isinstance(self.norm, nn.LayerNorm | RMSNorm):
            raise ConfigError(
                f"fused_add_norm takes LayerNorm or mamba_ssm's RMSNorm, given {type(self.norm).__name__}; "
                "use one of them, or fused_add_norm=False"
            )

    def forward(
        self,
        hidden_states: Tensor,
        residual: Tensor | None = None,
        inference_params: Any = None,
        **mixer_options: Any,
    ) -> tuple[Tensor, Tensor]:
        """Run the block.

        Args:
            hidden_states: ``(b, l, c)``.
            residual: ``(b, l, c)``, or None in front of the first block.
            inference_params, **mixer_options: handed to the mixer.

        Returns:
            The mixer's output and the residual, ``(b, l, c)`` each.
        """
        hidden_states, residual = self._add_norm(hidden_states, residual, self.norm)
        return self.mixer(hidden_states, inference_params=inference_params, **mixer_options), residual

    def _add_norm(self, x: Tensor, residual: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
        """The norm of the sum, and the sum."""
        if self.fused_add_norm:
            return layer_norm_fn(  # type: ignore[return-value]
                x,
                norm.weight,
                norm.bias,
                residual=residual,
                prenorm=True,
                residual_in_fp32=self.residual_in_fp32,
                eps=norm.eps,
                is_rms_norm=isinstance(norm, RMSNorm),
            )
        residual = x if residual is None else x + residual
        normed = norm(residual.to(norm.weight.dtype))
        return normed, residual.float() if self.residual_in_fp32 else residual

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **options: Any
    ) -> Any:
        """The mixer's."""
        return self.mixer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **options)  # type: ignore[operator]
