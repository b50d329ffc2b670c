"""The selective scan: checks its tensors, picks a backend, and settles the output's dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from vmamba.errors import InputError
from vmamba.scan import dispatch

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


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
    oflex: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Run the selective scan of Mamba (arXiv 2312.00752, Alg. 2) with grouped ``B`` and ``C``.

    With ``δ = softplus(delta + delta_bias)`` (softplus where asked, linear above 20), for each batch, direction,
    channel:

        h_t = exp(δ_t A) h_{t-1} + δ_t B_t u_t          h_0 = 0
        y_t = C_t · h_t + D u_t

    Args:
        u: input ``(b, k·d, l)``; float32, bfloat16, float16, or float64 where the backend has it.
        delta: step ``(b, k·d, l)``.
        A: decay ``(k·d, n)``, usually negative.
        B: input matrix ``(b, k, n, l)``; ``(b, n, l)`` is taken as ``k = 1``.
        C: output matrix, shaped as ``B``.
        D: skip ``(k·d,)`` or None.
        delta_bias: ``(k·d,)`` or None.
        delta_softplus: whether the step goes through softplus.
        oflex: return float32 for 16- and 32-bit inputs; False returns ``u.dtype``.
        backend: ``"oflex"``, ``"mamba"``, ``"torch"``, or None for what `vmamba.backend`, the environment
            variable or else the machine decides.

    Returns:
        ``y (b, k·d, l)``. State and accumulation are float32 (float64 for float64 ``u``). Backward gives every
        gradient, each in its input's dtype.

    Raises:
        InputError: shapes, dtypes or devices that do not fit; the message shows them.
        BackendError: an unknown backend, or a named one that cannot run this call.
    """
    if B.dim() == 3:
        B = B[:, None]
    if C.dim() == 3:
        C = C[:, None]
    _check(u, delta, A, B, C, D, delta_bias)
    u, delta, A, B, C, D, delta_bias = savable(u, delta, A, B, C, D, delta_bias)  # type: ignore[assignment]
    run = dispatch.operators(backend, "selective_scan", u, A, delta, B, C, D, delta_bias)
    y: Tensor = run.selective_scan(u, delta, A, B, C, D, delta_bias, delta_softplus)
    return y if oflex else y.to(u.dtype)


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
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None
) -> None:
    check_same_place({"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias})

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
