"""``selective_scan``, VMamba's early package: the scan with arguments in its order, output in the input's dtype."""

from __future__ import annotations

from torch import Tensor

from vmamba import _torch
from vmamba.integrations.mamba_ssm.matrices import refuse_complex
from vmamba.scan import selective_scan, selective_scan_reference

__all__ = ["selective_scan_fn", "selective_scan_ref"]


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    nrows: int = 1,
    backnrows: int = -1,
) -> Tensor:
    """Run `vmamba.scan.selective_scan`; ``y (b, k·d, l)`` in u's dtype.

    ``nrows`` and ``backnrows``, how the CUDA kernel is cut, are not read.

    Raises:
        InputError: shapes or dtypes that do not fit, complex ones.
    """
    refuse_complex({"u": u, "A": A, "B": B, "C": C})
    with _torch.without_autocast(u.device.type):
        return selective_scan(u, delta, A, B, C, D, delta_bias, delta_softplus, oflex=False)


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """The same as a plain loop, slow: `vmamba.scan.selective_scan_reference`."""
    refuse_complex({"u": u, "A": A, "B": B, "C": C})
    B, C = (m[:, None] if m.dim() == 3 else m for m in (B, C))
    return selective_scan_reference(u, delta, A, B, C, D, delta_bias, delta_softplus).to(u.dtype)
