"""The VSS block (arXiv 2401.10166, §4.3): a residual SS2D and a residual MLP, each behind a norm."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from vmamba.layers.block import MixerBlock
from vmamba.layers.ss2d import SS2D


class VSSBlock(MixerBlock):
    """``x + SS2D(norm(x))``, then ``x + MLP(norm(x))``, with upstream's argument names.

    Args:
        hidden_dim: channels ``c``.
        drop_path: stochastic depth's rate of both branches.
        norm_layer: ``"ln"``, ``"ln2d"``, ``"bn"`` or a class.
        channel_first: take and return ``(b, c, h, w)`` instead of ``(b, h, w, c)``.
        ssm_d_state: `SS2D`'s ``d_state``.
        ssm_ratio: its ``ssm_ratio``; 0 leaves the SS2D branch out.
        ssm_dt_rank: its ``dt_rank``.
        ssm_act_layer: its ``act_layer``.
        ssm_conv: its ``d_conv``.
        ssm_conv_bias: its ``conv_bias``.
        ssm_drop_rate: its ``dropout``.
        ssm_init: its ``initialize``.
        forward_type: its ``forward_type``.
        mlp_ratio: the MLP's hidden width over ``c``; 0 leaves the MLP branch out.
        mlp_act_layer: its activation.
        mlp_drop_rate: its dropout.
        gmlp: use the gated MLP.
        use_checkpoint: recompute the block in backward instead of keeping its activations.
        post_norm: norm each branch's output instead of its input.
        selective_scan_backend: see `SS2D`.

    Raises:
        ConfigError: as `SS2D`.
        BackendError: as `SS2D`.
    """

    SIZES = SS2D.SIZES

    op: SS2D

    def __init__(
        self,
        hidden_dim: int = 0,
        drop_path: float = 0.0,
        norm_layer: str | Callable[[int], nn.Module] = nn.LayerNorm,
        channel_first: bool = False,
        ssm_d_state: int | str = 16,
        ssm_ratio: float = 2.0,
        ssm_dt_rank: int | str = "auto",
        ssm_act_layer: str | Callable[[], nn.Module] = nn.SiLU,
        ssm_conv: int = 3,
        ssm_conv_bias: bool = True,
        ssm_drop_rate: float = 0.0,
        ssm_init: str = "v0",
        forward_type: str = "v2",
        mlp_ratio: float = 4.0,
        mlp_act_layer: str | Callable[[], nn.Module] = nn.GELU,
        mlp_drop_rate: float = 0.0,
        gmlp: bool = False,
        use_checkpoint: bool = False,
        post_norm: bool = False,
        selective_scan_backend: str | None = None,
    ) -> None:
        def make_mixer() -> SS2D:
            return SS2D(
                d_model=hidden_dim,
                d_state=ssm_d_state,
                ssm_ratio=ssm_ratio,
                dt_rank=ssm_dt_rank,
                act_layer=ssm_act_layer,
                d_conv=ssm_conv,
                conv_bias=ssm_conv_bias,
                dropout=ssm_drop_rate,
                initialize=ssm_init,
                forward_type=forward_type,
                selective_scan_backend=selective_scan_backend,
            )

        super().__init__(
            hidden_dim,
            make_mixer if ssm_ratio > 0 else None,
            drop_path,
            norm_layer,
            channel_first,
            mlp_ratio,
            mlp_act_layer,
            mlp_drop_rate,
            gmlp,
            use_checkpoint,
            post_norm,
        )
