"""What the tests of map scans share: inputs, hard ones too, and the float64 oracle's output."""

from __future__ import annotations

import torch
from torch import Tensor

from vmamba.scan import selective_scan_reference
from vmamba.scan.orders import cross_merge, cross_scan


def map_inputs(b: int, h: int, w: int, d: int, n: int, *, step: float = 0.0, decay: float = 1.0) -> list[Tensor | None]:
    """``x, x_dbl, dt_weight, dt_bias, A, D`` with steps of about softplus(``step``) and ``|A|`` of about ``decay``."""
    r = 2
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    return [
        normal(b, h, w, d),
        normal(b, h, w, 4, r + 2 * n),
        0.1 * normal(4, d, r),
        step + 0.1 * normal(4, d),
        -decay * torch.exp(0.1 * normal(4 * d, n)),
        normal(4 * d),
    ]


def map_oracle(values: list[Tensor | None], mode: str, softplus: bool = True) -> Tensor:
    x, x_dbl, dt_weight, dt_bias, A, D = (None if v is None else v.double() for v in values)
    assert x is not None
    assert x_dbl is not None
    assert dt_weight is not None
    assert A is not None
    _, h, w, _ = x.shape
    k, d, r = dt_weight.shape
    n = A.shape[1]
    u = cross_scan(x.permute(0, 3, 1, 2), mode)
    # Each direction reads its own part of x_dbl.
    maps = x_dbl.permute(0, 3, 4, 1, 2)
    own = torch.stack([cross_scan(maps[:, i], mode)[:, i] for i in range(4)], 1)
    low_rank, B, C = own.split([r, n, n], dim=2)
    delta = torch.matmul(dt_weight, low_rank)
    bias = None if dt_bias is None else dt_bias.flatten()
    y = selective_scan_reference(u.flatten(1, 2), delta.flatten(1, 2), A, B, C, D, bias, softplus)
    return cross_merge(y.unflatten(1, (k, d)), h, w, mode).permute(0, 2, 3, 1)


# softplus(30) |A| = 1e3 and more; softplus(-14) |A| = 8e-7.
HARD = {"large": (30.0, 40.0), "tiny": (-14.0, 1.0), "slow": (-4.0, 0.01)}
