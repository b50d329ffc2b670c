"""Mamba-2's scan around whoever computes it: derivatives, and the operator that stands for it in graphs.

Exports see plain operations. `torch.compile` and counters of operations see one operator in their place, as of the
selective scan and for the same reasons (`vmamba.kernels.torch_prefix`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vmamba import _torch
from vmamba.kernels.gradients import fake_results, given, no_second_derivatives, or_zeros, results
from vmamba.kernels.interface import ScanRun, record
from vmamba.kernels.ssd import maps
from vmamba.kernels.ssd.maps import MapScan

_TENSORS = 7  # of the fields of `MapScan`: those that have gradients, and the places

#: Computes a scan, of plain tensors with memory; also says what ran, such as the instruction set.
Kernel = Callable[[MapScan], tuple[Tensor, Tensor, str]]


class SsdScan:
    """The scan, all float32 or all float64, in the form that who looks on can take.

    Derivatives of every kind and order are right; in a graph made by `torch.compile` second ones raise an error.
    Whatever computes it forward, backward is products of matrices, `maps.gradients`.
    """

    def __init__(self, backend: str, name: str, kernel: Kernel, looked_at: Callable[[MapScan], bool]) -> None:
        """Make the operators ``vmamba::<name>`` and ``<name>_backward``.

        Args:
            backend: of which backend it is.
            name: without the namespace.
            kernel: what computes it forward.
            looked_at: whether an eager call must be an operator, for whoever looks on.
        """
        self._backend, self._kernel, self._looked_at = backend, kernel, looked_at
        self.operator, self.backward_operator = _operators(name, self._run)

    def __call__(
        self,
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
        """Run the scan of `MapScan`, as `maps.forward` does."""
        scan = MapScan(x, dt, log_decay, B, C, start, places, list(axes), list(flips), ends, chunk_size)
        if _torch.is_exporting():
            return maps.forward(scan)
        if torch.compiler.is_compiling():
            # What transforms trace with are plain operations.
            y, last = maps.forward(scan) if _torch.is_functorch_traced() else self.operator(*scan)
            return y, last
        if _torch.is_transformed():  # what batches and differentiates plain operations
            record(ScanRun(self._backend, "ssd_scan"))
            return maps.forward(scan)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in scan.differentiable):
            y, last = _Differentiable.apply(self, *scan)
            return y, last
        return self.forward(scan)

    def forward(self, scan: MapScan) -> tuple[Tensor, Tensor]:
        """The scan without derivatives."""
        y, last = self.operator(*scan) if self._looked_at(scan) else self._run(scan)
        return y, last

    def gradients(self, dy: Tensor, dlast: Tensor | None, scan: MapScan) -> tuple[Tensor | None, ...]:
        """Of `maps.gradients`, in the form that who looks on can take."""
        if torch.is_grad_enabled():
            return _gradients_with_a_graph(dy, dlast, scan)
        if self._looked_at(scan):
            return given(self.backward_operator(dy, dlast, *scan), scan.differentiable)
        return maps.gradients(dy, dlast, scan)

    def _run(self, scan: MapScan) -> tuple[Tensor, Tensor]:
        with torch.no_grad():  # which it is not where nothing has gradients
            y, last, detail = self._kernel(scan)
        record(ScanRun(self._backend, "ssd_scan", detail))
        return y, last


class _Differentiable(torch.autograd.Function):
    """Keeps the inputs only; backward makes states and products anew."""

    @staticmethod
    def forward(run: SsdScan, *inputs: Any) -> tuple[Tensor, Tensor]:
        return run.forward(MapScan(*inputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.run, *scan = inputs
        _keep(ctx, tuple(scan), output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        scan = MapScan(*ctx.saved_tensors, *ctx.options)
        found = ctx.run.gradients(or_zeros(dy, scan.x), dlast if scan.ends else None, scan)
        return None, *found, None, *(None for _ in ctx.options)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:_TENSORS])
    ctx.options = inputs[_TENSORS:]
    ctx.set_materialize_grads(False)


def _gradients_with_a_graph(dy: Tensor, dlast: Tensor | None, scan: MapScan) -> tuple[Tensor | None, ...]:
    """The gradients as autograd makes them of the plain operations, for derivatives of them."""
    y, last = maps.forward(scan)
    outputs, weights = ([y], [dy]) if dlast is None else ([y, last], [dy, dlast])
    inputs = scan.differentiable
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, weights, create_graph=True, allow_unused=True))
    return tuple(next(found) if t is not None and t.requires_grad else None for t in inputs)


def _operators(name: str, run: Callable[[MapScan], tuple[Tensor, Tensor]]) -> tuple[Any, Any]:
    """``vmamba::<name>``, which is ``run``, and its backward operator."""

    @torch.library.custom_op(f"vmamba::{name}", mutates_args=())
    def operator(
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
        y, last = run(MapScan(x, dt, log_decay, B, C, start, places, axes, flips, ends, chunk_size))
        return y.contiguous(), last.contiguous()

    @operator.register_fake
    def _(*inputs: Any) -> tuple[Tensor, Tensor]:
        scan = MapScan(*inputs)
        x, states = scan.x, (scan.x.shape[0], scan.B.shape[-1], scan.x.shape[-2] * scan.x.shape[-1])
        return x.new_empty(x.shape), x.new_empty(states if scan.ends else 0)

    @torch.library.custom_op(f"vmamba::{name}_backward", mutates_args=())
    def backward(
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

    @backward.register_fake
    def _(dy: Tensor, dlast: Tensor | None, *inputs: Any) -> tuple[Tensor, ...]:
        return fake_results(MapScan(*inputs).differentiable, dy)

    def gradients(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        scan = MapScan(*ctx.saved_tensors, *ctx.options)
        found = backward(or_zeros(dy, scan.x), dlast if scan.ends else None, *scan)
        return *given(found, scan.differentiable), None, *(None for _ in ctx.options)

    operator.register_autograd(gradients, setup_context=_keep)
    no_second_derivatives(backward)
    return operator, backward


#: As backend ``"torch"`` runs it.
ssd_scan = SsdScan("torch", "torch_ssd", lambda scan: (*maps.forward(scan), ""), lambda scan: _torch.is_counted())
