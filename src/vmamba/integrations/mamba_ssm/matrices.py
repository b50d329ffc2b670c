"""B and C of a scan in all the shapes that mamba-ssm takes, and what no kernel takes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vmamba.errors import InputError


def grouped(u: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """``B`` and ``C``, each ``(d, n)``, ``(b, n, l)`` or ``(b, g, n, l)``, as ``(b, g, n, l)`` with one ``g``.

    Args:
        u: ``(b, d, l)``.
        A: ``(d, n)``.
        B, C: where they are ``(d, n)``, the same at each position, each channel becomes a group of its own.

    Raises:
        InputError: a complex tensor, or shapes that do not fit.
    """
    refuse_complex({"A": A, "B": B, "C": C})
    if u.dim() != 3 or A.dim() != 2 or A.shape[0] != u.shape[1]:
        raise InputError(f"want u (b, d, l) and A (d, n), given u {tuple(u.shape)}, A {tuple(A.shape)}")
    B, C = _four_axes("B", B, u, A), _four_axes("C", C, u, A)
    groups = max(B.shape[1], C.shape[1])
    if groups % B.shape[1] or groups % C.shape[1]:
        raise InputError(f"B has {B.shape[1]} groups and C {C.shape[1]}; one number must divide the other")
    B, C = (t if t.shape[1] == groups else t.repeat_interleave(groups // t.shape[1], dim=1) for t in (B, C))
    return B, C


def refuse_complex(tensors: Mapping[str, Tensor | None]) -> None:
    """Raise `InputError` for a complex tensor."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.is_complex():
            raise InputError(
                f"{name} is {tensor.dtype}: vmamba's kernels have real states only, as all published Mamba models do; "
                "use a real A, and B and C with one number a state, or the real mamba-ssm on a CUDA GPU"
            )


def _four_axes(name: str, t: Tensor, u: Tensor, A: Tensor) -> Tensor:
    b, d, length = u.shape
    n = A.shape[1]
    if t.shape == (d, n):
        return t[None, :, :, None].expand(b, d, n, length)
    grouped = t[:, None] if t.dim() == 3 else t
    groups = grouped.shape[1] if grouped.dim() == 4 else 0
    if groups and d % groups == 0 and grouped.shape == (b, groups, n, length):
        return grouped
    raise InputError(
        f"{name} has shape {tuple(t.shape)}, want (d, n) = ({d}, {n}), (b, n, l) = ({b}, {n}, {length}) or "
        f"(b, g, n, l) with g that divides d, given u {tuple(u.shape)} and A {tuple(A.shape)}"
    )
