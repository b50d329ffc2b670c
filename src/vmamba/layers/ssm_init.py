"""Initial values of the scan's parameters: upstream's ``ssm_init`` modes ``v0``, ``v1`` and ``v2``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vmamba.errors import ConfigError

DIRECTIONS = 4
SSM_INITS = ("v0", "v1", "v2")


def init_scan_parameters(mode: str, d_inner: int, d_state: int, dt_rank: int) -> dict[str, Tensor]:
    """Draw ``A_logs (4·d, n)``, ``Ds (4·d,)``, ``dt_projs_weight (4, d, r)`` and ``dt_projs_bias (4, d)``.

    ``v0`` is Mamba's (arXiv 2312.00752, §3.6): ``A = -(1..n)``, steps log-uniform in [1e-3, 0.1] through the inverse
    softplus,
    step weights uniform in ±r^-½. ``v1`` draws ``A_logs`` normal and the step projection 0.1 · normal; ``v2`` has
    ``A_logs`` zero and the step projection 0.1 · uniform[0, 1). ``Ds`` is one in all.

    Raises:
        ConfigError: an unknown mode.
    """
    Ds = torch.ones(DIRECTIONS * d_inner)
    if mode == "v0":
        A_logs = torch.log(torch.arange(1, d_state + 1)).repeat(DIRECTIONS * d_inner, 1)
        bound = dt_rank**-0.5
        weight = torch.empty(DIRECTIONS, d_inner, dt_rank).uniform_(-bound, bound)
        low, high = math.log(1e-3), math.log(0.1)
        step = torch.exp(torch.rand(DIRECTIONS, d_inner) * (high - low) + low).clamp(min=1e-4)
        bias = step + torch.log(-torch.expm1(-step))  # softplus(bias) = step
    elif mode == "v1":
        A_logs = torch.randn(DIRECTIONS * d_inner, d_state)
        weight = 0.1 * torch.randn(DIRECTIONS, d_inner, dt_rank)
        bias = 0.1 * torch.randn(DIRECTIONS, d_inner)
    elif mode == "v2":
        A_logs = torch.zeros(DIRECTIONS * d_inner, d_state)
        weight = 0.1 * torch.rand(DIRECTIONS, d_inner, dt_rank)
        bias = 0.1 * torch.rand(DIRECTIONS, d_inner)
    else:
        raise ConfigError(f"ssm_init {mode!r} is unknown; legal: {', '.join(SSM_INITS)}")
    return {"A_logs": A_logs, "Ds": Ds, "dt_projs_weight": weight, "dt_projs_bias": bias}


def init_projection_weight(rows: int, d_inner: int) -> Tensor:
    """Draw an x projection ``(4, rows, d)`` as `torch.nn.Linear` draws its weight: uniform in ±d^-½."""
    bound = d_inner**-0.5
    return torch.empty(DIRECTIONS, rows, d_inner).uniform_(-bound, bound)
