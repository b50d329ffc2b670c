"""Mamba-2's scan, the state-space dual: checks its tensors, asks whether the backend has it, and runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba import _torch
from vmamba.errors import InputError
from vmamba.scan import dispatch
from vmamba.scan.selective_scan import check_same_place, savable


@overload
def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    *,
    initial_states: Tensor | None = None,
    return_final_states: Literal[False] = False,
    chunk_size: int | None = None,
    backend: str | None = None,
) -> Tensor: ...


@overload
def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    *,
    initial_states: Tensor | None = None,
    return_final_states: Literal[True],
    chunk_size: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    *,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    chunk_size: int | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run Mamba-2's scan (arXiv 2405.21060, §6), in which a head of ``p`` channels shares one decay.

    With ``δ = softplus(dt + dt_bias)`` (softplus where asked, linear above 20), for each batch and head:

        S_t = exp(δ_t A) S_{t-1} + δ_t x_t B_tᵀ          S_0 = initial_states, or 0
        y_t = S_t C_t + D x_t

    A long input in pieces, each begun with the final states of the one before, gives what it gives whole.

    Args:
        x: input ``(b, l, h, p)``: h heads of p channels; float32, bfloat16, float16 or float64.
        dt: step ``(b, l, h)``.
        A: decay of each head ``(h,)``, usually negative.
        B: input matrix ``(b, l, g, n)``: ``h / g`` heads after each other share a group.
        C: output matrix, shaped as ``B``.
        D: skip ``(h,)``, or ``(h, p)`` for each channel, or None.
        dt_bias: ``(h,)`` or None.
        dt_softplus: whether the step goes through softplus.
        initial_states: ``(b, h, p, n)`` or None.
        return_final_states: also return the states behind the last position; they carry gradients.
        chunk_size: positions that are computed as one matrix; None for what is fast. The result depends on it by
            rounding only.
        backend: ``"oflex"``, which has this scan on CPUs, forward; ``"torch"``; or None for what `vmamba.backend`, the
            environment variable or else the machine decides.

    Returns:
        ``y (b, l, h, p)``, or ``y`` and the final states ``(b, h, p, n)``; both float32 (float64 for float64 ``x``), as
        is all that is summed.

    Raises:
        InputError: shapes, dtypes or devices that do not fit, or a chunk size below 1; the message shows them.
        BackendError: an unknown backend, or a named one that cannot run this call.
    """
    _check(x, dt, A, B, C, D, dt_bias, initial_states)
    if chunk_size is not None and chunk_size < 1:
        raise InputError(f"chunk_size {chunk_size} must be at least 1, or None for what is fast")
    x, dt, A, B, C, D, dt_bias, initial_states = savable(x, dt, A, B, C, D, dt_bias, initial_states)  # type: ignore[assignment]
    b, p, groups = x.shape[0], x.shape[3], B.shape[2]
    start = None
    if initial_states is not None:
        start = initial_states.unflatten(1, (groups, -1)).movedim(-1, 2).flatten(0, 1).flatten(2)  # (b·g, n, h/g·p)

    def alone(t: Tensor) -> Tensor:
        """Each group ``(b, l, g, …)`` a sequence of its own, ``(b·g, l, …)``."""
        return t.movedim(2, 1).flatten(0, 1)

    step, log_decay = steps(x, dt, A, dt_bias, dt_softplus)
    by_head = (alone(t.unflatten(2, (groups, -1))) for t in (x, step, log_decay))
    u, step, log_decay, B, C = (*by_head, alone(B), alone(C))
    one_way = (t[:, :, None] for t in (step, log_decay, B, C))
    y, last = run_ssd(u, *one_way, start=start, ends=return_final_states, chunk_size=chunk_size, backend=backend)  # type: ignore[misc]
    y = y.unflatten(0, (b, groups)).movedim(1, 2).flatten(2, 3)
    if D is not None:
        y = torch.addcmul(y, (D if D.dim() == 2 else D[:, None]).to(y.dtype), x.to(y.dtype))
    if not return_final_states:
        return y
    return y, last.unflatten(0, (b, groups)).unflatten(-1, (-1, p)).movedim(2, -1).flatten(1, 2)


