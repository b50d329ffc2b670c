"""``"oflex"`` on CPU: the compiled kernels (``csrc/``) as torch operators that compile, export and differentiate."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from vmamba.errors import BackendError
from vmamba.kernels.interface import Obstacle, Run, ScanCall, record
from vmamba.kernels.native import library as native
from vmamba.kernels.native.library import DTYPE_CODES, TensorArg
from vmamba.kernels.native.ss2d_scan import ss2d_scan as ss2d_scan  # the fused operator of this backend

_CHUNK = 32  # steps between two saved states, as in csrc/scan_args.h
_LANES = 16  # of the widest instruction set; blocks of channels are padded to it
_TASKS = 64  # slices of channels are cut so that backward has about this many tasks

machine_obstacle = native.obstacle


def call_obstacle(call: ScanCall) -> Obstacle | None:
    """It runs 16- and 32-bit floats."""
    if call.dtype not in DTYPE_CODES:
        return Obstacle(f"the compiled kernels have no {call.dtype}", "convert to float32")
    return None


class _Inputs(ctypes.Structure):  # vmamba::ScanShape and vmamba::ScanInputs, one after the other
    _fields_ = (
        ("batch", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("states", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("softplus", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("u", TensorArg),
        ("delta", TensorArg),
        ("B", TensorArg),
        ("C", TensorArg),
        ("A", ctypes.c_void_p),
        ("D", ctypes.c_void_p),
        ("delta_bias", ctypes.c_void_p),
    )


class _ForwardArgs(ctypes.Structure):
    _fields_ = (
        ("inputs", _Inputs),
        ("y", ctypes.c_void_p),
        ("saved", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
    )


class _BackwardArgs(ctypes.Structure):
    _fields_ = (
        ("inputs", _Inputs),
        ("dy", TensorArg),
        ("saved", ctypes.c_void_p),
        ("du", ctypes.c_void_p),
        ("ddelta", ctypes.c_void_p),
        ("dB", ctypes.c_void_p),
        ("dC", ctypes.c_void_p),
        ("dA", ctypes.c_void_p),
        ("dD", ctypes.c_void_p),
        ("ddelta_bias", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("slice_sums", ctypes.c_void_p),
        ("image_sums", ctypes.c_void_p),
        ("slice_channels", ctypes.c_int64),
    )


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]


def _inputs(
    u: Tensor, delta: Tensor, B: Tensor, C: Tensor, parameters: list[Tensor | None], delta_softplus: bool
) -> _Inputs:
    """The inputs as the kernels see them; ``parameters``, contiguous A, D and delta_bias, must outlive the call."""
    batch, groups, states, length = B.shape
    return _Inputs(
        batch,
        groups,
        u.shape[1] // groups,
        states,
        length,
        delta_softplus,
        torch.get_num_threads(),
        *map(native.tensor_arg, (u, delta, B, C)),
        *(None if t is None else t.data_ptr() for t in parameters),
    )


def _saved_shape(u: Tensor, A: Tensor, save: bool) -> tuple[int, ...]:
    """Where the kernels keep states for backward, of all chunks but the first, as flat memory of this shape.

    There is room for two chunks more, so that no size is 0 or 1, for which compilers make graphs of their own.
    """
    return ((u.shape[2] - 1) // _CHUNK + 2, u.shape[0], A.shape[1], u.shape[1]) if save else (0,)


def _padded_states(u: Tensor, A: Tensor, B: Tensor) -> int:
    groups = B.shape[1]
    return u.shape[0] * groups * -(-(u.shape[1] // groups) // _LANES) * _LANES * A.shape[1]


@torch.library.custom_op("vmamba::selective_scan", mutates_args=(), device_types="cpu")
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
    """Return ``y`` and the states that backward starts from (empty unless ``save``). A, D, delta_bias: float32."""
    y = torch.empty(u.shape, dtype=torch.float32)
    saved = torch.empty(_saved_shape(u, A, save), dtype=torch.float32)
    if save:
        saved[-2:].zero_()  # what the kernel leaves alone
    workspace = torch.empty(2 * _padded_states(u, A, B), dtype=torch.float32)
    parameters = _contiguous(A, D, delta_bias)
    inputs = _inputs(u, delta, B, C, parameters, delta_softplus)
    args = _ForwardArgs(inputs, y.data_ptr(), saved.data_ptr() if save else None, workspace.data_ptr())
    record(Run("oflex", "selective_scan", detail=native.call("selective_scan_forward", args)))
    return y, saved


@_selective_scan.register_fake
def _(
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
    return torch.empty(u.shape, dtype=torch.float32), torch.empty(_saved_shape(u, A, save), dtype=torch.float32)


@torch.library.custom_op("vmamba::selective_scan_backward", mutates_args=(), device_types="cpu")
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
    """Return the gradients of u, delta, A, B, C, D and delta_bias, empty where the input is None."""
    batch, groups, states = B.shape[:3]
    channels = u.shape[1] // groups
    units = -(-channels // _LANES)
    slices = min(units, -(-_TASKS // (batch * groups)))
    slice_channels = -(-units // slices) * _LANES
    slices = -(-channels // slice_channels)

    gradients = _empty_gradients(u, delta, A, B, C, D, delta_bias)
    du, ddelta, dA, dB, dC, dD, ddelta_bias = gradients
    workspace = torch.empty(3 * _padded_states(u, A, B), dtype=torch.float32)
    slice_sums = torch.empty(2 * slices * B.numel(), dtype=torch.float32)
    image_sums = torch.empty((states + 2) * batch * u.shape[1], dtype=torch.float32)
    parameters = _contiguous(A, D, delta_bias)
    args = _BackwardArgs(
        _inputs(u, delta, B, C, parameters, delta_softplus),
        native.tensor_arg(dy),
        saved.data_ptr(),
        du.data_ptr(),
        ddelta.data_ptr(),
        dB.data_ptr(),
        dC.data_ptr(),
        dA.data_ptr(),
        None if D is None else dD.data_ptr(),
        None if delta_bias is None else ddelta_bias.data_ptr(),
        workspace.data_ptr(),
        slice_sums.data_ptr(),
        image_sums.data_ptr(),
        slice_channels,
    )
    native.call("selective_scan_backward", args)
    return gradients


def _empty_gradients(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    def like(t: Tensor | None) -> Tensor:
        return torch.empty(0) if t is None else torch.empty(t.shape, dtype=t.dtype)

    return like(u), like(delta), like(A), like(B), like(C), like(D), like(delta_bias)


@_selective_scan_backward.register_fake
def _(
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
    return _empty_gradients(u, delta, A, B, C, D, delta_bias)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, delta_softplus, save = inputs
    if not save:
        raise BackendError("vmamba::selective_scan was called with save=False and needs gradients; pass save=True")
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], *tensors)
    ctx.delta_softplus = delta_softplus


def _backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, dy, torch.ops.vmamba.selective_scan_backward)


def _gradients(ctx: Any, dy: Tensor, backward: Callable[..., tuple[Tensor, ...]]) -> tuple[Tensor | None, ...]:
    saved, *tensors = ctx.saved_tensors
    gradients = backward(dy, saved, *tensors, ctx.delta_softplus)
    return *(g if t is not None else None for g, t in zip(gradients, tensors, strict=True)), None, None


def _no_second_derivative(ctx: Any, *_: Tensor) -> None:
    raise BackendError('the compiled kernels have no second derivatives; use backend="torch"')


_selective_scan.register_autograd(_backward, setup_context=_setup_context)
_selective_scan_backward.register_autograd(_no_second_derivative)


class _Transformed(torch.autograd.Function):
    """The same under ``torch.func``, which registered operators do not support; refuses forward mode as torch does."""

    generate_vmap_rule = True
    setup_context = staticmethod(_setup_context)

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        y, saved = torch.ops.vmamba.selective_scan(*inputs)
        return y, saved

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, dy, _TransformedBackward.apply)


class _TransformedBackward(torch.autograd.Function):
    generate_vmap_rule = True
    backward = staticmethod(_no_second_derivative)

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        gradients: tuple[Tensor, ...] = torch.ops.vmamba.selective_scan_backward(*inputs)
        return gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass


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
    """See `vmamba.scan.selective_scan`. float64 tensors beside a 16- or 32-bit ``u`` are rounded to float32.

    `torch.func.vmap` and `torch.func.grad` are right; second derivatives and forward mode raise an error.
    """
    delta, B, C = (t.float() if t.dtype == torch.float64 else t for t in (delta, B, C))
    A = A.float()
    D = None if D is None else D.float()
    delta_bias = None if delta_bias is None else delta_bias.float()
    tensors = (u, delta, A, B, C, D, delta_bias)
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return _Transformed.apply(*tensors, delta_softplus, True)[0]  # type: ignore[no-any-return]
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    y: Tensor = torch.ops.vmamba.selective_scan(*tensors, delta_softplus, save)[0]
    return y
