"""The VSS block over volumes: a residual SS3D and a residual MLP, each behind a norm."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from vmamba.layers.block import MixerBlock
from vmamba.layers.ss3d import SS3D
from vmamba.scan.any_order import ScanOrders


class VSSBlock3D(MixerBlock):
    """``x + SS3D(norm(x))``, then ``x + MLP(norm(x))``, over ``(b, z, h, w, c)``.

    Args:
        hidden_dim, drop_path, norm_layer, channel_first, ssm_d_state, ssm_ratio, ssm_dt_rank, ssm_act_layer, ssm_conv,
            ssm_conv_bias, ssm_drop_rate, ssm_init, mlp_ratio, mlp_act_layer, mlp_drop_rate, gmlp, use_checkpoint,
            post_norm, selective_scan_backend: see `VSSBlock`; as norm ``"ln"`` or a class.
        gate, scan_orders, share_directions: see `SS3D`.

    Raises:
        ConfigError: as `SS3D`.
        BackendError: as `SS3D`.
    """

    SIZES = SS3D.SIZES

    op: SS3D

    def __init__(
        self,
        hidden_dim: int = 0,
        drop_path: float = 0.0,
        norm_layer: str | Callable[[int], nn.Module] = nn.LayerNorm,
        channel_first: bool = False,
        ssm_d_state: int | str = 1,
        ssm_ratio: float = 2.0,
        ssm_dt_rank: int | str = "auto",
        ssm_act_layer: str | Callable[[], nn.Module] = nn.SiLU,
        ssm_conv: int = 3,
        ssm_conv_bias: bool = True,
        ssm_drop_rate: float = 0.0,
        ssm_init: str = "v0",
        gate: bool = False,
        scan_orders: ScanOrders | None = None,
        share_directions: bool = False,
        mlp_ratio: float = 4.0,
        mlp_act_layer: str | Callable[[], nn.Module] = nn.GELU,
        mlp_drop_rate: float = 0.0,
        gmlp: bool = False,
        use_checkpoint: bool = False,
        post_norm: bool = False,
        selective_scan_backend: str | None = None,
    ) -> None:
        def make_mixer() -> SS3D:
            return SS3D(
                d_model=hidden_dim,
                d_state=ssm_d_state,
                ssm_ratio=ssm_ratio,
                dt_rank=ssm_dt_rank,
                act_layer=ssm_act_layer,
                d_conv=ssm_conv,
                conv_bias=ssm_conv_bias,
                dropout=ssm_drop_rate,
                initialize=ssm_init,
                gate=gate,
                scan_orders=scan_orders,
                share_directions=share_directions,
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
