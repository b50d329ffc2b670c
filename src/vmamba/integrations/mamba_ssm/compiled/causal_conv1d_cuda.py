"""``causal_conv1d_cuda``, the compiled module of causal-conv1d.

Its functions changed their arguments four times; which release a caller was written for shows in how many it gives. The
last generation writes to tensors that it is given and returns nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vmamba.errors import InputError
from vmamba.integrations.mamba_ssm.conv1d import causal_conv1d, causal_conv1d_backward, final_states, step

__all__ = ["causal_conv1d_bwd", "causal_conv1d_fwd", "causal_conv1d_update"]


def causal_conv1d_fwd(*given: Any) -> Tensor | None:
    """Convolve; shapes as in `conv1d.causal_conv1d`.

    Args:
        given: ``(x, weight, bias, silu)``, ``(x, weight, bias, seq_idx, silu)``, ``(x, weight, bias, seq_idx,
            initial_states, final_states, silu)``, or that with ``out`` in front of ``final_states``; ``out`` and
            ``final_states`` are written to.

    Returns:
        ``(b, d, l)`` in x's dtype; None where it was written to ``out``.

    Raises:
        InputError: another number of arguments; shapes that do not fit.
    """
    if len(given) not in (4, 5, 7, 8):
        raise _number("causal_conv1d_fwd", given, "4, 5, 7 or 8")
    x, weight, bias, *middle, silu = given
    seq_idx = middle[0] if middle else None
    initial = middle[1] if len(middle) > 1 else None
    with torch.no_grad():
        y = causal_conv1d(x, weight, bias, seq_idx, initial, silu)
        if len(middle) > 1 and middle[-1] is not None:
            middle[-1].copy_(final_states(x, weight.shape[1], initial))
        if len(given) < 8:
            return y
        middle[2].copy_(y)
    return None


def causal_conv1d_bwd(*given: Any) -> list[Tensor | None] | None:
    """The convolution's gradients.

    Args:
        given: ``(x, weight, bias, dout, dx, silu)``, ``(x, weight, bias, dout, seq_idx, dx, silu)``,
            ``(x, weight, bias, dout, seq_idx, initial_states, dfinal_states, dx, return_dinitial_states, silu)``, or
            ``(…, dx, dweight, dbias, dinitial_states, silu)``; dx, where it is not None, and what follows it
            are written to.

    Returns:
        ``[dx, dweight, dbias]``, in the third generation with ``dinitial_states``, in the fourth None.

    Raises:
        InputError: another number of arguments; shapes that do not fit.
    """
    if len(given) not in (6, 7, 10, 12):
        raise _number("causal_conv1d_bwd", given, "6, 7, 10 or 12")
    x, weight, bias, dout, *middle, silu = given
    seq_idx = middle[0] if len(given) > 6 else None
    initial, dfinal = middle[1:3] if len(given) > 7 else (None, None)
    dx_out = middle[{6: 0, 7: 1}.get(len(given), 3)]
    with torch.no_grad():
        dx, dweight, dbias, dinitial = causal_conv1d_backward(x, weight, bias, dout, seq_idx, initial, dfinal, silu)
        if dx_out is not None:
            dx = dx_out.copy_(dx)
        if len(given) < 10:
            return [dx, dweight, dbias]
        if len(given) == 10:
            return [dx, dweight, dbias, dinitial if middle[4] else None]
        for place, gradient in zip(middle[4:7], (dweight, dbias, dinitial), strict=True):
            if place is not None and gradient is not None:
                place.copy_(gradient)
    return None


def causal_conv1d_update(*given: Any) -> Tensor | None:
    """Convolve the next place and change ``conv_state``; shapes as in `conv1d.step`.

    Args:
        given: ``(x, conv_state, weight, bias, silu)``, then ``cache_seqlens`` or None, then ``conv_state_indices`` or
            None; or ``(x, conv_state, weight, bias, out, silu, cache_seqlens, conv_state_indices)``.

    Returns:
        As x; None where it was written to ``out``.

    Raises:
        InputError: another number of arguments; shapes that do not fit.
    """
    if len(given) not in (5, 6, 7, 8):
        raise _number("causal_conv1d_update", given, "5 to 8")
    with torch.no_grad():
        if len(given) < 8:
            return step(*given)
        given[4].copy_(step(*given[:4], *given[5:]))
    return None


def _number(name: str, given: tuple[Any, ...], legal: str) -> InputError:
    return InputError(f"{name} was given {len(given)} arguments; the releases of causal-conv1d take {legal}")


# What the package's own Python calls the third generation.


def causal_conv1d_fwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    final_states_out: Tensor | None,
    silu_activation: bool,
) -> Tensor:
    """`causal_conv1d_fwd` with seven arguments."""
    given = x, weight, bias, seq_idx, initial_states, final_states_out, silu_activation
    y = causal_conv1d_fwd(*given)
    assert y is not None
    return y


def causal_conv1d_bwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    dfinal_states: Tensor | None,
    dx: Tensor | None,
    return_dinitial_states: bool,
    silu_activation: bool,
) -> list[Tensor | None]:
    """`causal_conv1d_bwd` with ten arguments."""
    start = x, weight, bias, dout, seq_idx, initial_states, dfinal_states
    gradients = causal_conv1d_bwd(*start, dx, return_dinitial_states, silu_activation)
    assert gradients is not None
    return gradients


def causal_conv1d_update_function(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu_activation: bool,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """`causal_conv1d_update` with seven arguments."""
    y = causal_conv1d_update(x, conv_state, weight, bias, silu_activation, cache_seqlens, conv_state_indices)
    assert y is not None
    return y
