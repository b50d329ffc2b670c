"""``selective_scan_cuda_core``, VMamba's compiled module: the scan without a gate, output in the input's dtype."""

from __future__ import annotations

from torch import Tensor

from vmamba.integrations.mamba_ssm.compiled import selective_scan_cuda_oflex as oflex
from vmamba.integrations.mamba_ssm.compiled.selective_scan_cuda_oflex import bwd

__all__ = ["bwd", "fwd"]


def fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
    /,
) -> list[Tensor]:
    """Run the scan. Shapes: `compiled.scan.Inputs`; ``nrows``, how the CUDA kernel is cut, is not read.

    Returns:
        ``[out, x]``: ``out (b, d, l)`` in u's dtype, and ``x`` with the last state
        in ``x[:, :, -1, 1::2]``.

    Raises:
        InputError: shapes or dtypes that do not fit, complex ones.
    """
    return oflex.fwd(u, delta, A, B, C, D, delta_bias, delta_softplus, nrows, False)
