"""``causal_conv1d``, the package: the functions of `conv1d` under its names and with its arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from vmamba.errors import InputError
from vmamba.integrations.mamba_ssm.conv1d import causal_conv1d, final_states, step

__all__ = [
    "causal_conv1d_fn",
    "causal_conv1d_ref",
    "causal_conv1d_update",
    "causal_conv1d_update_ref",
    "causal_conv1d_varlen_states",
    "causal_conv1d_varlen_states_ref",
]


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | str | None = None,
    initial_states: Tensor | str | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve; see `conv1d.causal_conv1d` for shapes.

    Args:
        x, weight, bias, seq_idx, initial_states: as there. Releases before 1.2 and before 1.4 had ``activation`` in the
            place of ``seq_idx`` and of ``initial_states``: a word there is taken for it.
        return_final_states: also return the last ``k - 1`` places ``(b, d, k-1)``.
        final_states_out: where to write them, or None.
        activation: None, ``"silu"`` or ``"swish"``.

    Returns:
        ``(b, d, l)`` in x's dtype, or that and the final states; gradients go through both.

    Raises:
        InputError, ConfigError: shapes that do not fit; an activation without a name here.
    """
    if isinstance(seq_idx, str):
        seq_idx, activation = None, seq_idx
    if isinstance(initial_states, str):
        initial_states, activation = None, initial_states
    out = causal_conv1d(x, weight, bias, seq_idx, initial_states, activation)
    if not return_final_states:
        return out
    if seq_idx is not None:
        raise InputError(
            "return_final_states and seq_idx exclude each other: a row of several sequences has several ends"
        )
    last = final_states(x, weight.shape[1], initial_states)
    return out, last if final_states_out is None else final_states_out.copy_(last)


def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | str | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`causal_conv1d_fn` without ``seq_idx``, which is PyTorch here anyway."""
    return causal_conv1d_fn(
        x, weight, bias, None, initial_states, return_final_states, final_states_out, activation
    )  # fmt: skip


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """Convolve the next place and change ``conv_state``; see `conv1d.step`."""
    return step(x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices)


causal_conv1d_update_ref = causal_conv1d_update


def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The last places of each of several sequences that lie one behind the other.

    Args:
        x: ``(places, d)``.
        cu_seqlens: where each begins, and the end: ``(b + 1,)`` of integers, from 0, ascending.
        state_len: how many places.

    Returns:
        ``(b, d, state_len)``, with zeros in front of what a shorter sequence has.
    """
    ends = cu_seqlens[1:, None].long()
    places = ends + torch.arange(-state_len, 0, device=x.device)
    inside = places >= cu_seqlens[:-1, None]
    return (x[places.clamp(min=0)] * inside[..., None]).transpose(1, 2)


causal_conv1d_varlen_states_ref = causal_conv1d_varlen_states
