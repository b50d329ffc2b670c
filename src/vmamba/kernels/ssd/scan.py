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
from vmamba.errors import BackendError
from vmamba.kernels.gradients import given
from vmamba.kernels.interface import ScanRun, record
from vmamba.kernels.ssd import maps

_TENSORS, _OPTIONS = 6, 5  # of the arguments below: those that have gradients, and the others


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
    inputs: tuple[Any, ...] = (x, dt, log_decay, B, C, start, places, list(axes), list(flips), ends, chunk_size)
    if _torch.is_exporting():
        return maps.forward(*inputs)
    if torch.compiler.is_compiling():
        # What transforms trace with are plain operations.
        y, last = maps.forward(*inputs) if _torch.is_functorch_traced() else torch.ops.vmamba.torch_ssd(*inputs)
        return y, last
    record(ScanRun("torch", "ssd_scan"))
    if _torch.is_transformed():  # what batches and differentiates plain operations
        return maps.forward(*inputs)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs[:_TENSORS]):
        y, last = _Scan.apply(*inputs)
        return y, last
    with torch.no_grad():
        return _eager(*inputs)


class _Scan(torch.autograd.Function):
    """`maps.forward` with a backward that keeps the inputs only, and makes states and products anew."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return _eager(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[: _TENSORS + 1])
        ctx.options = inputs[_TENSORS + 1 :]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        inputs = kept[:_TENSORS]
        if torch.is_grad_enabled():
            found = _gradients_with_a_graph(dy, dlast, kept, ctx.options)
        else:
            run: Any = torch.ops.vmamba.torch_ssd_backward if _torch.is_counted() else maps.gradients
            found = given(run(_or_zeros(dy, inputs[0]), dlast, *kept, *ctx.options), inputs)
        return *found, *(None,) * _OPTIONS


def _eager(*inputs: Any) -> tuple[Tensor, Tensor]:
    """`maps.forward`, as one operator where operations are counted."""
    scan: Any = torch.ops.vmamba.torch_ssd if _torch.is_counted() else maps.forward
    y, last = scan(*inputs)
    return y, last


def _or_zeros(dy: Tensor | None, x: Tensor) -> Tensor:
    return torch.zeros_like(x) if dy is None else dy


def _gradients_with_a_graph(
    dy: Tensor | None, dlast: Tensor | None, kept: Sequence[Any], options: Sequence[Any]
) -> tuple[Tensor | None, ...]:
    """The gradients as autograd makes them of the plain operations, for derivatives of them."""
    y, last = maps.forward(*kept, *options)
    outputs, weights = ([y], [_or_zeros(dy, y)]) if dlast is None else ([y, last], [_or_zeros(dy, y), dlast])
    inputs = kept[:_TENSORS]
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
        y, last = maps.forward(x, dt, log_decay, B, C, start, places, axes, flips, ends, chunk_size)
    return y.contiguous(), last.contiguous()


@_operator.register_fake
def _(x: Tensor, dt: Tensor, log_decay: Tensor, B: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    states = (x.shape[0], B.shape[-1], x.shape[-2] * x.shape[-1]) if others[-2] else (0,)
    return x.new_empty(x.shape), x.new_empty(states)


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
    inputs = (x, dt, log_decay, B, C, start, places, axes, flips, ends, chunk_size)
    with torch.no_grad():
        found = maps.gradients(dy, dlast, *inputs)
    return tuple(dy.new_empty(0) if g is None else g.contiguous() for g in found)  # type: ignore[return-value]


@_backward_operator.register_fake
def _(dy: Tensor, dlast: Tensor | None, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(dy.new_empty((0,) if t is None else t.shape) for t in inputs[:_TENSORS])


def _gradients(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
    kept, ends = ctx.saved_tensors, ctx.options[-2]
    arguments = (_or_zeros(dy, kept[0]), dlast if ends else None, *kept, *ctx.options)
    return *given(torch.ops.vmamba.torch_ssd_backward(*arguments), kept[:_TENSORS]), *(None,) * _OPTIONS


def _no_second_derivative(ctx: Any, *_: Tensor) -> None:
    raise BackendError('compiled graphs of backend="torch" have no second derivatives; call it outside torch.compile')


_operator.register_autograd(_gradients, setup_context=_Scan.setup_context)
_backward_operator.register_autograd(_no_second_derivative)
