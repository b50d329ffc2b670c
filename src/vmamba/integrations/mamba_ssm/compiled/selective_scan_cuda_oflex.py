"""``selective_scan_cuda_oflex``, VMamba's compiled module: the scan without a gate, float32 output if asked."""

from __future__ import annotations

from torch import Tensor

from vmamba.integrations.mamba_ssm.compiled.scan import Inputs, backward, forward

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
    oflex: bool = True,
    /,
) -> list[Tensor]:
    """Run the scan. Shapes: `compiled.scan.Inputs`; ``nrows``, how the CUDA kernel is cut, is not read.

    Returns:
        ``[out, x]``: ``out (b, d, l)`` in float32 if ``oflex`` is True (float64 for float64), else in u's dtype, and
        ``x`` with the last state in ``x[:, :, -1, 1::2]``.

    Raises:
        InputError: shapes or dtypes that do not fit, complex ones.
    """
    y, x = forward(Inputs(u, delta, A, B, C, D, None, delta_bias), delta_softplus)
    return [y if oflex else y.to(u.dtype), x]


def bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
    /,
) -> list[Tensor | None]:
    """Run the scan's backward pass.

    Args:
        u, …, delta_bias, delta_softplus: as in `fwd`.
        dout: gradient ``(b, d, l)`` of ``out``.
        x: what `fwd` returned; not read.
        nrows: not read.

    Returns:
        The gradients of u, delta, A, B, C, D and delta_bias, each in its input's dtype, None for None.
    """
    gradients, _ = backward(Inputs(u, delta, A, B, C, D, None, delta_bias), dout, delta_softplus)
    return gradients[:7]