def steps(x: Tensor, dt: Tensor, A: Tensor, dt_bias: Tensor | None, softplus: bool) -> tuple[Tensor, Tensor]:
    """The steps ``(…, *heads)`` in the dtype that sums have, and the log of what they leave of a state.

    ``dt (…, *heads)``, ``A, dt_bias (*heads)``.
    """
    dtype = sums_dtype(x)
    dt = dt.to(dtype) if dt_bias is None else dt.to(dtype) + dt_bias.to(dtype)
    dt = F.softplus(dt) if softplus else dt
    return dt, dt * A.to(dtype)


def sums_dtype(x: Tensor) -> torch.dtype:
    """What is summed for an input ``x`` is float32, or float64 where that is."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def run_ssd(
    x: Tensor,
    step: Tensor,
    log_decay: Tensor,
    B: Tensor,
    C: Tensor,
    start: Tensor | None = None,
    *,
    places: Tensor | None = None,
    axes: Sequence[int] = (0,),
    flips: Sequence[int] = (0,),
    ends: bool = False,
    chunk_size: int | None = None,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """The scan of a map in several directions without its skip, of tensors that were checked.

    Args:
        x: ``(b, *sizes, m, p)``.
        step, log_decay: for each direction ``(b, *sizes, k, m)``.
        B, C: ``(b, *sizes, k, n)``.
        start: with one direction, states to begin with ``(b, n, m·p)``.
        places: the places in the order of each direction ``(k, l)``, or None for nested loops.
        axes: one direction after the other, its loops over the map's axes, the outermost first.
        flips: as many, 1 for an axis that is read from its end, else 0; in the order of the map's axes.
        ends: with one direction, whether the last states are wanted.
        chunk_size, backend: as of `ssd_scan`.

    Returns:
        ``y`` like ``x``, and the last states like ``start``, or something else where they were not wanted.
    """
    name = dispatch.ambient() if backend is None else backend
    compiling = torch.compiler.is_compiling()
    transformed = _torch.is_functorch_traced() if compiling else _torch.is_transformed()
    chosen = dispatch.choose(name, "ssd_scan", x.device.type, x.dtype, transformed=transformed)
    run = dispatch.BACKENDS[chosen].operators
    dtype = sums_dtype(x)
    tensors = (None if t is None else t.to(dtype) for t in (x, step, log_decay, B, C, start))
    with _torch.without_autocast(x.device.type):
        y, last = run.ssd_scan(*tensors, places, axes, flips, ends, chunk_size)
    return y, last


def _check(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    initial_states: Tensor | None,
) -> None:
    named = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "dt_bias": dt_bias, "initial_states": initial_states}
    check_same_place(named)

    def refuse(name: str, t: Tensor, want: str) -> InputError:
        return InputError(
            f"{name} has shape {tuple(t.shape)}, want {want}, given x {tuple(x.shape)}, dt {tuple(dt.shape)}, "
            f"A {tuple(A.shape)}, B {tuple(B.shape)}, C {tuple(C.shape)}"
        )

    if x.dim() != 4 or min(x.shape[1:]) < 1:
        raise refuse("x", x, "(b, l, h, p) with l, h, p ≥ 1")
    b, length, heads, width = x.shape
    if dt.shape != (b, length, heads):
        raise refuse("dt", dt, f"(b, l, h) = {(b, length, heads)}")
    if A.shape != (heads,):
        raise refuse("A", A, f"(h,) = ({heads},)")
    if B.dim() != 4 or B.shape[:2] != (b, length) or B.shape[3] < 1:
        raise refuse("B", B, f"(b, l, g, n) = ({b}, {length}, g, n) with n ≥ 1")
    if B.shape[2] < 1 or heads % B.shape[2]:
        raise refuse("B", B, f"a number of groups g that divides the {heads} heads of x")
    if C.shape != B.shape:
        raise refuse("C", C, f"B's shape {tuple(B.shape)}")
    if D is not None and D.shape not in ((heads,), (heads, width)):
        raise refuse("D", D, f"(h,) = ({heads},) or (h, p) = {(heads, width)}")
    if dt_bias is not None and dt_bias.shape != (heads,):
        raise refuse("dt_bias", dt_bias, f"(h,) = ({heads},)")
    if initial_states is not None and initial_states.shape != (b, heads, width, B.shape[3]):
        raise refuse("initial_states", initial_states, f"(b, h, p, n) = {(b, heads, width, B.shape[3])}")
