"""The fused 2-d scan's compiled kernels (``csrc/ss2d/``), forward and backward, into memory that the caller gives."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vmamba.kernels.native import library
from vmamba.kernels.native.library import KernelCall
from vmamba.kernels.native.structs import pointer, struct, tensor

_CHUNK = 64  # pixels between two saved states, as in csrc/ss2d/ss2d_args.h
_LANES = 16  # of the widest instruction set; channels are cut in multiples of it
_DIRECTIONS = 4  # of a scan mode
_NO_READING = (0,) * _DIRECTIONS
_GROUPS = 32  # backward cuts the batch into at most so many groups of images,
_TASKS = 16  # and channels into slices, so that there are about this many tasks,
_SLICES = 4  # but not into more than this, since each has its own sum for x_dbl's gradient

#: Makes a float32 workspace of so many elements.
Workspace = Callable[[int], Tensor]


#: The kernels walk orders that are given as places.
PLACES = True


def saved_shape(x: Tensor, A: Tensor, directions: int = _DIRECTIONS) -> tuple[int, ...]:
    """Where the kernels keep states for backward, of all chunks but the first, as flat memory of this shape.

    There is room for two chunks more, so that no size is 0 or 1, for which compilers make graphs of their own. These
    two the kernels leave alone.
    """
    b, h, w, d = x.shape
    return (h * w - 1) // _CHUNK + 2, b, directions, A.shape[1], d


def forward(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    readings: Sequence[int] | Tensor,
    delta_softplus: bool,
    y: Tensor,
    saved: Tensor | None,
    workspace: Workspace,
) -> str:
    """Fill ``y (b, h, w, d)`` and the states that backward starts from; see `forward_call` for the arguments.

    Returns:
        the instruction set that ran.
    """
    prepared = forward_call(x, x_dbl, dt_weight, dt_bias, A, D, readings, delta_softplus, y, saved, workspace)
    return library.run(prepared)


def forward_call(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    readings: Sequence[int] | Tensor,
    delta_softplus: bool,
    y: Tensor,
    saved: Tensor | None,
    workspace: Workspace,
) -> KernelCall:
    """Prepare the forward kernel; not for empty maps.

    Args:
        x, x_dbl, dt_weight, dt_bias, A, D, delta_softplus: as of `vmamba.scan.ss2d_scan`; parameters float32.
        readings: of the scan mode, see `vmamba.scan.orders.readings_of`; or for any other directions the places that
            each reads, ``(k, l)``, int32, contiguous: permutations of 0 … l-1, which nobody here checks.
        y: the result, ``(b, h, w, d)``, contiguous, float32.
        saved: of `saved_shape`, contiguous, or None where nothing is to be kept.
        workspace: makes memory for this call.
    """
    call = _Inputs(x, x_dbl, dt_weight, dt_bias, A, D, readings, delta_softplus)
    floats = call.columns * _CHUNK + (call.columns + _CHUNK + 2) * _padded(call.channels)
    memory = workspace(call.threads * floats)
    args = struct(
        "Ss2dForwardArgs",
        shape=call.shape,
        in_=call.inputs,
        y=y.data_ptr(),
        saved=pointer(saved),
        workspace=memory.data_ptr(),
        workspace_floats=floats,
    )
    return KernelCall("ss2d_forward", args, (*call.tensors, y, saved, memory))


def backward(
    dy: Tensor,
    saved: Tensor,
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    readings: Sequence[int] | Tensor,
    delta_softplus: bool,
    gradients: Sequence[Tensor | None],
    workspace: Workspace,
) -> None:
    """Fill the gradients of ``x, x_dbl, dt_weight, dt_bias, A, D``, None where the input is; not for empty maps.

    Args:
        dy: ``(b, h, w, d)``, contiguous, float32.
        gradients: contiguous, float32, in their inputs' shapes.
    """
    call = _Inputs(x, x_dbl, dt_weight, dt_bias, A, D, readings, delta_softplus)
    group_images = -(-call.batch // _GROUPS)
    groups = -(-call.batch // group_images)
    blocks = -(-call.channels // _LANES)
    slices = min(blocks, _SLICES, -(-_TASKS // groups))
    slice_sums = workspace(slices * x_dbl.numel()) if slices > 1 else None
    group_sums = workspace(groups * (call.directions * (call.rank + call.states + 1) + 1) * _padded(call.channels))
    floats = 2 * call.columns * _CHUNK + (call.columns + _CHUNK + 2) * -(-blocks // slices) * _LANES
    memory = workspace(call.threads * floats)
    dx, dx_dbl, d_dt_weight, d_dt_bias, dA, dD = gradients
    args = struct(
        "Ss2dBackwardArgs",
        shape=call.shape,
        in_=call.inputs,
        dy=dy.data_ptr(),
        saved=saved.data_ptr(),
        dx=pointer(dx),
        dx_dbl=pointer(dx_dbl),
        d_dt_weight=pointer(d_dt_weight),
        d_dt_bias=pointer(d_dt_bias),
        dA=pointer(dA),
        dD=pointer(dD),
        workspace=memory.data_ptr(),
        workspace_floats=floats,
        slices=slices,
        group_images=group_images,
        slice_sums=pointer(slice_sums),
        group_sums=group_sums.data_ptr(),
    )
    library.call("ss2d_backward", args)


class _Inputs:
    """The inputs in the form that the kernels take; keeps the tensors alive whose addresses it holds."""

    def __init__(
        self,
        x: Tensor,
        x_dbl: Tensor,
        dt_weight: Tensor,
        dt_bias: Tensor | None,
        A: Tensor,
        D: Tensor | None,
        readings: Sequence[int] | Tensor,
        delta_softplus: bool,
    ) -> None:
        self.batch, _, _, self.channels = x.shape
        self.rank, self.states = dt_weight.shape[2], A.shape[1]
        self.columns = self.rank + 2 * self.states
        self.threads = torch.get_num_threads()
        pixels, columns = _by_pixel(x), _by_pixel(x_dbl)
        parameters = [None if t is None else t.contiguous() for t in (dt_weight, dt_bias, A, D)]
        self.directions = dt_weight.shape[0]
        places, reading = (readings, _NO_READING) if isinstance(readings, Tensor) else (None, tuple(readings))
        self.tensors = (pixels, columns, *parameters, places)
        sizes = (*x.shape, self.rank, self.states, self.directions)
        self.shape = _shape(*sizes, reading, delta_softplus, self.threads)
        step_weight, step_bias, decay, skip = map(pointer, parameters)
        self.inputs = struct(
            "Ss2dInputs",
            x=tensor(pixels),
            x_dbl=tensor(columns),
            dt_weight=step_weight,
            dt_bias=step_bias,
            A=decay,
            D=skip,
            places=pointer(places),
        )


@functools.lru_cache(64)
def _shape(
    batch: int,
    height: int,
    width: int,
    channels: int,
    rank: int,
    states: int,
    directions: int,
    reading: tuple[int, ...],
    softplus: bool,
    threads: int,
) -> ctypes.Structure:
    """The sizes of a call; kept, since a network makes the same call over and over."""
    return struct(
        "Ss2dShape",
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        rank=rank,
        states=states,
        directions=directions,
        reading=reading,
        softplus=softplus,
        threads=threads,
    )


def _by_pixel(t: Tensor) -> Tensor:
    """Join the two map axes; the last axis gets stride 1. A view where the memory allows it."""
    t = t.flatten(1, 2)
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def _padded(channels: int) -> int:
    return -(-channels // _LANES) * _LANES
