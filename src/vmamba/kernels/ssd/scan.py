"""Mamba-2's scan as backend ``"torch"`` runs it: derivatives, and the operator that stands for it in graphs.

Exports see plain operations. `torch.compile` and counters of operations see one operator in their place, as of the
selective scan and for the same reasons (`vmamba.kernels.torch_prefix`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vmamba import _torch
from vmamba.kernels.gradients import fake_results, given, no_second_derivatives, or_zeros, results
from vmamba.kernels.interface import ScanRun, record
from vmamba.kernels.ssd import maps
from vmamba.kernels.ssd.maps import MapScan

_TENSORS = 7  # of the fields of `MapScan`: those that have gradients, and the places


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    start: Tensor | None,
    places: Tensor | None,
    axes: Sequence[int],
    flips: Sequence[int],
    ends: bool,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """`maps.forward`, all float32 or all float64, in the form that who looks on can take.

    Derivatives of every kind and order are right; in a graph made by `torch.compile` second ones raise an error.
    """
    scan = MapScan(x, dt, log_decay, B, C, start, places, list(axes), list(flips), ends, chunk_size)
    if _torch.is_exporting():
        return maps.forward(scan)
    if torch.compiler.is_compiling():
        # What transforms trace with are plain operations.
        y, last = maps.forward(scan) if _torch.is_functorch_traced() else torch.ops.vmamba.torch_ssd(*scan)
        return y, last
    record(ScanRun("torch", "ssd_scan"))
    if _torch.is_transformed():  # what batches and differentiates plain operations
        return maps.forward(scan)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in scan.differentiable):
        y, last = _Scan.apply(*scan)
        return y, last
    with torch.no_grad():
        return _eager(scan)


class _Scan(torch.autograd.Function):
    """`maps.forward` with a backward that keeps the inputs only, and makes states and products anew."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return _eager(MapScan(*inputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:_TENSORS])
        ctx.options = inputs[_TENSORS:]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        scan = MapScan(*ctx.saved_tensors, *ctx.options)
        dy = or_zeros(dy, scan.x)
        if torch.is_grad_enabled():
            found = _gradients_with_a_graph(dy, dlast, scan)
        elif _torch.is_counted():
            found = given(torch.ops.vmamba.torch_ssd_backward(dy, dlast, *scan), scan.differentiable)
        else:
            found = maps.gradients(dy, dlast, scan)
        return *found, None, *(None for _ in ctx.options)


def _eager(scan: MapScan) -> tuple[Tensor, Tensor]:
    """`maps.forward`, as one operator where operations are counted."""
    y, last = torch.ops.vmamba.torch_ssd(*scan) if _torch.is_counted() else maps.forward(scan)
    return y, last


def _gradients_with_a_graph(dy: Tensor, dlast: Tensor | None, scan: MapScan) -> tuple[Tensor | None, ...]:
    """The gradients as autograd makes them of the plain operations, for derivatives of them."""
    y, last = maps.forward(scan)
    outputs, weights = ([y], [dy]) if dlast is None else ([y, last], [dy, dlast])
    inputs = scan.differentiable
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, weights, create_graph=True, allow_unused=True))
    return tuple(next(found) if t is not None and t.requires_grad else None for t in inputs)


@torch.library.custom_op("vmamba::torch_ssd", mutates_args=())
def _operator(
    x: Tensor,
    dt: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    start: Tensor | None,
    places: Tensor | None,
    axes: Sequence[int],
    flips: Sequence[int],
    ends: bool,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    record(ScanRun("torch", "ssd_scan"))
    with torch.no_grad():  # which it is not where nothing has gradients
        y, last = maps.forward(MapScan(x, dt, log_decay, B, C, start, places, axes, flips, ends, chunk_size))
    return y.contiguous(), last.contiguous()


@_operator.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor]:
    scan = MapScan(*inputs)
    x, states = scan.x, (scan.x.shape[0], scan.B.shape[-1], scan.x.shape[-2] * scan.x.shape[-1])
    return x.new_empty(x.shape), x.new_empty(states if scan.ends else 0)


@torch.library.custom_op("vmamba::torch_ssd_backward", mutates_args=())
def _backward_operator(
    dy: Tensor,
    dlast: Tensor | None,
    x: Tensor,
    dt: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    start: Tensor | None,
    places: Tensor | None,
    axes: Sequence[int],
    flips: Sequence[int],
    ends: bool,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, dt, log_decay, B, C and start, empty where that is None."""
    scan = MapScan(x, dt, log_decay, B, C, start, places, axes, flips, ends, chunk_size)
    with torch.no_grad():
        found = maps.gradients(dy, dlast, scan)
    return results(found, dy)  # type: ignore[return-value]


@_backward_operator.register_fake
def _(dy: Tensor, dlast: Tensor | None, *inputs: Any) -> tuple[Tensor, ...]:
    return fake_results(MapScan(*inputs).differentiable, dy)


def _gradients(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
    scan = MapScan(*ctx.saved_tensors, *ctx.options)
    found = torch.ops.vmamba.torch_ssd_backward(or_zeros(dy, scan.x), dlast if scan.ends else None, *scan)
    return *given(found, scan.differentiable), None, *(None for _ in ctx.options)


_operator.register_autograd(_gradients, setup_context=_Scan.setup_context)
no_second_derivatives(_backward_operator)
