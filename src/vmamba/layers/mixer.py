"""What `SS1D`, `SS2D` and `SS3D` share: project, convolve, scan, norm, gate, project."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from vmamba.errors import ConfigError, InputError, nearest
from vmamba.layers.activation import SoftmaxOverPlaces, make_activation
from vmamba.layers.basic import Pointwise
from vmamba.layers.chain import chain
from vmamba.layers.forward_type import ForwardType, OutNorm
from vmamba.layers.norm import LayerNorm, normed
from vmamba.layers.ssm_init import DIRECTIONS, init_projection_weight
from vmamba.scan.any_order import ScanOrder, order_scan
from vmamba.scan.dispatch import ambient, check_name

#: What may follow the scan of maps that have not two axes.
_PLACES_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "ln": LayerNorm,
    "none": lambda d: nn.Identity(),
    "softmax": lambda d: SoftmaxOverPlaces(),
    "sigmoid": lambda d: nn.Sigmoid(),
}


def make_places_norm(kind: str, d_inner: int) -> nn.Module:
    """Build what follows the scan of a map with any number of axes.

    Raises:
        ConfigError: an unknown kind, or one of 2-d maps.
    """
    if kind not in _PLACES_NORMS:
        raise ConfigError(
            f"out_norm {kind!r} is unknown here; legal: {', '.join(_PLACES_NORMS)}{nearest(kind, _PLACES_NORMS)}"
        )
    return _PLACES_NORMS[kind](d_inner)


def surroundings(gate: bool, out_norm: OutNorm) -> ForwardType:
    """What surrounds a scan in orders of its own, in the terms of `ForwardType`."""
    return ForwardType(
        family="v2",
        scan_mode="orders",
        cast_float32=False,
        gate=gate,
        gate_act=True,
        out_act=False,
        out_norm=out_norm,
    )


def check_map(taker: str, x: Tensor, sizes: str, channels: int, channel_first: bool) -> None:
    """Make sure that ``x`` is ``(b, *sizes, channels)``, or ``(b, channels, *sizes)`` where ``channel_first``.

    Args:
        taker: who takes it, for the message.
        x: what is given.
        sizes: names of the map's axes, such as ``"h, w"``.
        channels: how many there must be.
        channel_first: where they must be.

    Raises:
        InputError: it is of another shape.
    """
    if x.dim() != sizes.count(",") + 3 or x.shape[1 if channel_first else -1] != channels:
        want = f"(b, {channels}, {sizes})" if channel_first else f"(b, {sizes}, {channels})"
        raise InputError(f"{taker} takes {want}, given {tuple(x.shape)} (channel_first={channel_first})")


class ScanMixer(nn.Module):
    """A token mixer over maps ``(b, *sizes, c)``; its subclasses say of how many axes, and how they convolve.

    Args:
        kind: what surrounds the scan.
        d_model, d_state, ssm_ratio, dt_rank, act_layer, dropout, bias, channel_first, selective_scan_backend: see
            `SS2D`.
        make_conv: builds the depthwise convolution over ``d_inner`` channels, or gives None for none.
        make_out_norm: builds what follows the scan.
        draw: draws the recurrence's parameters for ``d``, ``n``, ``r`` and so many directions.
        scan_orders: the directions, or None where the subclass scans in `ForwardType`'s scan mode.
        share_directions: one set of scan parameters for all directions.

    Raises:
        ConfigError: an argument that is not legal.
        BackendError: an unknown backend name.
    """

    #: The map's axes, for messages.
    SIZES: ClassVar[str]
    #: The attribute that holds the convolution.
    CONV: ClassVar[str]

    A_logs: nn.Parameter
    Ds: nn.Parameter
    dt_projs_weight: nn.Parameter  # but in m0
    dt_projs_bias: nn.Parameter

    def __init__(
        self,
        kind: ForwardType,
        d_model: int,
        d_state: int | str,
        ssm_ratio: float,
        dt_rank: int | str,
        act_layer: str | Callable[[], nn.Module],
        make_conv: Callable[[int], nn.Module | None],
        make_out_norm: Callable[[int], nn.Module],
        dropout: float,
        bias: bool,
        draw: Callable[[int, int, int, int], Mapping[str, Tensor]],
        scan_orders: tuple[ScanOrder, ...] | None,
        share_directions: bool,
        channel_first: bool,
        selective_scan_backend: str | None,
    ) -> None:
        super().__init__()
        self.forward_type = kind
        self.selective_scan_backend = check_name(selective_scan_backend)
        self.d_model = d_model
        self.d_inner = d = int(ssm_ratio * d_model)
        self.d_state = n = math.ceil(d_model / 6) if d_state == "auto" else int(d_state)
        self.dt_rank = r = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        if min(d, n, r) < 1:
            raise ConfigError(f"{type(self).__name__} needs d_inner, d_state and dt_rank ≥ 1, given {d}, {n}, {r}")
        self.channel_first = channel_first
        self.scan_orders = scan_orders
        self.directions = DIRECTIONS if scan_orders is None else len(scan_orders)
        self.share_directions = share_directions
        sets = 1 if share_directions else self.directions

        # Keys come in upstream's order, which optimizer states in its checkpoints follow: the norm first, but in v0.
        if kind.family != "v0":
            self.out_norm = make_out_norm(d)
        self.in_proj = Pointwise(d_model, 2 * d if kind.gate else d, bias=bias)
        self.act = make_activation(act_layer)
        setattr(self, self.CONV, make_conv(d))
        self.x_proj_weight = nn.Parameter(init_projection_weight(r + 2 * n, d, sets))
        for name, value in draw(d, n, r, sets).items():
            self.register_parameter(name, nn.Parameter(value))
        if kind.family == "v0":
            self.out_norm = make_out_norm(d)
        self.out_act = nn.GELU() if kind.out_act else nn.Identity()
        self.out_proj = Pointwise(d, d_model, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, *sizes, c) → (b, *sizes, c)``, or ``(b, c, *sizes)`` both where ``channel_first``."""
        self._check(x)
        return self._mix(x.movedim(1, -1)).movedim(-1, 1) if self.channel_first else self._mix(x)

    def _check(self, x: Tensor) -> None:
        check_map(type(self).__name__, x, self.SIZES, self.d_model, self.channel_first)

    def _mix(self, x: Tensor) -> Tensor:
        x, z = self._entered(x)
        conv: nn.Module | None = getattr(self, self.CONV)
        x = self.act(x) if conv is None else chain(x, conv, self.act)
        return self._left(self.scan(x), x.dtype, z)

    def _entered(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What goes to the convolution, and the gate."""
        kind = self.forward_type
        x = self.in_proj(x)
        if not kind.gate:
            return x, None
        x, z = x.chunk(2, dim=-1)
        return x, self.act(z) if kind.gate_act else z

    def _left(self, y: Tensor, dtype: torch.dtype, z: Tensor | None) -> Tensor:
        """From the scan's output, which stays float32 through the norm and takes the layer's dtype after it."""
        y = self.out_act(normed(self.out_norm, y, dtype))
        y = y if z is None else y * z
        out: Tensor = self.dropout(self.out_proj(y))
        return out

    def scan(self, x: Tensor) -> Tensor:
        """The scan itself: ``x (b, *sizes, d) → y (b, *sizes, d)``, float32 (float64 for float64 ``x``)."""
        assert self.scan_orders is not None
        backend = ambient(self.selective_scan_backend)
        x, x_dbl = self._projected(x)
        return order_scan(x, x_dbl, *self._recurrence(), self.scan_orders, backend=backend)

    @property
    def _full(self) -> torch.dtype:
        """The parameters of the recurrence enter in full precision, whatever the module was cast to."""
        return torch.float64 if self.A_logs.dtype == torch.float64 else torch.float32

    def _in_full(self, parameter: Tensor) -> Tensor:
        return parameter.to(self._full)

    def _recurrence(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``dt_weight (k, d, r)``, ``dt_bias (k, d)``, ``A (k·d, n)`` and ``D (k·d)`` of all directions."""
        k, A = self.directions, -torch.exp(self._in_full(self.A_logs))
        D, dt_weight, dt_bias = map(self._in_full, (self.Ds, self.dt_projs_weight, self.dt_projs_bias))
        if self.share_directions:
            A, D = A.repeat(k, 1), D.repeat(k)
            dt_weight, dt_bias = dt_weight.expand(k, -1, -1), dt_bias.expand(k, -1)
        return dt_weight, dt_bias, A, D

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` and, for every direction, its low-rank step, B and C: ``x_dbl (b, *sizes, k, r + 2n)``."""
        sets, rows, _ = self.x_proj_weight.shape
        x_dbl = nn.functional.linear(x, self.x_proj_weight.view(sets * rows, self.d_inner))
        x_dbl = x_dbl.unflatten(-1, (sets, rows))
        if self.forward_type.cast_float32:
            x, x_dbl = x.to(self._full), x_dbl.to(self._full)
        if self.share_directions:
            x_dbl = x_dbl.expand(*x_dbl.shape[:-2], self.directions, -1)
        return x, x_dbl
