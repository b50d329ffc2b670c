"""Mamba-2's scan over a map: read in four directions, scanned, and summed in place (forward type ``m0``)."""

from __future__ import annotations

import torch
from torch import Tensor

from vmamba.errors import InputError
from vmamba.scan.orders import cross_merge, directions_of, to_sequence
from vmamba.scan.selective_scan import check_same_place, savable
from vmamba.scan.ssd_scan import run_grouped


def ssd2d_scan(
    x: Tensor,
    x_dbl: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    scan_mode: str = "cross2d",
    dt_softplus: bool = True,
    *,
    backend: str | None = None,
) -> Tensor:
    """Scan a map with `ssd_scan`, each direction a group of ``r`` heads that share its B and C.

    Args:
        x: input map ``(b, h, w, d)``, ``d`` a multiple of ``r``; float32, bfloat16, float16 or float64.
        x_dbl: per pixel and direction the heads' steps, B and C, ``(b, h, w, k, r + 2n)`` with ``k = 4``: the x
            projection, applied once per pixel, since it commutes with the scan order.
        dt_bias: step bias ``(k, r)`` or None.
        A: decay of each head ``(k, r)``.
        D: skip ``(k, r, d/r)`` or None.
        scan_mode: ``"cross2d"``, ``"unidi"``, ``"bidi"`` or ``"rot2d"``.
        dt_softplus: whether the steps go through softplus.
        backend: as in `ssd_scan`.

    Returns:
        ``y (b, h, w, d)``, float32 (float64 for float64 ``x``).

    Raises:
        InputError: shapes, dtypes or devices that do not fit.
        ConfigError: an unknown scan mode.
        BackendError: an unknown backend, or a named one that cannot run this call.
    """
    directions = directions_of(scan_mode)
    _check(x, x_dbl, dt_bias, A, D)
    x, x_dbl, dt_bias, A, D = savable(x, x_dbl, dt_bias, A, D)  # type: ignore[assignment]
    (_, h, w, d), (_, r) = x.shape, A.shape
    n = (x_dbl.shape[-1] - r) // 2
    image, maps = x.permute(0, 3, 1, 2), x_dbl.permute(0, 3, 4, 1, 2)  # (b, d, h, w), (b, k, r + 2n, h, w)
    sequences = torch.stack([to_sequence(image, one).transpose(1, 2) for one in directions], 1)  # (b, k, l, d)
    own = torch.stack([to_sequence(maps[:, i], one).transpose(1, 2) for i, one in enumerate(directions)], 1)
    steps, B, C = own.split([r, n, n], dim=-1)  # each (b, k, l, ·)
    u = sequences.unflatten(-1, (r, d // r))
    y, _ = run_grouped(u, steps, A, B, C, D, dt_bias, dt_softplus, None, None, backend)
    ways = y.flatten(3).transpose(2, 3)  # (b, k, d, l)
    return cross_merge(ways, h, w, scan_mode).permute(0, 2, 3, 1)


def _check(x: Tensor, x_dbl: Tensor, dt_bias: Tensor | None, A: Tensor, D: Tensor | None) -> None:
    check_same_place({"x": x, "x_dbl": x_dbl, "dt_bias": dt_bias, "A": A, "D": D})

    def refuse(name: str, t: Tensor, want: str) -> InputError:
        return InputError(
            f"{name} has shape {tuple(t.shape)}, want {want}, given x {tuple(x.shape)}, x_dbl {tuple(x_dbl.shape)}, "
            f"A {tuple(A.shape)}"
        )

    if x.dim() != 4 or x.shape[1] < 1 or x.shape[2] < 1:
        raise refuse("x", x, "(b, h, w, d) with h, w ≥ 1")
    d = x.shape[3]
    if A.dim() != 2 or A.shape[0] != 4 or A.shape[1] < 1 or d % A.shape[1]:
        raise refuse("A", A, f"(k, r) = (4, r) with r that divides d = {d}")
    k, r = A.shape
    if x_dbl.dim() != 5 or x_dbl.shape[:4] != (*x.shape[:3], k) or x_dbl.shape[4] <= r or (x_dbl.shape[4] - r) % 2:
        raise refuse("x_dbl", x_dbl, f"(b, h, w, k, r + 2n) = {(*x.shape[:3], k)} and {r} + 2n with n ≥ 1")
    if dt_bias is not None and dt_bias.shape != A.shape:
        raise refuse("dt_bias", dt_bias, f"(k, r) = {(k, r)}")
    if D is not None and D.shape != (k, r, d // r):
        raise refuse("D", D, f"(k, r, d/r) = {(k, r, d // r)}")
