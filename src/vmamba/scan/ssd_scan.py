"""Mamba-2's scan, the state-space dual: checks its tensors, asks whether the backend has it, and runs it."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

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
        backend: ``"torch"``, which alone has this scan, or None for what `vmamba.backend`, the environment variable
            or else the machine decides.

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
    groups = (B.shape[2], x.shape[2] // B.shape[2])
    y, last = run_grouped(
        x.unflatten(2, groups).movedim(2, 1),
        dt.unflatten(2, groups).movedim(2, 1),
        A.unflatten(0, groups),
        B.movedim(2, 1),
        C.movedim(2, 1),
        None if D is None else D.view(*groups, -1),
        None if dt_bias is None else dt_bias.unflatten(0, groups),
        dt_softplus,
        None if initial_states is None else initial_states.unflatten(1, groups),
        chunk_size,
        backend,
    )
    y = y.movedim(1, 2).flatten(2, 3)
    return (y, last.flatten(1, 2)) if return_final_states else y


def run_grouped(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    initial_states: Tensor | None,
    chunk_size: int | None,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """`ssd_scan` of tensors that were checked and have their groups as an axis of its own, before the length.

    ``x (b, g, l, m, p)``, ``dt (b, g, l, m)``, ``A (g, m)``, ``B, C (b, g, l, n)``, ``D (g, m, p)`` or ``(g, m, 1)``,
    ``dt_bias (g, m)``, ``initial_states (b, g, m, p, n)`` → ``y (b, g, l, m, p)`` and the final states.
    """
    name = dispatch.ambient() if backend is None else backend
    run = dispatch.BACKENDS[dispatch.choose(name, "ssd_scan", x.device.type, x.dtype)].operators
    y, last = run.ssd_scan(x, dt, A, B, C, D, dt_bias, dt_softplus, initial_states, chunk_size)
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
