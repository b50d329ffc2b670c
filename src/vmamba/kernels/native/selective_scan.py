"""The selective scan's compiled kernels (``csrc/scan/``), forward and backward, into memory that the caller gives."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vmamba.kernels.native import library
from vmamba.kernels.native.structs import absent, pointer, struct, tensor

_CHUNK = 32  # steps between two saved states, as in csrc/scan/scan_args.h
_LANES = 16  # of the widest instruction set; blocks of channels are padded to it
_TASKS = 64  # slices of channels are cut so that backward has about this many tasks

#: A gate is a stream of the kernels' own, not an operation behind them.
GATES = True

#: Makes a float32 workspace of so many elements.
Workspace = Callable[[int], Tensor]


def saved_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    """Where the kernels keep states for backward, of all chunks but the first, as flat memory of this shape.

    There is room for two chunks more, so that no size is 0 or 1, for which compilers make graphs of their own. These
    two the kernels leave alone.
    """
    return (u.shape[2] - 1) // _CHUNK + 2, u.shape[0], A.shape[1], u.shape[1]


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    y: Tensor,
    saved: Tensor | None,
    workspace: Workspace,
    *,
    initial: Tensor | None = None,
    last: Tensor | None = None,
    z: Tensor | None = None,
    ungated: Tensor | None = None,
) -> str:
    """Fill ``y (b, k·d, l)``, float32, and the states that backward starts from.

    Args:
        u, delta, A, B, C, D, delta_bias, delta_softplus: as of `vmamba.scan.selective_scan`; ``A``, ``D`` and
            ``delta_bias`` float32, the others of any type that the kernels have, in any layout.
        y: contiguous.
        saved: of `saved_shape`, contiguous, or None where nothing is to be kept.
        workspace: makes memory for this call.
        initial: the state to begin with, ``(b, k·d, n)``, float32, or None for zero.
        last: memory for the state at the end, likewise, contiguous, or None.
        z: the gate ``(b, k·d, l)`` or None.
        ungated: memory for ``y`` before the gate, which backward takes, or None.

    Returns:
        the instruction set that ran.
    """
    inputs, kept = _inputs(u, delta, A, B, C, D, delta_bias)
    memory, initial = workspace(2 * _padded_states(u, A, B)), _contiguous(initial)
    args = struct(
        "ScanForwardArgs",
        shape=_shape(u, B, delta_softplus),
        in_=inputs,
        y=y.data_ptr(),
        saved=pointer(saved),
        workspace=memory.data_ptr(),
        z=absent() if z is None else tensor(z),
        initial=pointer(initial),
        last=pointer(last),
        ungated=pointer(ungated),
    )
    isa = library.call("selective_scan_forward", args)
    del kept, memory, initial
    return isa


def backward(
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
    gradients: Sequence[Tensor | None],
    workspace: Workspace,
    *,
    initial: Tensor | None = None,
    dlast: Tensor | None = None,
    dinitial: Tensor | None = None,
    z: Tensor | None = None,
    ungated: Tensor | None = None,
    dz: Tensor | None = None,
) -> None:
    """Fill the gradients of the inputs; other arguments as `forward`'s.

    Args:
        dy: ``(b, k·d, l)``, float32, in any layout.
        gradients: of u, delta, A, B, C, D, delta_bias, contiguous, in their shapes and dtypes; None where those are.
        dlast: of the last state, ``(b, k·d, n)``, float32, or None for zero.
        dinitial, dz: memory for the gradients of initial and z, contiguous; None where those are.
        ungated: what forward filled.
    """
    batch, groups, states = B.shape[:3]
    channels = u.shape[1] // groups
    units = -(-channels // _LANES)
    slices = min(units, -(-_TASKS // (batch * groups)))
    slice_channels = -(-units // slices) * _LANES
    slices = -(-channels // slice_channels)

    du, ddelta, dA, dB, dC, dD, ddelta_bias = gradients
    inputs, kept = _inputs(u, delta, A, B, C, D, delta_bias)
    memory = workspace(3 * _padded_states(u, A, B))
    initial, dlast = _contiguous(initial), _contiguous(dlast)
    slice_sums = workspace(2 * slices * B.numel())
    image_sums = workspace((states + 2) * batch * u.shape[1])
    args = struct(
        "ScanBackwardArgs",
        shape=_shape(u, B, delta_softplus),
        in_=inputs,
        dy=tensor(dy),
        saved=saved.data_ptr(),
        du=pointer(du),
        ddelta=pointer(ddelta),
        dB=pointer(dB),
        dC=pointer(dC),
        dA=pointer(dA),
        dD=pointer(dD),
        ddelta_bias=pointer(ddelta_bias),
        workspace=memory.data_ptr(),
        slice_sums=slice_sums.data_ptr(),
        image_sums=image_sums.data_ptr(),
        slice_channels=slice_channels,
        z=absent() if z is None else tensor(z),
        ungated=pointer(ungated),
        initial=pointer(initial),
        dlast=pointer(dlast),
        dz=pointer(dz),
        dinitial=pointer(dinitial),
    )
    library.call("selective_scan_backward", args)
    del kept, memory, initial, dlast


def _shape(u: Tensor, B: Tensor, delta_softplus: bool) -> ctypes.Structure:
    batch, groups, states, length = B.shape
    return struct(
        "ScanShape",
        batch=batch,
        groups=groups,
        channels=u.shape[1] // groups,
        states=states,
        length=length,
        softplus=delta_softplus,
        threads=torch.get_num_threads(),
    )


def _inputs(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None
) -> tuple[ctypes.Structure, tuple[Tensor | None, ...]]:
    """The inputs as the kernels see them, and what must outlive the call besides."""
    A, D, delta_bias = A.contiguous(), _contiguous(D), _contiguous(delta_bias)
    made = struct(
        "ScanInputs",
        u=tensor(u),
        delta=tensor(delta),
        B=tensor(B),
        C=tensor(C),
        A=A.data_ptr(),
        D=pointer(D),
        delta_bias=pointer(delta_bias),
    )
    return made, (A, D, delta_bias)


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _padded_states(u: Tensor, A: Tensor, B: Tensor) -> int:
    groups = B.shape[1]
    return u.shape[0] * groups * -(-(u.shape[1] // groups) // _LANES) * _LANES * A.shape[1]
