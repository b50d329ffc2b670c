"""The cascade: rows scanned first, then the columns of what the rows gave (forward type ``v052dc``).

The second pass depends on the first's result, so this is two composed selective scans, not one fused operator.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.scan.selective_scan import selective_scan
from vmamba.scan.ss2d_scan import step_projection


def cascade_scan(
    x: Tensor,
    x_proj_weight: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    delta_softplus: bool = True,
    *,
    backend: str | None = None,
) -> Tensor:
    """Scan every row both ways, then every column of the sum both ways.

    As upstream does it, a reversed sequence is summed with the forward one without being turned back, and each pass
    starts from a layer norm without weights (eps 1e-5).

    Args:
        x: ``(b, h, w, d)``.
        x_proj_weight: ``(4, r + 2n, d)``; directions 0 and 1 serve the rows, 2 and 3 the columns. So do the rest.
        dt_weight: ``(4, d, r)``.
        dt_bias: ``(4, d)``.
        A: ``(4·d, n)``.
        D: ``(4·d,)``.
        delta_softplus: whether the step goes through softplus.
        backend: as in `selective_scan`.

    Returns:
        ``y (b, h, w, d)``, float32 (float64 for float64 ``x``).
    """
    _, d, r = dt_weight.shape
    n = A.shape[1]

    def both_ways(rows: Tensor, pair: slice) -> Tensor:
        """Scan ``rows (b, rows, steps, d)`` along its third axis, forward and reversed, and sum."""
        rows = F.layer_norm(rows, (d,))
        sequences = torch.stack([rows, rows.flip(2)], dim=2).flatten(0, 1)  # (b·rows, 2, steps, d)
        x_dbl = torch.matmul(sequences, x_proj_weight[pair].to(sequences.dtype).transpose(1, 2))
        low_rank, B, C = x_dbl.transpose(2, 3).split([r, n, n], dim=2)  # each (b·rows, 2, ·, steps)
        delta = step_projection(dt_weight[pair], low_rank, x.dtype)
        channels = slice(pair.start * d, pair.stop * d)
        y = selective_scan(
            sequences.transpose(2, 3).flatten(1, 2),
            delta.flatten(1, 2),
            A[channels],
            B,
            C,
            D[channels],
            dt_bias[pair].flatten(),
            delta_softplus,
            backend=backend,
        )
        summed: Tensor = y.unflatten(1, (2, d)).sum(1).unflatten(0, rows.shape[:2])  # (b, rows, d, steps)
        return summed.transpose(2, 3)

    y = both_ways(x, slice(0, 2))
    return both_ways(y.transpose(1, 2), slice(2, 4)).transpose(1, 2)
