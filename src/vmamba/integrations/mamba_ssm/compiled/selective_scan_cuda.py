"""``selective_scan_cuda``, the compiled module of mamba-ssm: the scan with a gate, output in the input's dtype."""

from __future__ import annotations

from torch import Tensor

from vmamba.integrations.mamba_ssm.compiled.scan import Inputs, backward, forward, gated

__all__ = ["bwd", "fwd"]


def fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    /,
) -> list[Tensor]:
    """Run the scan. Shapes: `compiled.scan.Inputs`.

    Returns:
        ``[out, x]``, or with z ``[out, x, out_z]``: ``out (b, d, l)`` before the gate and ``out_z`` behind it, in u's
        dtype, and ``x`` with the last state in ``x[:, :, -1, 1::2]``.

    Raises:
        InputError: shapes or dtypes that do not fit, complex ones.
    """
    y, x = forward(Inputs(u, delta, A, B, C, D, z, delta_bias), delta_softplus)
    return [y.to(u.dtype), x] if z is None else [y.to(u.dtype), x, gated(y, z)]


def bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    out: Tensor | None,
    dz: Tensor | None,
    delta_softplus: bool,
    recompute_out_z: bool,
    /,
) -> list[Tensor | None]:
    """Run the scan's backward pass.

    Args:
        u, …, delta_bias, delta_softplus: as in `fwd`.
        dout: gradient ``(b, d, l)`` of ``out_z`` where there is z, else of ``out``.
        x, out: what `fwd` returned; not read.
        dz: where to write the gradient of z, or None.
        recompute_out_z: whether to return ``out_z`` again.

    Returns:
        The gradients of u, delta, A, B, C, D and delta_bias, each in its input's dtype, None for None. Where there is
        z, also z's, and ``out_z`` if asked.
    """
    inputs = Inputs(u, delta, A, B, C, D, z, delta_bias)
    (*gradients, z_gradient), out_z = backward(inputs, dout, delta_softplus)
    if z is None:
        return gradients
    if dz is not None and z_gradient is not None:
        z_gradient = dz.copy_(z_gradient)
    return [*gradients, z_gradient, *([out_z.to(z.dtype)] if recompute_out_z else [])]
