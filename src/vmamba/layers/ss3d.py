"""SS3D: the selective scan as a layer over volumes, along each axis both ways."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from vmamba.errors import ConfigError
from vmamba.layers.conv import DepthwiseConv3d
from vmamba.layers.forward_type import OutNorm
from vmamba.layers.mixer import ScanMixer, make_places_norm, surroundings
from vmamba.layers.ssm_init import init_scan_parameters
from vmamba.scan.any_order import ScanOrders, orders_of


class SS3D(ScanMixer):
    """The selective scan over volumes ``(b, z, h, w, c)``: `SS2D` with one axis more.

    Args:
        d_conv: side of the depthwise convolution; below 2 there is none.
        gate: whether the input projection also gives a gate, by which the output is multiplied.
        out_norm: what follows the scan: ``"ln"``, ``"none"``, ``"softmax"`` (over the places) or ``"sigmoid"``.
        scan_orders: the directions, as of `SS2D`; if not given, along each axis both ways, see `cross`.
        d_model, d_state, ssm_ratio, dt_rank, act_layer, conv_bias, dropout, bias, dt_min, dt_max, dt_init, dt_scale,
            dt_init_floor, initialize, channel_first, selective_scan_backend, share_directions: see `SS2D`.

    Raises:
        ConfigError: an argument that is not legal.
        BackendError: an unknown backend name.
    """

    SIZES = "z, h, w"
    CONV = "conv3d"

    conv3d: DepthwiseConv3d | None

    def __init__(
        self,
        d_model: int = 96,
        d_state: int | str = 1,
        ssm_ratio: float = 2.0,
        dt_rank: int | str = "auto",
        act_layer: str | Callable[[], nn.Module] = nn.SiLU,
        d_conv: int = 3,
        conv_bias: bool = True,
        dropout: float = 0.0,
        bias: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        initialize: str = "v0",
        gate: bool = False,
        out_norm: OutNorm = "ln",
        scan_orders: ScanOrders | None = None,
        share_directions: bool = False,
        channel_first: bool = False,
        selective_scan_backend: str | None = None,
    ) -> None:
        if d_conv > 1 and d_conv % 2 == 0:
            raise ConfigError(f"d_conv {d_conv} would shrink the volume; give an odd number, or one below 2 for none")

        draw = partial(
            init_scan_parameters,
            initialize,
            dt_min=dt_min,
            dt_max=dt_max,
            dt_init=dt_init,
            dt_scale=dt_scale,
            dt_init_floor=dt_init_floor,
        )
        super().__init__(
            surroundings(gate, out_norm),
            d_model,
            d_state,
            ssm_ratio,
            dt_rank,
            act_layer,
            lambda d: DepthwiseConv3d(d, d_conv, conv_bias) if d_conv > 1 else None,
            lambda d: make_places_norm(out_norm, d),
            dropout,
            bias,
            draw,
            orders_of("cross" if scan_orders is None else scan_orders, 3),
            share_directions,
            channel_first,
            selective_scan_backend,
        )
