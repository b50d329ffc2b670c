"""``"oflex"`` on CPU: the fused 2-d scan (``csrc/ss2d_*``) as a torch operator that compiles and differentiates."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vmamba.errors import BackendError
from vmamba.functional.eager import plain_eager
from vmamba.kernels.interface import Run, record
from vmamba.kernels.native import library as native
from vmamba.kernels.native.library import DTYPE_CODES, Step, TensorArg
from vmamba.scan.orders import directions_of

_CHUNK = 64  # pixels between two saved states, as in csrc/ss2d_args.h
_LANES = 16  # of the widest instruction set; channels are cut in multiples of it
_GROUPS = 32  # backward cuts the batch into at most so many groups of images,
_TASKS = 16  # and channels into slices, so that there are about this many tasks,
_SLICES = 4  # but not into more than this, since each has its own sum for x_dbl's gradient


class _Inputs(ctypes.Structure):  # vmamba::Ss2dShape and vmamba::Ss2dInputs, one after the other
    _fields_ = (
        ("batch", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("rank", ctypes.c_int64),
        ("states", ctypes.c_int64),
        ("reading", ctypes.c_int64 * 4),
        ("softplus", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("x", TensorArg),
        ("x_dbl", TensorArg),
        ("dt_weight", ctypes.c_void_p),
        ("dt_bias", ctypes.c_void_p),
        ("A", ctypes.c_void_p),
        ("D", ctypes.c_void_p),
    )


class _ForwardArgs(ctypes.Structure):
    _fields_ = (
        ("inputs", _Inputs),
        ("y", ctypes.c_void_p),
        ("saved", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("workspace_floats", ctypes.c_int64),
    )


class _BackwardArgs(ctypes.Structure):
    _fields_ = (
        ("inputs", _Inputs),
        ("dy", ctypes.c_void_p),
        ("saved", ctypes.c_void_p),
        ("dx", ctypes.c_void_p),
        ("dx_dbl", ctypes.c_void_p),
        ("d_dt_weight", ctypes.c_void_p),
        ("d_dt_bias", ctypes.c_void_p),
        ("dA", ctypes.c_void_p),
        ("dD", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("workspace_floats", ctypes.c_int64),
        ("slices", ctypes.c_int64),
        ("group_images", ctypes.c_int64),
        ("slice_sums", ctypes.c_void_p),
        ("group_sums", ctypes.c_void_p),
    )


def _pointer(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def _by_pixel(t: Tensor) -> Tensor:
    """Join the two map axes; the last axis gets stride 1. A view where the memory allows it."""
    t = t.flatten(1, 2)
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


class _Call:
    """The inputs in the form that the kernels take; keeps the tensors alive whose addresses it holds."""

    def __init__(
        self,
        x: Tensor,
        x_dbl: Tensor,
        dt_weight: Tensor,
        dt_bias: Tensor | None,
        A: Tensor,
        D: Tensor | None,
        readings: Sequence[int],
        delta_softplus: bool,
    ) -> None:
        self.batch, height, width, self.channels = x.shape
        self.rank, self.states = dt_weight.shape[2], A.shape[1]
        self.columns = self.rank + 2 * self.states
        self.threads = torch.get_num_threads()
        pixels, columns = _by_pixel(x), _by_pixel(x_dbl)
        parameters = [None if t is None else t.contiguous() for t in (dt_weight, dt_bias, A, D)]
        self.tensors = (pixels, columns, *parameters)
        maps = (TensorArg(t.data_ptr(), DTYPE_CODES[t.dtype], t.stride()) for t in (pixels, columns))
        self.inputs = _Inputs(
            self.batch,
            height,
            width,
            self.channels,
            self.rank,
            self.states,
            tuple(readings),
            delta_softplus,
            self.threads,
            *maps,
            *(_pointer(t) for t in parameters),
        )

    def workspace(self, floats: int) -> Tensor:
        """Memory for every thread."""
        return torch.empty(self.threads * floats, dtype=torch.float32)


def readings_of(scan_mode: str) -> tuple[int, ...]:
    """How the directions of a scan mode read the map: the numbers of ``vmamba::Ss2dReading``."""
    return tuple(d.by_column + 2 * d.flip_h + 4 * d.flip_w for d in directions_of(scan_mode))


def _padded(channels: int) -> int:
    return -(-channels // _LANES) * _LANES


def _saved_shape(x: Tensor, A: Tensor, save: bool) -> tuple[int, ...]:
    """Where the kernels keep states for backward, of all chunks but the first, as flat memory of this shape.

    There is room for two chunks more, so that no size is 0 or 1, for which compilers make graphs of their own.
    """
    b, h, w, d = x.shape
    return ((h * w - 1) // _CHUNK + 2, b, 4, A.shape[1], d) if save else (0,)


def _run(
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
    """Return ``y`` and the states that backward starts from (empty unless ``save``). Parameters are float32."""
    y = torch.empty(x.shape, dtype=torch.float32)
    saved = torch.empty(_saved_shape(x, A, save), dtype=torch.float32)
    if save:
        saved[-2:].zero_()  # what the kernel leaves alone
    if y.numel() == 0:
        record(Run("oflex", "ss2d_scan", detail=native.isa()))
        return y, saved
    step = forward_step(
        x, x_dbl, dt_weight, dt_bias, A, D, readings, delta_softplus, y, saved if save else None, torch.empty
    )
    record(Run("oflex", "ss2d_scan", detail=native.run(step)))
    return y, saved


def forward_step(
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
    empty: Callable[[int], Tensor],
) -> Step:
    """The forward kernel; not for empty maps.

    Args:
        x, x_dbl, dt_weight, dt_bias, A, D, delta_softplus: as of `vmamba.scan.ss2d_scan`; parameters float32.
        readings: of the scan mode, see `readings_of`.
        y: the result, ``(b, h, w, d)``, contiguous, float32.
        saved: for the states that backward starts from, or None.
        empty: makes a float32 workspace of so many elements.
    """
    call = _Call(x, x_dbl, dt_weight, dt_bias, A, D, readings, delta_softplus)
    floats = call.columns * _CHUNK + (call.columns + _CHUNK + 2) * _padded(call.channels)
    workspace = empty(call.threads * floats)
    args = _ForwardArgs(call.inputs, y.data_ptr(), _pointer(saved), workspace.data_ptr(), floats)
    return Step("ss2d_forward", args, (*call.tensors, y, saved, workspace))


_ss2d_scan = torch.library.custom_op("vmamba::ss2d_scan", _run, mutates_args=(), device_types="cpu")


@_ss2d_scan.register_fake
def _(
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
    return torch.empty(x.shape, dtype=torch.float32), torch.empty(_saved_shape(x, A, save), dtype=torch.float32)


@torch.library.custom_op("vmamba::ss2d_scan_backward", mutates_args=(), device_types="cpu")
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
    """Return the gradients of x, x_dbl, dt_weight, dt_bias, A and D, empty where the input is None."""
    if x.numel() == 0:
        gradients = (None if t is None else torch.zeros_like(t) for t in (x, x_dbl, dt_weight, dt_bias, A, D))
        return tuple(torch.empty(0) if g is None else g for g in gradients)  # type: ignore[return-value]
    call = _Call(x, x_dbl, dt_weight, dt_bias, A, D, readings, delta_softplus)
    group_images = -(-call.batch // _GROUPS)
    groups = -(-call.batch // group_images)
    blocks = -(-call.channels // _LANES)
    slices = min(blocks, _SLICES, -(-_TASKS // groups))

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32)

    dx, dx_dbl, d_dt_weight, dA = (empty(*t.shape) for t in (x, x_dbl, dt_weight, A))
    d_dt_bias, dD = (empty(0) if t is None else empty(*t.shape) for t in (dt_bias, D))
    dy = dy.contiguous()
    slice_sums = empty(slices * x_dbl.numel()) if slices > 1 else None
    group_sums = empty(groups, 4 * (call.rank + call.states + 1) + 1, _padded(call.channels))
    floats = 2 * call.columns * _CHUNK + (call.columns + _CHUNK + 2) * -(-blocks // slices) * _LANES
    workspace = call.workspace(floats)
    args = _BackwardArgs(
        call.inputs,
        dy.data_ptr(),
        saved.data_ptr(),
        dx.data_ptr(),
        dx_dbl.data_ptr(),
        d_dt_weight.data_ptr(),
        None if dt_bias is None else d_dt_bias.data_ptr(),
        dA.data_ptr(),
        None if D is None else dD.data_ptr(),
        workspace.data_ptr(),
        floats,
        slices,
        group_images,
        _pointer(slice_sums),
        group_sums.data_ptr(),
    )
    native.call("ss2d_backward", args)
    return dx.to(x.dtype), dx_dbl.to(x_dbl.dtype), d_dt_weight, d_dt_bias, dA, dD


@_ss2d_scan_backward.register_fake
def _(
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
    def like(t: Tensor | None) -> Tensor:
        return torch.empty(0) if t is None else torch.empty(t.shape, dtype=t.dtype)

    return like(x), like(x_dbl), like(dt_weight), like(dt_bias), like(A), like(D)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, readings, delta_softplus, save = inputs
    if not save:
        raise BackendError("vmamba::ss2d_scan was called with save=False and needs gradients; pass save=True")
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], *tensors)
    ctx.options = readings, delta_softplus


def _backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    saved, *tensors = ctx.saved_tensors
    gradients = torch.ops.vmamba.ss2d_scan_backward(dy, saved, *tensors, *ctx.options)
    return *(g if t is not None else None for g, t in zip(gradients, tensors, strict=True)), None, None, None


_ss2d_scan.register_autograd(_backward, setup_context=_setup_context)


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
    if x_dbl.dtype == torch.float64:
        x_dbl = x_dbl.float()
    dt_weight, A = dt_weight.float(), A.float()
    dt_bias, D = (None if t is None else t.float() for t in (dt_bias, D))
    save = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, x_dbl, dt_weight, dt_bias, A, D)
    )
    # An operator's way through the dispatcher takes as long as the kernel does on a small map.
    run = _ss2d_scan if save or not plain_eager(x, x_dbl, dt_weight, dt_bias, A, D) else _run
    return run(x, x_dbl, dt_weight, dt_bias, A, D, readings_of(scan_mode), delta_softplus, save)[0]
