"""The 2-d selective scan: scan orders, step projection, scan and merge as one operator over channels-last memory.

A backend with a fused kernel runs it in one pass; for any other it is composed here from that backend's
`selective_scan`, which is also what the fused kernels are tested against.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vmamba import _torch
from vmamba.errors import InputError
from vmamba.scan import dispatch
from vmamba.scan.orders import cross_merge, cross_scan, directions_of, to_sequence
from vmamba.scan.selective_scan import check_same_place, savable


def ss2d_scan(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    scan_mode: str = "cross2d",
    delta_softplus: bool = True,
    *,
    backend: str | None = None,
) -> Tensor:
    """Scan a map in four directions and sum them in place (VMamba, arXiv 2401.10166, §4.2, SS2D).

    Args:
        x: input map ``(b, h, w, d)``; float32, bfloat16, float16, or float64 where the backend has it.
        x_dbl: per pixel and direction the low-rank step, B and C, ``(b, h, w, k, r + 2n)`` with ``k = 4``: the x
            projection, applied once per pixel, since it commutes with the scan order.
        dt_weight: step projection ``(k, d, r)``.
        dt_bias: step bias ``(k, d)`` or None.
        A: decay ``(k·d, n)``.
        D: skip ``(k·d,)`` or None.
        scan_mode: ``"cross2d"``, ``"unidi"``, ``"bidi"`` or ``"rot2d"``.
        delta_softplus: whether the step goes through softplus.
        backend: as in `selective_scan`.

    Returns:
        ``y (b, h, w, d)``, float32 (float64 for float64 ``x``).

    Raises:
        InputError: shapes, dtypes or devices that do not fit.
        ConfigError: an unknown scan mode.
        BackendError: an unknown backend, or a named one that cannot run this call.
    """
    _check(x, x_dbl, dt_weight, dt_bias, A, D)
    directions_of(scan_mode)
    x, x_dbl, dt_weight, dt_bias, A, D = savable(x, x_dbl, dt_weight, dt_bias, A, D)  # type: ignore[assignment]
    run = dispatch.operators(backend, "ss2d_scan", x, A, x_dbl, dt_weight, dt_bias, D)
    fused = getattr(run, "ss2d_scan", None)
    scan = partial(_composed, run.selective_scan) if fused is None else fused
    y: Tensor = scan(x, x_dbl, dt_weight, dt_bias, A, D, scan_mode, delta_softplus)
    return y


def _composed(
    selective_scan: Callable[..., Tensor],
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    scan_mode: str,
    delta_softplus: bool,
) -> Tensor:
    """`ss2d_scan` as cross-scan, step projection, a backend's ``selective_scan`` and cross-merge."""
    _, h, w, _ = x.shape
    k, d, r = dt_weight.shape
    n = A.shape[1]
    u = cross_scan(x.permute(0, 3, 1, 2), scan_mode)  # (b, k, d, l)
    maps = x_dbl.permute(0, 3, 4, 1, 2)  # (b, k, r + 2n, h, w)
    sequences = [to_sequence(maps[:, i], direction) for i, direction in enumerate(directions_of(scan_mode))]
    low_rank, B, C = torch.stack(sequences, dim=1).split([r, n, n], dim=2)
    delta = step_projection(dt_weight, low_rank, x.dtype)  # (b, k, d, l)
    bias = None if dt_bias is None else dt_bias.flatten()
    y = selective_scan(u.flatten(1, 2), delta.flatten(1, 2), A, B, C, D, bias, delta_softplus)
    return cross_merge(y.unflatten(1, (k, d)), h, w, scan_mode).permute(0, 2, 3, 1)


def step_projection(dt_weight: Tensor, low_rank: Tensor, dtype: torch.dtype) -> Tensor:
    """``dt_weight (k, d, r)`` times ``low_rank (b, k, r, l)``: the step before bias and softplus, ``(b, k, d, l)``.

    It is float32, under autocast too, and float64 where ``dtype``, that of the scanned map, is.
    """
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    with _torch.without_autocast(low_rank.device.type):
        return torch.matmul(dt_weight.to(compute), low_rank.to(compute))


def _check(x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A: Tensor, D: Tensor | None) -> None:
    check_same_place({"x": x, "x_dbl": x_dbl, "dt_weight": dt_weight, "dt_bias": dt_bias, "A": A, "D": D})

    def refuse(name: str, t: Tensor, want: str) -> InputError:
        return InputError(
            f"{name} has shape {tuple(t.shape)}, want {want}, given x {tuple(x.shape)}, x_dbl {tuple(x_dbl.shape)}, "
            f"dt_weight {tuple(dt_weight.shape)}, A {tuple(A.shape)}"
        )

    if x.dim() != 4 or x.shape[1] < 1 or x.shape[2] < 1:
        raise refuse("x", x, "(b, h, w, d) with h, w ≥ 1")
    d = x.shape[3]
    if dt_weight.dim() != 3 or dt_weight.shape[0] != 4 or dt_weight.shape[1] != d:
        raise refuse("dt_weight", dt_weight, f"(k, d, r) = (4, {d}, r)")
    check_recurrence(x, x_dbl, dt_weight, dt_bias, A, D, "h, w", refuse)


def check_recurrence(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    sizes: str,
    refuse: Callable[[str, Tensor, str], InputError],
) -> None:
    """Make sure that the rest fits to a map ``x (b, *sizes, d)`` and a ``dt_weight (k, d, r)``, whatever its axes.

    Args:
        x, x_dbl, dt_weight, dt_bias, A, D: as of `ss2d_scan`.
        sizes: names of the map's axes, for messages.
        refuse: makes the error from an argument's name, itself, and what it should be.

    Raises:
        InputError: what ``refuse`` makes.
    """
    k, d, r = dt_weight.shape
    if A.dim() != 2 or A.shape[0] != k * d or A.shape[1] < 1:
        raise refuse("A", A, f"(k·d, n) = ({k * d}, n) with n ≥ 1")
    width = r + 2 * A.shape[1]
    if x_dbl.shape != (*x.shape[:-1], k, width):
        raise refuse("x_dbl", x_dbl, f"(b, {sizes}, k, r + 2n) = {(*x.shape[:-1], k, width)}")
    if dt_bias is not None and dt_bias.shape != (k, d):
        raise refuse("dt_bias", dt_bias, f"(k, d) = {(k, d)}")
    if D is not None and D.shape != (k * d,):
        raise refuse("D", D, f"(k·d,) = ({k * d},)")
