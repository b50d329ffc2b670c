"""The selective scan: checks its tensors, picks a backend, and settles the output's dtype."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from vmamba.errors import InputError
from vmamba.kernels import torch_prefix
from vmamba.scan import dispatch

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    z: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_last_state: Literal[False] = False,
    oflex: bool = True,
    backend: str | None = None,
) -> Tensor: ...


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    z: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_last_state: Literal[True],
    oflex: bool = True,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]: ...


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    z: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    oflex: bool = True,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the selective scan of Mamba (arXiv 2312.00752, Alg. 2) with grouped ``B`` and ``C``.

    With ``δ = softplus(delta + delta_bias)`` (softplus where asked, linear above 20), for each batch, direction,
    channel:

        h_t = exp(δ_t A) h_{t-1} + δ_t B_t u_t          h_0 = initial_state, or 0
        y_t = C_t · h_t + D u_t                         times silu(z_t) where there is z

    A long input in pieces, each begun with the last state of the one before, gives what it gives whole, gradients too.

    Args:
        u: input ``(b, k·d, l)``; float32, bfloat16, float16, or float64 where the backend has it.
        delta: step ``(b, k·d, l)``.
        A: decay ``(k·d, n)``, usually negative.
        B: input matrix ``(b, k, n, l)``; ``(b, n, l)`` is taken as ``k = 1``.
        C: output matrix, shaped as ``B``.
        D: skip ``(k·d,)`` or None.
        delta_bias: ``(k·d,)`` or None.
        delta_softplus: whether the step goes through softplus.
        z: gate ``(b, k·d, l)`` or None.
        initial_state: ``(b, k·d, n)`` or None. Backend ``"mamba"`` has none.
        return_last_state: also return the state behind the last position. It carries gradients, which mamba-ssm's own
            does not, nor backend ``"mamba"``, which refuses it where gradients are asked for.
        oflex: return float32 for 16- and 32-bit inputs; False returns ``u.dtype``.
        backend: ``"oflex"``, ``"mamba"``, ``"torch"``, or None for what `vmamba.backend`, the environment
            variable or else the machine decides.

    Returns:
        ``y (b, k·d, l)``, or ``y`` and the last state ``(b, k·d, n)``. State and accumulation are float32 (float64 for
        float64 ``u``). Backward gives every gradient, each in its input's dtype.

    Raises:
        InputError: shapes, dtypes or devices that do not fit; the message shows them.
        BackendError: an unknown backend, or a named one that cannot run this call.
    """
    if B.dim() == 3:
        B = B[:, None]
    if C.dim() == 3:
        C = C[:, None]
    _check(u, delta, A, B, C, D, delta_bias, z, initial_state)
    u, delta, A, B, C, D, delta_bias, z, initial_state = savable(u, delta, A, B, C, D, delta_bias, z, initial_state)  # type: ignore[assignment]
    if z is None and initial_state is None and not return_last_state:
        run = dispatch.operators(backend, "selective_scan", u, A, delta, B, C, D, delta_bias)
        y: Tensor = run.selective_scan(u, delta, A, B, C, D, delta_bias, delta_softplus)
        return y if oflex else y.to(u.dtype)
    others, starts = (delta, B, C, D, delta_bias, z, initial_state), initial_state is not None
    run = dispatch.operators(backend, "selective_scan", u, A, *others, initial=starts, last=return_last_state)
    # What exporters put in a backend's place has the plain scan only; the operations of "torch" they can trace.
    run = run if hasattr(run, "selective_scan_states") else torch_prefix
    y, last = run.selective_scan_states(u, delta, A, B, C, D, delta_bias, z, initial_state, delta_softplus)
    y = y if oflex else y.to(u.dtype)
    return (y, last) if return_last_state else y


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    oflex: bool = True,
    backend: str | None = None,
) -> Tensor:
    """`selective_scan` under upstream's name, positional order and defaults."""
    return selective_scan(u, delta, A, B, C, D, delta_bias, delta_softplus, oflex=oflex, backend=backend)


def savable(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in a form that backward can keep: those made in inference mode are copied where gradients are on."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return tensors
    return tuple(t.clone() if t is not None and t.is_inference() else t for t in tensors)


def check_same_place(tensors: dict[str, Tensor | None]) -> None:
    """Raise `InputError` unless all are dense, floating point and on one device; the message names the odd one."""
    first_name, first = next(iter(tensors.items()))
    assert first is not None
    device = first.device
    for name, t in tensors.items():
        if t is None:
            continue
        if t.dtype not in FLOATS:
            raise InputError(f"{name} is {t.dtype}; the scan takes float32, bfloat16, float16 or float64: convert it")
        if t.device != device:
            raise InputError(
                f"{name} is on {t.device} but {first_name} is on {device}; move them to one device with .to()"
            )
        if t.layout != torch.strided:
            raise InputError(f"{name} is {t.layout}; the scan takes dense tensors: convert it with .to_dense()")


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    named = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias}
    check_same_place({**named, "z": z, "initial_state": initial_state})

    def refuse(name: str, t: Tensor, want: str) -> InputError:
        return InputError(
            f"{name} has shape {tuple(t.shape)}, want {want}, given u {tuple(u.shape)}, delta {tuple(delta.shape)}, "
            f"A {tuple(A.shape)}, B {tuple(B.shape)}, C {tuple(C.shape)}"
        )

    if u.dim() != 3 or u.shape[2] < 1:
        raise refuse("u", u, "(b, k·d, l) with l ≥ 1")
    b, channels, length = u.shape
    if delta.shape != u.shape:
        raise refuse("delta", delta, f"u's shape {tuple(u.shape)}")
    if A.dim() != 2 or A.shape[0] != channels or A.shape[1] < 1:
        raise refuse("A", A, f"(k·d, n) = ({channels}, n) with n ≥ 1")
    n = A.shape[1]
    if B.dim() != 4 or B.shape[0] != b or B.shape[2] != n or B.shape[3] != length:
        raise refuse("B", B, f"(b, k, n, l) = ({b}, k, {n}, {length})")
    if B.shape[1] < 1 or channels % B.shape[1]:
        raise refuse("B", B, f"a number of directions k that divides the {channels} channels of u")
    if C.shape != B.shape:
        raise refuse("C", C, f"B's shape {tuple(B.shape)}")
    if D is not None and D.shape != (channels,):
        raise refuse("D", D, f"(k·d,) = ({channels},)")
    if delta_bias is not None and delta_bias.shape != (channels,):
        raise refuse("delta_bias", delta_bias, f"(k·d,) = ({channels},)")
    if z is not None and z.shape != u.shape:
        raise refuse("z", z, f"u's shape {tuple(u.shape)}")
    if initial_state is not None and initial_state.shape != (b, channels, n):
        raise refuse("initial_state", initial_state, f"(b, k·d, n) = ({b}, {channels}, {n})")
