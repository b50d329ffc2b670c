"""SS2D, VMamba's token mixer (arXiv 2401.10166, §4.2): project, convolve, scan four ways, norm, gate, project."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vmamba.errors import ConfigError, InputError
from vmamba.layers.activation import SoftmaxOverPlaces, make_activation
from vmamba.layers.basic import Conv2d, Pointwise
from vmamba.layers.chain import chain
from vmamba.layers.forward_type import ForwardType, OutNorm
from vmamba.layers.norm import LayerNorm, normed
from vmamba.layers.ssm_init import (
    DIRECTIONS,
    init_mamba2_parameters,
    init_projection_weight,
    init_scan_parameters,
)
from vmamba.scan import cascade_scan, ss2d_scan, ssd2d_scan
from vmamba.scan.dispatch import ambient, check_name


def make_out_norm(kind: OutNorm, d_inner: int) -> nn.Module:
    """Build what follows the scan. Submodules carry upstream's indices."""

    def depthwise() -> Conv2d:
        return Conv2d(d_inner, d_inner, kernel_size=3, padding=1, groups=d_inner, bias=False)

    if kind == "none":
        return nn.Identity()
    if kind == "dwconv3":
        return nn.Sequential(OrderedDict([("1", depthwise())]))
    if kind == "cnorm":
        return nn.Sequential(OrderedDict([("0", LayerNorm(d_inner)), ("2", depthwise())]))
    if kind == "softmax":
        return SoftmaxOverPlaces()
    if kind == "sigmoid":
        return nn.Sigmoid()
    return LayerNorm(d_inner)


class SS2D(nn.Module):
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
            convolution, SiLU, no projection bias and init ``v0``. ``m0`` scans as Mamba-2 does (`ssd_scan`): one decay
            a head, no step projection; it is never gated (``m0_noz``) and has init ``v1`` or ``v2`` only.
        channel_first: take and return ``(b, c, h, w)`` instead of ``(b, h, w, c)``.
        selective_scan_backend: the scan's implementation: None, ``"oflex"``, ``"mamba"`` or ``"torch"``. A call's
            own choice, `vmamba.backend` and the environment are stronger.

    Raises:
        ConfigError: an argument that is not legal.
        BackendError: an unknown backend name.
    """

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
    ) -> None:
        super().__init__()
        self.forward_type = kind = ForwardType.parse(forward_type)
        self.selective_scan_backend = check_name(selective_scan_backend)
        if kind.family == "v0":
            act_layer, d_conv, conv_bias, bias, initialize = nn.SiLU, 3, True, False, "v0"
        self.d_model = d_model
        self.d_inner = d = int(ssm_ratio * d_model)
        self.d_state = n = math.ceil(d_model / 6) if d_state == "auto" else int(d_state)
        self.dt_rank = r = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        if min(d, n, r) < 1:
            raise ConfigError(f"SS2D needs d_inner, d_state and dt_rank ≥ 1, given {d}, {n}, {r}")
        if d_conv > 1 and d_conv % 2 == 0:
            raise ConfigError(f"ssm_conv {d_conv} would shrink the map; give an odd number, or one below 2 for none")
        self.channel_first = channel_first

        # Keys come in upstream's order, which optimizer states in its checkpoints follow: the norm first, but in v0.
        if kind.family != "v0":
            self.out_norm = make_out_norm(kind.out_norm, d)
        self.in_proj = Pointwise(d_model, 2 * d if kind.gate else d, bias=bias)
        self.act = make_activation(act_layer)
        conv = (
            Conv2d(d, d, kernel_size=d_conv, padding=(d_conv - 1) // 2, groups=d, bias=conv_bias)
            if d_conv > 1
            else None
        )
        # Upstream permutes before and after the convolution in m0, which shows in its key.
        self.conv2d = conv if conv is None or kind.family != "m0" else nn.Sequential(OrderedDict([("1", conv)]))
        self.x_proj_weight = nn.Parameter(init_projection_weight(r + 2 * n, d))
        drawn = (
            init_mamba2_parameters(initialize, d, r)
            if kind.family == "m0"
            else init_scan_parameters(
                initialize,
                d,
                n,
                r,
                dt_min=dt_min,
                dt_max=dt_max,
                dt_init=dt_init,
                dt_scale=dt_scale,
                dt_init_floor=dt_init_floor,
            )
        )
        for name, value in drawn.items():
            self.register_parameter(name, nn.Parameter(value))
        if kind.family == "v0":
            self.out_norm = make_out_norm(kind.out_norm, d)
        self.out_act = nn.GELU() if kind.out_act else nn.Identity()
        self.out_proj = Pointwise(d, d_model, bias=bias)
        self.dropout = nn.Dropout(dropout)

    A_logs: nn.Parameter
    Ds: nn.Parameter
    dt_projs_weight: nn.Parameter  # but in m0
    dt_projs_bias: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        """``(b, h, w, c) → (b, h, w, c)``, or ``(b, c, h, w)`` both where ``channel_first``."""
        if x.dim() != 4 or x.shape[1 if self.channel_first else 3] != self.d_model:
            want = f"(b, {self.d_model}, h, w)" if self.channel_first else f"(b, h, w, {self.d_model})"
            raise InputError(f"SS2D takes {want}, given {tuple(x.shape)} (channel_first={self.channel_first})")
        if self.channel_first:
            return self._mix(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self._mix(x)

    def _mix(self, x: Tensor) -> Tensor:
        kind, z = self.forward_type, None
        x = self.in_proj(x)
        if kind.gate:
            x, z = x.chunk(2, dim=-1)
            z = self.act(z) if kind.gate_act else z
        x = self.act(x) if self.conv2d is None else chain(x, self.conv2d, self.act)
        # The scan's output stays float32 through the norm and takes the layer's dtype after it.
        y = self.out_act(normed(self.out_norm, self.scan(x), x.dtype))
        y = y if z is None else y * z
        out: Tensor = self.dropout(self.out_proj(y))
        return out

    def scan(self, x: Tensor) -> Tensor:
        """The scan itself: ``x (b, h, w, d) → y (b, h, w, d)``, float32 (float64 for float64 ``x``)."""
        kind = self.forward_type
        backend = ambient(self.selective_scan_backend)
        # Parameters of the recurrence enter in full precision, whatever the module was cast to.
        full = torch.float64 if self.A_logs.dtype == torch.float64 else torch.float32
        A = -torch.exp(self.A_logs.to(full))
        D, dt_bias = self.Ds.to(full), self.dt_projs_bias.to(full)
        dt_weight = None if kind.family == "m0" else self.dt_projs_weight.to(full)
        if kind.scan_mode == "cascade2d" and dt_weight is not None:
            return cascade_scan(x, self.x_proj_weight, dt_weight, dt_bias, A, D, backend=backend)
        rows = self.dt_rank + 2 * self.d_state
        x_dbl = nn.functional.linear(x, self.x_proj_weight.view(DIRECTIONS * rows, self.d_inner))
        x_dbl = x_dbl.unflatten(-1, (DIRECTIONS, rows))
        if kind.cast_float32:
            x, x_dbl = x.to(full), x_dbl.to(full)
        if dt_weight is None:
            return ssd2d_scan(x, x_dbl, dt_bias, A, D, kind.scan_mode, backend=backend)
        return ss2d_scan(x, x_dbl, dt_weight, dt_bias, A, D, kind.scan_mode, backend=backend)
