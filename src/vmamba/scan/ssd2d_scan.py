"""Mamba-2's scan over a map: read in four directions, scanned, and summed in place (forward type ``m0``)."""

from __future__ import annotations

import torch
from torch import Tensor

from vmamba.scan.orders import directions_of, from_sequence, to_sequence
from vmamba.scan.ssd_scan import ssd_scan


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
    _, h, w, d = x.shape
    r = A.shape[1]
    image, maps = x.permute(0, 3, 1, 2), x_dbl.permute(0, 3, 4, 1, 2)  # (b, d, h, w), (b, k, r + 2n, h, w)
    sequences = torch.stack([to_sequence(image, one).transpose(1, 2) for one in directions], 2)  # (b, l, k, d)
    own = torch.stack([to_sequence(maps[:, i], one).transpose(1, 2) for i, one in enumerate(directions)], 2)
    n = (own.shape[-1] - r) // 2
    steps, B, C = own.split([r, n, n], dim=-1)  # each (b, l, k, ·)
    y = ssd_scan(
        sequences.unflatten(-1, (r, d // r)).flatten(2, 3),
        steps.flatten(2),
        A.flatten(),
        B,
        C,
        None if D is None else D.flatten(0, 1),
        None if dt_bias is None else dt_bias.flatten(),
        dt_softplus,
        backend=backend,
    )
    ways = y.unflatten(2, (len(directions), r)).flatten(-2).permute(2, 0, 3, 1)  # (k, b, d, l)
    images = [from_sequence(way, one, h, w) for way, one in zip(ways, directions, strict=True)]
    return (images[0] + images[1] + images[2] + images[3]).permute(0, 2, 3, 1)
