"""The scans as torch operators, once for all devices: signature, shapes for tracers, gradients, memory.

``vmamba::selective_scan`` and ``vmamba::ss2d_scan`` return the output and the states that backward starts from; the
shape of those each device's kernels decide. Here is the only place that allocates for them, always like the
inputs, and that looks at device, layout and dtype before an address leaves Python. `_KERNELS` has the devices.

The functions `selective_scan` and `ss2d_scan` are what the backend ``"oflex"`` runs.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vmamba import _torch
from vmamba.errors import BackendError, InputError
from vmamba.kernels import native, triton
from vmamba.kernels.gradients import differentiable, given
from vmamba.kernels.interface import ScanRun, record
from vmamba.scan.orders import readings_of


class _Kernels(NamedTuple):
    """Modules with ``saved_shape``, ``forward`` and ``backward``, and the dtypes of what is not a parameter."""

    selective_scan: ModuleType
    ss2d_scan: ModuleType
    dtypes: frozenset[torch.dtype]


@functools.cache
def _of_cpu() -> _Kernels:
    return _Kernels(native.selective_scan, native.ss2d_scan, frozenset(native.DTYPE_CODES))


@functools.cache
def _of_gpu() -> _Kernels:
    # Triton is imported where a GPU is used: it takes a second, and not every machine has it.
    selective_scan, ss2d_scan = map(importlib.import_module, triton.SCANS)
    return _Kernels(selective_scan, ss2d_scan, triton.DTYPES)


#: Device type -> who computes there.
_KERNELS: Mapping[str, Callable[[], _Kernels]] = {"cpu": _of_cpu, "cuda": _of_gpu, "xpu": _of_gpu}


def _kernels(t: Tensor) -> _Kernels:
    found = _KERNELS.get(t.device.type)
    if found is None:
        raise BackendError(
            f"there are no compiled kernels for {t.device.type} tensors, only for {', '.join(_KERNELS)}; "
            'use backend="torch"'
        )
    return found()


def _checked(kernels: _Kernels, maps: Sequence[Tensor], parameters: Sequence[Tensor | None]) -> None:
    """Make sure that every address that goes to a kernel is one, on one device, of a type that it knows.

    For whoever calls the operators by hand; `vmamba.scan`'s own functions have looked already.
    """
    device, strided, full = maps[0].device, torch.strided, torch.float32
    for t in maps:
        if t.dtype not in kernels.dtypes or t.device != device or t.layout != strided or not _torch.has_memory(t):
            raise _refusal(t, device)
    for p in parameters:
        if p is not None and (p.dtype != full or p.device != device or p.layout != strided or not _torch.has_memory(p)):
            raise _refusal(p, device)


def _refusal(t: Tensor, device: torch.device) -> InputError | BackendError:
    if t.device != device or t.layout != torch.strided or not _torch.has_memory(t):
        return InputError(
            f"the scan's kernels take dense tensors on one device, given a {t.layout} tensor on {t.device} beside one "
            f"on {device}; convert it with .to() or .to_dense()"
        )
    return BackendError(f"the scan's kernels take parameters in float32, the rest in 16 or 32 bits, given {t.dtype}")


def _workspace(like: Tensor) -> Callable[[int], Tensor]:
    return lambda elements: like.new_empty(elements, dtype=torch.float32)


def _states(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Memory for the states that backward starts from; what the kernels leave alone of it is zero."""
    saved = like.new_empty(tuple(shape), dtype=torch.float32)
    saved[-2:].zero_()
    return saved


def _dense(like: Tensor, dtype: torch.dtype | None = torch.float32) -> Tensor:
    """Contiguous memory in the shape and on the device of ``like``; in its dtype where None is given."""
    return torch.empty_like(like, dtype=dtype, memory_format=torch.contiguous_format)


