"""SS1D: the selective scan as a layer over sequences, one way with states, or both ways."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from vmamba.errors import ConfigError, InputError
from vmamba.layers.conv import DepthwiseConv1d
from vmamba.layers.forward_type import OutNorm
from vmamba.layers.mixer import ScanMixer, make_places_norm, surroundings
from vmamba.layers.ssm_init import init_scan_parameters
from vmamba.scan import selective_scan
from vmamba.scan.any_order import AxisOrder, ScanOrders, orders_of
from vmamba.scan.dispatch import ambient
from vmamba.scan.ss2d_scan import step_projection


class SS1DState(NamedTuple):
    """All that a causal `SS1D` knows of the places it has seen.

    Attributes:
        convolution: the convolution's last inputs, ``(b, d_conv - 1, d)``, the latest last.
        scan: the recurrence's state, ``(b, d, n)``.
    """

    convolution: Tensor
    scan: Tensor


class SS1D(ScanMixer):
    """The selective scan over sequences ``(b, l, c)`` (Mamba, arXiv 2312.00752, §3.4, with SS2D's surroundings).

    Args:
        causal: no place knows of those after it: one scan and a convolution over the places before. Only then there
            are states: a sequence in pieces, or place by place, gives what it gives whole.
        d_conv: places of the convolution; below 2 there is none. Odd where it is not causal.
        gate, out_norm: see `SS3D`.
        scan_orders: the directions of a layer that is not causal; both ways if not given.
        d_model, d_state, ssm_ratio, dt_rank, act_layer, conv_bias, dropout, bias, dt_min, dt_max, dt_init, dt_scale,
            dt_init_floor, initialize, channel_first, selective_scan_backend, share_directions: see `SS2D`.

    Raises:
        ConfigError: an argument that is not legal.
        BackendError: an unknown backend name.
    """

    SIZES = "l"
    CONV = "conv1d"

    conv1d: DepthwiseConv1d | None

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
        causal: bool = True,
        gate: bool = False,
        out_norm: OutNorm = "ln",
        scan_orders: ScanOrders | None = None,
        share_directions: bool = False,
        channel_first: bool = False,
        selective_scan_backend: str | None = None,
    ) -> None:
        if causal and scan_orders is not None:
            raise ConfigError(
                "a causal SS1D reads from the first place to the last; give scan_orders with causal=False"
            )
        if causal and out_norm == "softmax":
            raise ConfigError("out_norm 'softmax' goes over all places, so the layer cannot be causal; give 'ln'")
        if not causal and d_conv > 1 and d_conv % 2 == 0:
            raise ConfigError(f"d_conv {d_conv} would shrink the sequence; give an odd number, or causal=True")
        orders = (AxisOrder((0,)),) if causal else orders_of("cross" if scan_orders is None else scan_orders, 1)

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
            lambda d: DepthwiseConv1d(d, d_conv, conv_bias, causal=causal) if d_conv > 1 else None,
            lambda d: make_places_norm(out_norm, d),
            dropout,
            bias,
            draw,
            orders,
            share_directions,
            channel_first,
            selective_scan_backend,
        )
        self.causal = causal

    @overload
    def forward(
        self, x: Tensor, initial_state: SS1DState | None = None, return_last_state: Literal[False] = False
    ) -> Tensor: ...

    @overload
    def forward(
        self, x: Tensor, initial_state: SS1DState | None = None, *, return_last_state: Literal[True]
    ) -> tuple[Tensor, SS1DState]: ...

    def forward(
        self, x: Tensor, initial_state: SS1DState | None = None, return_last_state: bool = False
    ) -> Tensor | tuple[Tensor, SS1DState]:
        """``(b, l, c) → (b, l, c)``, or ``(b, c, l)`` both where ``channel_first``.

        Args:
            x: the sequence, or the piece that follows on what ``initial_state`` has seen.
            initial_state: of a causal layer; None for the beginning.
            return_last_state: also return the state behind the last place. It carries gradients.

        Raises:
            InputError: another shape, a state that does not fit, or one of a layer that is not causal.
        """
        if initial_state is None and not return_last_state:
            return super().forward(x)
        self._check(x)
        if not self.causal:
            raise InputError("this SS1D reads both ways, so it has no states; build it with causal=True")
        x = x.transpose(1, 2) if self.channel_first else x
        y, last = self._continued(x, self.empty_state(x) if initial_state is None else initial_state)
        y = y.transpose(1, 2) if self.channel_first else y
        return (y, last) if return_last_state else y

    def step(self, x: Tensor, state: SS1DState) -> tuple[Tensor, SS1DState]:
        """One place of each sequence: ``x (b, c)`` and what came before it to ``y (b, c)`` and the state behind it.

        Raises:
            InputError: as `forward`.
        """
        if x.dim() != 2 or x.shape[1] != self.d_model:
            raise InputError(f"SS1D.step takes (b, {self.d_model}), given {tuple(x.shape)}")
        axis = 2 if self.channel_first else 1
        y, last = self.forward(x.unsqueeze(axis), state, return_last_state=True)
        return y.squeeze(axis), last

    def empty_state(self, like: Tensor) -> SS1DState:
        """The state before the first place, for as many sequences as ``like`` has, on its device.

        Raises:
            InputError: the layer is not causal.
        """
        if not self.causal:
            raise InputError("this SS1D reads both ways, so it has no states; build it with causal=True")
        reach = 0 if self.conv1d is None else self.conv1d.kernel_size[0] - 1
        weight, batch = self.in_proj.weight, like.shape[0]
        convolution = torch.zeros(batch, reach, self.d_inner, dtype=weight.dtype, device=like.device)
        return SS1DState(
            convolution, torch.zeros(batch, self.d_inner, self.d_state, dtype=self._full, device=like.device)
        )

    def _continued(self, x: Tensor, state: SS1DState) -> tuple[Tensor, SS1DState]:
        """``x (b, l, c)`` behind a state; the output and the state behind it."""
        want = [tuple(t.shape) for t in self.empty_state(x)]
        if [tuple(t.shape) for t in state] != want:
            raise InputError(
                f"initial_state has shapes {[tuple(t.shape) for t in state]}, want convolution and scan of {want}; "
                "it comes from this layer's return_last_state, step or empty_state"
            )
        x, z = self._entered(x)
        seen = state.convolution.to(x.dtype)
        if self.conv1d is not None:
            entered = x
            x = self.conv1d(entered, seen)
            seen = torch.cat([seen, entered], dim=1)[:, entered.shape[1] :]
        x = self.act(x)
        dt_weight, dt_bias, A, D = self._recurrence()
        u, x_dbl = self._projected(x)
        rows = x_dbl.permute(0, 2, 3, 1)  # (b, 1, r + 2n, l)
        low_rank, B, C = rows.split([self.dt_rank, self.d_state, self.d_state], dim=2)
        delta = step_projection(dt_weight, low_rank, u.dtype).flatten(1, 2)
        y, last = selective_scan(
            u.transpose(1, 2), delta, A, B, C, D, dt_bias.flatten(), True, initial_state=state.scan,
            return_last_state=True, backend=ambient(self.selective_scan_backend),
        )  # fmt: skip
        return self._left(y.transpose(1, 2), x.dtype, z), SS1DState(seen, last)
