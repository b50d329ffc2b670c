"""Initial values of the scan's parameters: upstream's ``ssm_init`` modes ``v0``, ``v1`` and ``v2``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vmamba.errors import ConfigError, nearest

DIRECTIONS = 4
SSM_INITS = ("v0", "v1", "v2")
MAMBA2_INITS = ("v1", "v2")
DT_INITS = ("random", "constant")


def init_scan_parameters(
    mode: str,
    d_inner: int,
    d_state: int,
    dt_rank: int,
    directions: int = DIRECTIONS,
    *,
    dt_min: float = 1e-3,
    dt_max: float = 0.1,
    dt_init: str = "random",
    dt_scale: float = 1.0,
    dt_init_floor: float = 1e-4,
) -> dict[str, Tensor]:
    """Draw ``A_logs (k·d, n)``, ``Ds (k·d,)``, ``dt_projs_weight (k, d, r)`` and ``dt_projs_bias (k, d)``.

    ``v0`` is Mamba's (arXiv 2312.00752, §3.6): ``A = -(1..n)``, steps log-uniform in [dt_min, dt_max] and at least
    ``dt_init_floor`` through the inverse softplus, step weights uniform in ±dt_scale·r^-½, or that number itself
    where ``dt_init`` is ``"constant"``. ``v1`` draws ``A_logs`` normal and the step projection 0.1 · normal; ``v2``
    has ``A_logs`` zero and the step projection 0.1 · uniform[0, 1); both know none of the ``dt_`` arguments. ``Ds``
    is one in all.

    Raises:
        ConfigError: an unknown mode, or steps that cannot be.
    """
    if dt_init not in DT_INITS:
        raise ConfigError(f"dt_init {dt_init!r} is unknown; legal: {', '.join(DT_INITS)}{nearest(dt_init, DT_INITS)}")
    if not 0 < dt_min <= dt_max or dt_init_floor < 0:
        raise ConfigError(
            f"steps need 0 < dt_min ≤ dt_max and dt_init_floor ≥ 0, given dt_min={dt_min}, dt_max={dt_max}, "
            f"dt_init_floor={dt_init_floor}"
        )
    Ds = torch.ones(directions * d_inner)
    if mode == "v0":
        A_logs = torch.log(torch.arange(1, d_state + 1)).repeat(directions * d_inner, 1)
        bound = dt_scale * dt_rank**-0.5
        weight = torch.empty(directions, d_inner, dt_rank)
        weight = weight.uniform_(-bound, bound) if dt_init == "random" else weight.fill_(bound)
        low, high = math.log(dt_min), math.log(dt_max)
        step = torch.exp(torch.rand(directions, d_inner) * (high - low) + low).clamp(min=dt_init_floor)
        bias = step + torch.log(-torch.expm1(-step))  # softplus(bias) = step
    elif mode == "v1":
        A_logs = torch.randn(directions * d_inner, d_state)
        weight = 0.1 * torch.randn(directions, d_inner, dt_rank)
        bias = 0.1 * torch.randn(directions, d_inner)
    elif mode == "v2":
        A_logs = torch.zeros(directions * d_inner, d_state)
        weight = 0.1 * torch.rand(directions, d_inner, dt_rank)
        bias = 0.1 * torch.rand(directions, d_inner)
    else:
        raise ConfigError(f"ssm_init {mode!r} is unknown; legal: {', '.join(SSM_INITS)}")
    return {"A_logs": A_logs, "Ds": Ds, "dt_projs_weight": weight, "dt_projs_bias": bias}


def init_mamba2_parameters(mode: str, d_inner: int, heads: int, directions: int = DIRECTIONS) -> dict[str, Tensor]:
    """Draw ``Ds (k, r, d/r)``, ``A_logs (k, r)`` and ``dt_projs_bias (k, r)`` of Mamba-2's scan with ``r`` heads.

    Modes ``v1`` and ``v2`` as of `init_scan_parameters`, one decay and one step bias a head.

    Raises:
        ConfigError: another mode, or channels that the heads cannot share evenly.
    """
    check_mamba2_init(mode)
    if d_inner % heads:
        raise ConfigError(
            f"Mamba-2's scan (forward type 'm0') cuts the {d_inner} channels of d_inner into dt_rank {heads} heads; "
            "give a dt_rank that divides them"
        )
    shape = directions, heads
    return {
        "Ds": torch.ones(*shape, d_inner // heads),
        "A_logs": torch.randn(shape) if mode == "v1" else torch.zeros(shape),
        "dt_projs_bias": 0.1 * (torch.randn(shape) if mode == "v1" else torch.rand(shape)),
    }


def check_mamba2_init(mode: str) -> None:
    """Raise `ConfigError` unless Mamba-2's scan has this init."""
    if mode not in MAMBA2_INITS:
        raise ConfigError(
            f"forward type 'm0' has no ssm_init {mode!r}, which draws a decay for every channel; legal with it: "
            f"{', '.join(MAMBA2_INITS)}"
        )


def init_projection_weight(rows: int, d_inner: int, directions: int = DIRECTIONS) -> Tensor:
    """Draw an x projection ``(k, rows, d)`` as `torch.nn.Linear` draws its weight: uniform in ±d^-½."""
    bound = d_inner**-0.5
    return torch.empty(directions, rows, d_inner).uniform_(-bound, bound)