def _like(inputs: Sequence[Tensor | None], dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """Memory for the gradient of each input, empty where there is none."""
    first = inputs[0]
    assert first is not None
    return tuple(first.new_empty(0) if t is None else _dense(t, dtype) for t in inputs)


# The selective scan.


def _selective_scan_kernel(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    save: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return ``y``, and the states that backward starts from if asked to save. A, D, delta_bias: float32."""
    scan, detail = _kernels(u).selective_scan, ""
    y = _dense(u)
    saved = _states(u, scan.saved_shape(u, A)) if save else None
    if y.numel():
        detail = scan.forward(u, delta, A, B, C, D, delta_bias, delta_softplus, y, saved, _workspace(u))
    record(ScanRun("oflex", "selective_scan", detail))
    return y, saved


@torch.library.custom_op("vmamba::selective_scan", mutates_args=())
def _selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    _checked(_kernels(u), (u, delta, B, C), (A, D, delta_bias))
    y, saved = _selective_scan_kernel(u, delta, A, B, C, D, delta_bias, delta_softplus, save)
    return y, y.new_empty(0) if saved is None else saved


@_selective_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    shape = _kernels(u).selective_scan.saved_shape(u, A) if others[-1] else (0,)
    return _dense(u), u.new_empty(shape, dtype=torch.float32)


def _selective_scan_gradients(dy: Tensor, saved: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Return the gradients of u, delta, A, B, C, D and delta_bias, empty where the input is None."""
    *inputs, delta_softplus = arguments
    u, gradients = inputs[0], _like(inputs)
    if u.numel():
        into = given(gradients, inputs)
        _kernels(u).selective_scan.backward(dy, saved, *inputs, delta_softplus, into, _workspace(u))
    else:
        gradients = tuple(g.zero_() for g in gradients)
    return gradients


@torch.library.custom_op("vmamba::selective_scan_backward", mutates_args=())
def _selective_scan_backward(
    dy: Tensor,
    saved: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `_selective_scan_gradients`."""
    _checked(_kernels(u), (u, delta, B, C, dy), (A, D, delta_bias, saved))
    return _selective_scan_gradients(dy, saved, u, delta, A, B, C, D, delta_bias, delta_softplus)  # type: ignore[return-value]


@_selective_scan_backward.register_fake
def _(dy: Tensor, saved: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return _like(inputs[:7])


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """See `vmamba.scan.selective_scan`. float64 tensors beside a 16- or 32-bit ``u`` are rounded to float32."""
    delta, B, C = (_narrow(t) for t in (delta, B, C))
    tensors = (u, delta, A.float(), B, C, _float(D), _float(delta_bias))
    return _run(_SELECTIVE_SCAN, tensors, delta_softplus)


# The 2-d scan.


def _ss2d_scan_kernel(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    readings: Sequence[int],
    delta_softplus: bool,
    save: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return ``y``, and the states that backward starts from if asked to save. Parameters are float32."""
    scan, detail = _kernels(x).ss2d_scan, ""
    y = _dense(x)
    saved = _states(x, scan.saved_shape(x, A)) if save else None
    if y.numel():
        detail = scan.forward(x, x_dbl, dt_weight, dt_bias, A, D, readings, delta_softplus, y, saved, _workspace(x))
    record(ScanRun("oflex", "ss2d_scan", detail))
    return y, saved


@torch.library.custom_op("vmamba::ss2d_scan", mutates_args=())
def _ss2d_scan(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    readings: Sequence[int],
    delta_softplus: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    _checked(_kernels(x), (x, x_dbl), (dt_weight, dt_bias, A, D))
    y, saved = _ss2d_scan_kernel(x, x_dbl, dt_weight, dt_bias, A, D, readings, delta_softplus, save)
    return y, y.new_empty(0) if saved is None else saved


@_ss2d_scan.register_fake
def _(
    x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    shape = _kernels(x).ss2d_scan.saved_shape(x, A) if others[-1] else (0,)
    return _dense(x), x.new_empty(shape, dtype=torch.float32)


def _ss2d_scan_gradients(dy: Tensor, saved: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Return the gradients of x, x_dbl, dt_weight, dt_bias, A and D, empty where the input is None."""
    *inputs, readings, delta_softplus = arguments
    x, x_dbl = inputs[:2]
    if not x.numel():
        return tuple(g.zero_() for g in _like(inputs))
    gradients = _like(inputs, torch.float32)
    into = given(gradients, inputs)
    _kernels(x).ss2d_scan.backward(dy.contiguous(), saved, *inputs, readings, delta_softplus, into, _workspace(x))
    dx, dx_dbl, *of_parameters = gradients
    return dx.to(x.dtype), dx_dbl.to(x_dbl.dtype), *of_parameters


@torch.library.custom_op("vmamba::ss2d_scan_backward", mutates_args=())
def _ss2d_scan_backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `_ss2d_scan_gradients`."""
    _checked(_kernels(x), (x, x_dbl), (dt_weight, dt_bias, A, D, saved, dy))
    inputs = (x, x_dbl, dt_weight, dt_bias, A, D)
    return _ss2d_scan_gradients(dy, saved, *inputs, readings, delta_softplus)  # type: ignore[return-value]


@_ss2d_scan_backward.register_fake
def _(dy: Tensor, saved: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return _like(inputs[:6])


def ss2d_scan(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    scan_mode: str,
    delta_softplus: bool,
) -> Tensor:
    """See `vmamba.scan.ss2d_scan`. Parameters, and a float64 ``x_dbl`` beside a narrower ``x``, become float32."""
    tensors = (x, _narrow(x_dbl), dt_weight.float(), _float(dt_bias), A.float(), _float(D))
    return _run(_SS2D_SCAN, tensors, readings_of(scan_mode), delta_softplus)


# What both share: how they are called.


class _Scan(NamedTuple):
    """A scan both ways, as operators and as the functions behind them."""

    kernel: Callable[..., tuple[Tensor, Tensor | None]]
    operator: Any
    gradients: Callable[..., Sequence[Tensor]]
    gradients_operator: Any


_SELECTIVE_SCAN = _Scan(_selective_scan_kernel, _selective_scan, _selective_scan_gradients, _selective_scan_backward)
_SS2D_SCAN = _Scan(_ss2d_scan_kernel, _ss2d_scan, _ss2d_scan_gradients, _ss2d_scan_backward)


def _run(scan: _Scan, tensors: Sequence[Tensor | None], *options: Any) -> Tensor:
    """Call the operator, or what is behind it where that serves; save states where backward will ask for them."""
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    # An operator's way through the dispatcher takes as long as the kernel does on a small map.
    if not _torch.is_plain(*tensors):
        y: Tensor = scan.operator(*tensors, *options, save)[0]
    elif save:
        y = _Differentiable.apply(scan, options, *tensors)
    else:
        y = scan.kernel(*tensors, *options, False)[0]
    return y


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scan: _Scan, options: tuple[Any, ...], *tensors: Tensor | None) -> Tensor:
        y, saved = scan.kernel(*tensors, *options, True)
        ctx.save_for_backward(saved, *tensors)
        ctx.scan, ctx.options = scan, options
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        saved, *inputs = ctx.saved_tensors
        # Gradients of gradients, batched ones and what compilers trace are for the operator to run or to refuse.
        plain = not torch.is_grad_enabled() and _torch.is_plain(dy) and _torch.has_memory(dy)
        run = ctx.scan.gradients if plain and dy.layout == torch.strided else ctx.scan.gradients_operator
        return None, None, *given(run(dy, saved, *inputs, *ctx.options), inputs)


def _float(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.float()


def _narrow(t: Tensor) -> Tensor:
    return t.float() if t.dtype == torch.float64 else t


differentiable("selective_scan", _selective_scan, _selective_scan_backward, 7)
differentiable("ss2d_scan", _ss2d_scan, _ss2d_scan_backward, 6)
