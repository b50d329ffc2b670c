"""Stands in for ``mamba_ssm.modules.block``: mamba-ssm 2.x's residual block, which may have an MLP behind the mixer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vmamba.integrations.mamba_ssm.modules import residual_block

__all__ = ["Block"]


class Block(residual_block.Block):
    """The block of `mamba_simple`, and ``x = mlp(norm2(residual + x))`` behind it.

    Args:
        dim, mixer_cls, norm_cls, fused_add_norm, residual_in_fp32: as of `residual_block.Block`.
        mlp_cls: makes the MLP from ``dim``; `torch.nn.Identity` itself is none at all.
    """

    def __init__(
        self,
        dim: int,
        mixer_cls: Callable[[int], nn.Module],
        mlp_cls: Callable[[int], nn.Module],
        norm_cls: Callable[[int], nn.Module] = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__(dim, mixer_cls, norm_cls, fused_add_norm, residual_in_fp32)
        self.mlp = None
        if mlp_cls is not nn.Identity:
            self.norm2 = norm_cls(dim)
            self.mlp = mlp_cls(dim)

    def forward(
        self,
        hidden_states: Tensor,
        residual: Tensor | None = None,
        inference_params: Any = None,
        **mixer_options: Any,
    ) -> tuple[Tensor, Tensor]:
        """Run the block; see `residual_block.Block.forward`."""
        hidden_states, residual = super().forward(hidden_states, residual, inference_params, **mixer_options)
        if self.mlp is not None:
            hidden_states, residual = self._add_norm(hidden_states, residual, self.norm2)
            hidden_states = self.mlp(hidden_states)
        return hidden_states, residual
