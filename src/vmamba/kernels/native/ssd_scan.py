"""Mamba-2's scan of a map, compiled (``csrc/ssd/``), forward, into memory that the caller gives."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vmamba.kernels.native import library
from vmamba.kernels.native.library import KernelCall
from vmamba.kernels.native.structs import absent, pointer, struct, tensor
from vmamba.kernels.reading import Way
from vmamba.kernels.ssd.maps import MapScan

_STEPS, _PRODUCTS = 4, 16  # as in csrc/ssd/ssd_args.h
_UNIT, _MOST = 16, 64  # channels of a task: a multiple of the one, at most the other, as there
_TASKS = 3  # for each thread, where there are channels for them; results do not depend on how they are cut

#: Makes a float32 workspace of so many elements.
Workspace = Callable[[int], Tensor]


def forward(scan: MapScan, y: Tensor, last: Tensor | None, workspace: Workspace) -> str:
    """Fill ``y``, without the skip, and ``last``; not for empty maps.

    Args:
        scan: float32 tensors in any layout; ``places`` int32, contiguous, each a place of the map.
        y: like ``x``, contiguous.
        last: memory for the last states ``(b, n, m·p)``, contiguous, or None where they are not wanted.
        workspace: makes memory for this call.

    Returns:
        the instruction set that ran.
    """
    sizes, order = scan.x.shape[1:-2], scan.places
    if order is None:
        order = _order(tuple(sizes), tuple(scan.axes), tuple(scan.flips))
    x, log_decay = _rows(scan.x.flatten(-2), len(sizes)), _rows(scan.log_decay, len(sizes))
    start = None if scan.start is None else scan.start.contiguous()
    prepared = _call(
        x,
        [_rows(t, len(sizes)) for t in (scan.dt, scan.B, scan.C)],
        order,
        y,
        workspace,
        keep=(log_decay, start),
        log_decay=tensor(log_decay),
        A=None,
        dt_bias=None,
        D=None,
        start=pointer(start),
        last=pointer(last),
    )
    return library.run(prepared)


def forward_call(
    x: Tensor,
    x_dbl: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    axes: Sequence[int],
    flips: Sequence[int],
    y: Tensor,
    workspace: Workspace,
) -> KernelCall:
    """Prepare the scan of `vmamba.scan.ssd_order_scan` with its softplus and its skip; not for empty maps.

    Args:
        x: ``(b, *sizes, d)``, contiguous, of any type that the kernels have.
        x_dbl: ``(b, *sizes, k, r + 2n)``, contiguous, float32.
        dt_bias, A: ``(k, r)``, contiguous, float32.
        D: of all directions together ``(d,)``, contiguous, float32.
        axes, flips: as of `MapScan`.
        y: the result, like ``x``, contiguous, float32.
        workspace: makes memory for this call.
    """
    sizes, r = x.shape[1:-1], A.shape[1]
    x_dbl = x_dbl.flatten(1, len(sizes))
    n = (x_dbl.shape[-1] - r) // 2
    return _call(
        x.flatten(1, len(sizes)),
        x_dbl.split([r, n, n], dim=-1),
        _order(tuple(sizes), tuple(axes), tuple(flips)),
        y,
        workspace,
        keep=(A, dt_bias, D),
        log_decay=absent(),
        A=A.data_ptr(),
        dt_bias=dt_bias.data_ptr(),
        D=D.data_ptr(),
        start=None,
        last=None,
    )


def _call(
    x: Tensor,
    steps: Sequence[Tensor],
    order: Tensor | None,
    y: Tensor,
    workspace: Workspace,
    keep: tuple[Tensor | None, ...],
    **others: Any,
) -> KernelCall:
    """The call with ``x (b, l, d)``, dt, B and C as ``steps (b, l, k, ·)``, ``order (k, l)``, and other fields."""
    dt, B, C = steps
    (b, count, d), (k, m), n = x.shape, dt.shape[-2:], B.shape[-1]
    threads = torch.get_num_threads()
    part = min(_MOST, max(1, b * -(-d // _UNIT) // (_TASKS * threads)) * _UNIT)
    floats = -(-n * (part + 1) // 16) * 16
    products = b * k * -(-count // _STEPS) * _PRODUCTS
    memory = workspace(products + threads * floats)
    args = struct(
        "SsdForwardArgs",
        batch=b,
        places=count,
        heads=m,
        width=d // m,
        states=n,
        directions=k,
        x=tensor(x),
        dt=tensor(dt),
        B=tensor(B),
        C=tensor(C),
        order=pointer(order),
        y=y.data_ptr(),
        part=part,
        threads=threads,
        products=memory.data_ptr(),
        workspace=memory[products:].data_ptr(),
        workspace_floats=floats,
        **others,
    )
    return KernelCall("ssd_forward", args, (x, dt, B, C, order, y, memory, *keep))


def _rows(t: Tensor, axes: int) -> Tensor:
    """``t (b, *sizes, …)`` with the map's axes as one, and neighbours along the last axis; copied where it must be."""
    t = t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()
    return t.flatten(1, axes)


@functools.lru_cache(maxsize=64)
def _order(sizes: tuple[int, ...], axes: tuple[int, ...], flips: tuple[int, ...]) -> Tensor | None:
    """The places that each direction reads ``(k, l)``, or None for one that reads them as they lie."""
    ndim = len(sizes)
    if axes == tuple(range(ndim)) and not any(flips):
        return None
    with torch.inference_mode(False):
        places = torch.arange(torch.Size(sizes).numel(), dtype=torch.int32, device="cpu").view(1, *sizes)
        starts = range(0, len(axes), ndim)
        flipped = (tuple(axis for axis in range(ndim) if flips[i + axis]) for i in starts)
        ways = (Way(axes[i : i + ndim], those) for i, those in zip(starts, flipped, strict=True))
        return torch.cat([way.read(places, 1) for way in ways])
