"""SS2D, VMamba's token mixer (arXiv 2401.10166, §4.2): project, convolve, scan four ways, norm, gate, project."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vmamba.errors import ConfigError
from vmamba.layers.basic import Conv2d
from vmamba.layers.forward_type import ForwardType, OutNorm
from vmamba.layers.mixer import ScanMixer, make_places_norm
from vmamba.layers.norm import LayerNorm
from vmamba.layers.ssm_init import init_mamba2_parameters, init_scan_parameters
from vmamba.scan import cascade_scan, ss2d_scan, ssd_order_scan
from vmamba.scan.any_order import MODE_ORDERS, ScanOrders, orders_of
from vmamba.scan.dispatch import ambient


def make_out_norm(kind: OutNorm, d_inner: int) -> nn.Module:
    """Build what follows the scan. Submodules carry upstream's indices."""

    def depthwise() -> Conv2d:
        return Conv2d(d_inner, d_inner, kernel_size=3, padding=1, groups=d_inner, bias=False)

    if kind == "dwconv3":
        return nn.Sequential(OrderedDict([("1", depthwise())]))
    if kind == "cnorm":
        return nn.Sequential(OrderedDict([("0", LayerNorm(d_inner)), ("2", depthwise())]))
    return make_places_norm(kind, d_inner)


class SS2D(ScanMixer):
    """The 2-d selective scan as a layer, with upstream's argument names.

    Args:
        d_model: channels ``c`` in and out.
        d_state: state size ``n``, or ``"auto"`` for ``⌈c / 6⌉``.
        ssm_ratio: ``d_inner = int(ssm_ratio · c)``.
        dt_rank: rank ``r`` of the step projection, or ``"auto"`` for ``⌈c / 16⌉``; with forward type ``m0`` the heads
            of each direction.
        act_layer: activation of the convolution's output and of the gate; a name or a class.
        d_conv: side of the depthwise convolution; below 2 there is none.
        conv_bias: whether that convolution has a bias.
        dropout: rate after the output projection.
        bias: whether the input and output projections have one.
        dt_min, dt_max, dt_init, dt_scale, dt_init_floor: the steps that init ``"v0"`` draws, see
            `init_scan_parameters`.
        initialize: ``"v0"``, ``"v1"`` or ``"v2"``, see `init_scan_parameters`.
        forward_type: upstream's string, see `ForwardType`. ``v0`` and ``v0seq`` always have a biased 3×3
            convolution, SiLU, no projection bias and init ``v0``. ``m0`` scans as Mamba-2 does (`ssd_order_scan`):
            one decay a head, no step projection; it is never gated (``m0_noz``) and has init ``v1`` or ``v2`` only.
        scan_orders: in which directions the map is read, in place of the forward type's four: a name out of
            ``cross``, ``diagonal`` and ``windows``, or a list of `AxisOrder`, `IndexOrder`, `RuleOrder` or functions
            ``(h, w) → places``. Each direction has parameters of its own, in this order.
        share_directions: one set of scan parameters for all directions.
        channel_first: take and return ``(b, c, h, w)`` instead of ``(b, h, w, c)``.
        selective_scan_backend: the scan's implementation: None, ``"oflex"``, ``"mamba"`` or ``"torch"``. A call's
            own choice, `vmamba.backend` and the environment are stronger.

    Raises:
        ConfigError: an argument that is not legal.
        BackendError: an unknown backend name.
    """

    SIZES = "h, w"
    CONV = "conv2d"

    conv2d: nn.Module | None

    def __init__(
        self,
        d_model: int = 96,
        d_state: int | str = 16,
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
        forward_type: str = "v2",
        channel_first: bool = False,
        selective_scan_backend: str | None = None,
        scan_orders: ScanOrders | None = None,
        share_directions: bool = False,
    ) -> None:
        kind = ForwardType.parse(forward_type)
        if kind.family == "v0":
            act_layer, d_conv, conv_bias, bias, initialize = nn.SiLU, 3, True, False, "v0"
        if d_conv > 1 and d_conv % 2 == 0:
            raise ConfigError(f"ssm_conv {d_conv} would shrink the map; give an odd number, or one below 2 for none")
        orders = None if scan_orders is None else orders_of(scan_orders, 2)
        if (orders is not None or share_directions) and kind.scan_mode != "cross2d":
            raise ConfigError(
                f"forward_type {forward_type!r} names directions of its own ({kind.scan_mode}); with scan_orders or "
                "share_directions give one of the cross-scan, such as 'v05_noz'"
            )

        def make_conv(d: int) -> nn.Module | None:
            if d_conv <= 1:
                return None
            conv = Conv2d(d, d, kernel_size=d_conv, padding=(d_conv - 1) // 2, groups=d, bias=conv_bias)
            # Upstream permutes before and after the convolution in m0, which shows in its key.
            return conv if kind.family != "m0" else nn.Sequential(OrderedDict([("1", conv)]))

        def draw(d: int, n: int, r: int, directions: int) -> dict[str, Tensor]:
            if kind.family == "m0":
                return init_mamba2_parameters(initialize, d, r, directions)
            return init_scan_parameters(
                initialize, d, n, r, directions,
                dt_min=dt_min, dt_max=dt_max, dt_init=dt_init, dt_scale=dt_scale, dt_init_floor=dt_init_floor,
            )  # fmt: skip

        super().__init__(
            kind,
            d_model,
            d_state,
            ssm_ratio,
            dt_rank,
            act_layer,
            make_conv,
            lambda d: make_out_norm(kind.out_norm, d),
            dropout,
            bias,
            draw,
            orders,
            share_directions,
            channel_first,
            selective_scan_backend,
        )

    def scan(self, x: Tensor) -> Tensor:
        """The scan itself: ``x (b, h, w, d) → y (b, h, w, d)``, float32 (float64 for float64 ``x``)."""
        kind, backend = self.forward_type, ambient(self.selective_scan_backend)
        mode = kind.scan_mode
        if kind.family == "m0":
            orders = MODE_ORDERS[mode] if self.scan_orders is None else self.scan_orders
            return ssd_order_scan(*self._projected(x), *self._recurrence_of_heads(), orders, backend=backend)
        if self.scan_orders is not None:
            return super().scan(x)
        recurrence = self._recurrence()
        if mode == "cascade2d":
            return cascade_scan(x, self.x_proj_weight, *recurrence, backend=backend)
        return ss2d_scan(*self._projected(x), *recurrence, mode, backend=backend)

    def _recurrence_of_heads(self) -> tuple[Tensor, Tensor, Tensor]:
        """``dt_bias (k, r)``, ``A (k, r)`` and ``D (k, r, d/r)`` of all directions of Mamba-2's scan."""
        dt_bias, A_logs, D = map(self._in_full, (self.dt_projs_bias, self.A_logs, self.Ds))
        k = self.directions
        return dt_bias.expand(k, -1), -torch.exp(A_logs).expand(k, -1), D.expand(k, -1, -1)
