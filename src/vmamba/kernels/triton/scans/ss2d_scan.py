"""The fused 2-d scan on a GPU: four directions over channels-last memory, projected inside, summed in place."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vmamba.kernels.triton.scans.launch import Backward, Forward, Inputs, Scan, Workspace, offset, plan_of
from vmamba.kernels.triton.scans.plan import Plan, group_of, pairs

_DIRECTIONS = 4
_ALIGNED = 4  # elements: states are loaded in fours at most


def saved_shape(x: Tensor, A: Tensor) -> tuple[int, ...]:
    """Where the kernels keep states for backward: before every group of places, ``(groups + 1, b, 4, n, d)``.

    There is room for one more, so that no size is 1, for which compilers make graphs of their own.
    """
    b, h, w, d = x.shape
    return (h * w - 1) // group_of(A.shape[1]) + 2, b, _DIRECTIONS, A.shape[1], d


class _Layout(NamedTuple):
    """How a tensor lies in memory."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int  # elements from an address that every load's alignment divides
    dtype: torch.dtype

    def empty(self) -> Tensor:
        """A tensor that lies so, without memory."""
        end = self.offset + 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        memory = torch.empty(end, dtype=self.dtype, device="meta")
        return memory.as_strided(self.shape, self.strides, self.offset)


def _layout(t: Tensor) -> _Layout:
    return _Layout(t.shape, t.stride(), offset(t) % _ALIGNED, t.dtype)


class _Call(NamedTuple):
    """All that decides how a scan is launched."""

    plan: Plan
    x: _Layout
    x_dbl: _Layout
    rank: int
    states: int
    bias: bool
    skip: bool
    readings: tuple[int, ...]
    softplus: bool

    def scan(self) -> tuple[Scan, Tensor]:
        """It, and a float32 map as its output and gradients are."""
        b, h, w, d = self.x.shape
        x, x_dbl = self.x.empty(), self.x_dbl.empty()
        by_direction = x_dbl.flatten(1, 2).transpose(1, 2)  # (b, k, l, r + 2n)
        steps, B, C = by_direction.split([self.rank, self.states, self.states], dim=3)

        def parameter(*shape: int) -> Tensor:
            return torch.empty(shape, device="meta")

        inputs = Inputs(
            _shared(x), steps, parameter(_DIRECTIONS, d, self.rank), parameter(_DIRECTIONS * d) if self.bias else None,
            parameter(_DIRECTIONS * d, self.states), B, C, parameter(_DIRECTIONS * d) if self.skip else None,
        )  # fmt: skip
        return Scan(inputs, pairs(self.readings, h, w), self.softplus, self.plan), _shared(parameter(b, h, w, d))


def _shared(t: Tensor) -> Tensor:
    """``(b, h, w, d)`` as ``(b, k, l, d)``: all directions have the same pixels."""
    return t.flatten(1, 2)[:, None].expand(-1, _DIRECTIONS, -1, -1)


@functools.lru_cache(1024)
def _forward(call: _Call, save: bool) -> Forward:
    scan, out = call.scan()
    return scan.forward(out, save=save)


@functools.lru_cache(1024)
def _backward(call: _Call) -> Backward:
    scan, out = call.scan()
    return scan.backward(out, out, None)


def _prepared(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    readings: Sequence[int],
    delta_softplus: bool,
) -> tuple[_Call, Inputs]:
    rank, states = dt_weight.shape[2], A.shape[1]
    x, x_dbl = _flat(x), _flat(x_dbl)
    skip, bias = D is not None, dt_bias is not None
    layouts = _layout(x), _layout(x_dbl)
    call = _Call(plan_of(x, A, 1, rank), *layouts, rank, states, bias, skip, tuple(readings), delta_softplus)
    # The kernels know the strides: of views only where they begin counts.
    steps, B, C = x_dbl.split_with_sizes([rank, states, states], -1)
    return call, Inputs(x, steps, dt_weight, dt_bias, A, B, C, D)


def _flat(t: Tensor) -> Tensor:
    """``(b, h, w, …)`` with the numbers of a pixel beside each other, and one distance from pixel to pixel."""
    strides = t.stride()
    return t if strides[-1] == 1 and strides[1] == t.shape[2] * strides[2] else t.contiguous()


def forward(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    readings: Sequence[int],
    delta_softplus: bool,
    y: Tensor,
    saved: Tensor | None,
    workspace: Workspace,
) -> str:
    """Fill ``y (b, h, w, d)``, contiguous, float32, and the states that backward starts from; not for empty maps.

    Args:
        x, x_dbl, dt_weight, dt_bias, A, D, delta_softplus: as of `vmamba.scan.ss2d_scan`; parameters float32.
        readings: of the scan mode, see `vmamba.scan.orders.readings_of`.
        saved: of `saved_shape`, or None where nothing is to be kept.
        workspace: makes memory for this call.

    Returns:
        what ran.
    """
    call, inputs = _prepared(x, x_dbl, dt_weight, dt_bias, A, D, readings, delta_softplus)
    return _forward(call, saved is not None)(inputs, y, saved, workspace)


def backward(
    dy: Tensor,
    saved: Tensor,
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    readings: Sequence[int],
    delta_softplus: bool,
    gradients: Sequence[Tensor | None],
    workspace: Workspace,
) -> None:
    """Fill the gradients of ``x, x_dbl, dt_weight, dt_bias, A, D``, None where the input is; not for empty maps.

    Args:
        dy: ``(b, h, w, d)``, contiguous, float32.
        gradients: contiguous, float32, in their inputs' shapes.
    """
    dx, dx_dbl, d_dt_weight, d_dt_bias, dA, dD = gradients
    assert dx is not None
    assert dx_dbl is not None
    call, inputs = _prepared(x, x_dbl, dt_weight, dt_bias, A, D, readings, delta_softplus)
    found = _backward(call)(inputs, dy, saved, dx, None, workspace)
    torch.sum(found.columns, 0, out=dx_dbl.view(found.columns.shape[1:]))
    found.fill(d_dt_weight, d_dt_bias, dA, dD)
