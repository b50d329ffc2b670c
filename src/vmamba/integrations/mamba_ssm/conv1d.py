"""The causal depthwise convolution of Mamba (arXiv 2312.00752, Sec. 3.4) in PyTorch: forward, backward, and one step.

    y_t = Σ_j w_j x_{t-(k-1)+j} + bias          j = 0 … k-1, then silu where asked

``b`` batch, ``d`` channels, ``l`` places, ``k`` width of the window. Sums of ``k`` shifted products: on the CPU as fast
as ``torch.nn.functional.conv1d`` with as many groups as channels, and sequences packed in one row are just a mask.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from vmamba.errors import ConfigError, InputError


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    activation: str | bool | None = None,
) -> Tensor:
    """Convolve; differentiable.

    Args:
        x: ``(b, d, l)``.
        weight: ``(d, k)``; any k.
        bias: ``(d,)`` or None.
        seq_idx: ``(b, l)`` of integers or None: a place sees only places of its own number; a negative one gives 0.
        initial_states: the ``k - 1`` places in front of x, ``(b, d, k-1)``, or None for zeros.
        activation: ``"silu"`` or ``"swish"`` if silu follows, else None; or True and False for that.

    Returns:
        ``(b, d, l)`` in x's dtype; sums are float32, float64 where an input is.

    Raises:
        InputError, ConfigError: shapes or dtypes that do not fit; another activation.
    """
    check(x, weight, bias, seq_idx, initial_states)
    y = _sums(_padded(x, weight, initial_states), weight, bias, seq_idx)
    return (F.silu(y) if is_silu(activation) else y).to(x.dtype)


def causal_conv1d_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    dfinal_states: Tensor | None = None,
    activation: str | bool | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """The gradients of x, weight, bias and initial_states, each in its input's dtype, written out: no autograd.

    Args:
        x, weight, bias, seq_idx, initial_states, activation: as in `causal_conv1d`.
        dout: gradient ``(b, d, l)`` of its result.
        dfinal_states: gradient ``(b, d, k-1)`` of `final_states`, or None.
    """
    check(x, weight, bias, seq_idx, initial_states)
    if dout.shape != x.shape:
        raise InputError(f"dout has shape {tuple(dout.shape)}, want x's shape {tuple(x.shape)}")
    padded = _padded(x, weight, initial_states)
    width, length = weight.shape[1], x.shape[2]
    slope = dout.to(padded.dtype)
    if is_silu(activation):
        y = _sums(padded, weight, bias, seq_idx)
        gate = torch.sigmoid(y)
        slope = slope * gate * (1 + y * (1 - gate))
    if seq_idx is not None:
        slope = slope * (seq_idx >= 0)[:, None]
    dpadded = torch.zeros_like(padded)
    dweight = torch.empty_like(weight, dtype=padded.dtype)
    for j, seen in enumerate(_same_sequence(seq_idx, width)):
        part = slope if seen is None else slope * seen
        dpadded[..., j : j + length] += part * weight[:, j, None].to(padded.dtype)
        dweight[:, j] = (part * padded[..., j : j + length]).sum((0, 2))
    if dfinal_states is not None:
        dpadded[..., length:] += dfinal_states.to(padded.dtype)
    dbias = None if bias is None else slope.sum((0, 2)).to(bias.dtype)
    dx, dinitial = dpadded[..., width - 1 :], dpadded[..., : width - 1]
    return dx.to(x.dtype), dweight.to(weight.dtype), dbias, dinitial.to(x.dtype)


def final_states(x: Tensor, width: int, initial_states: Tensor | None = None) -> Tensor:
    """The last ``k - 1`` places of ``x (b, d, l)``, with those in front of it where it is shorter: ``(b, d, k-1)``."""
    padded = F.pad(x, (width - 1, 0)) if initial_states is None else torch.cat([initial_states.to(x.dtype), x], 2)
    return padded[..., padded.shape[2] - (width - 1) :].clone()


def step(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | bool | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """Convolve the next place, or the next few, and write them to ``conv_state``.

    Args:
        x: ``(b, d)`` or ``(b, d, l)``.
        conv_state: the last places, ``(b, d, m)`` with m ≥ k - 1; changed in place.
        weight, bias, activation: as in `causal_conv1d`.
        cache_seqlens: ``(b,)`` of integers or None: conv_state is a ring, and x goes to this place, modulo m.
        conv_state_indices: ``(b,)`` of integers or None: the rows of a larger conv_state that belong to x.

    Returns:
        As x, in its dtype.

    Raises:
        InputError: shapes or dtypes that do not fit.
    """
    if x.dim() == 2:
        return step(x[..., None], conv_state, weight, bias, activation, cache_seqlens, conv_state_indices)[..., 0]
    check(x, weight, bias)
    width = weight.shape[1]
    state = conv_state if conv_state_indices is None else conv_state[conv_state_indices.long()]
    if state.dim() != 3 or state.shape[:2] != x.shape[:2] or state.shape[2] < width - 1:
        rows = "" if conv_state_indices is None else " in the rows that conv_state_indices names"
        raise InputError(
            f"conv_state has shape {tuple(state.shape)}{rows}, want (b, d, m) = {(*x.shape[:2], 'm')} with m ≥ k - 1 = "
            f"{width - 1}, given x {tuple(x.shape)}, weight {tuple(weight.shape)}"
        )
    size = state.shape[2]
    if cache_seqlens is None:
        line = torch.cat([state.to(x.dtype), x], 2)
        front, after = line[..., size - (width - 1) : size], line[..., line.shape[2] - size :]
    else:
        start = cache_seqlens.long()[:, None]
        front = state.gather(2, _ring(start, 1 - width, 0, size, x)).to(x.dtype)
        newest = x[..., -size:]  # a longer x would write some places twice, in an order that is not defined
        after = state.scatter(
            2, _ring(start, x.shape[2] - newest.shape[2], x.shape[2], size, x), newest.to(state.dtype)
        )
    out = causal_conv1d(x, weight, bias, None, front, activation)
    with torch.no_grad():
        if conv_state_indices is None:
            conv_state.copy_(after)
        else:
            conv_state[conv_state_indices.long()] = after.to(conv_state.dtype)
    return out


def is_silu(activation: str | bool | None) -> bool:
    """Whether ``activation`` asks for silu.

    Raises:
        ConfigError: it is none of None, ``"silu"``, ``"swish"``.
    """
    if activation in (None, False, True, "silu", "swish"):
        return bool(activation)
    raise ConfigError(f"activation={activation!r} is unknown; legal: None, 'silu', 'swish'")


def check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
) -> None:
    """Raise `InputError` unless shapes and dtypes fit."""

    def refuse(name: str, t: Tensor, want: str) -> InputError:
        return InputError(
            f"{name} is {t.dtype} of shape {tuple(t.shape)}, want {want}, given x {tuple(x.shape)}, "
            f"weight {tuple(weight.shape)}"
        )

    if x.dim() != 3 or not x.is_floating_point():
        raise refuse("x", x, "floating point (b, d, l)")
    b, channels, length = x.shape
    if weight.dim() != 2 or weight.shape[0] != channels or weight.shape[1] < 1 or not weight.is_floating_point():
        raise refuse("weight", weight, f"floating point (d, k) = ({channels}, k)")
    if bias is not None and bias.shape != (channels,):
        raise refuse("bias", bias, f"(d,) = ({channels},)")
    if seq_idx is not None:
        if seq_idx.shape != (b, length) or seq_idx.is_floating_point():
            raise refuse("seq_idx", seq_idx, f"integers (b, l) = ({b}, {length})")
        if initial_states is not None:
            raise InputError(
                "initial_states and seq_idx exclude each other: a row of several sequences has several starts"
            )
    if initial_states is not None and initial_states.shape != (b, channels, weight.shape[1] - 1):
        raise refuse("initial_states", initial_states, f"(b, d, k-1) = ({b}, {channels}, {weight.shape[1] - 1})")


def _padded(x: Tensor, weight: Tensor, initial_states: Tensor | None) -> Tensor:
    """``(b, d, k-1+l)`` in the dtype of the sums."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    if initial_states is None:
        return F.pad(x.to(dtype), (weight.shape[1] - 1, 0))
    return torch.cat([initial_states.to(dtype), x.to(dtype)], 2)


def _sums(padded: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None) -> Tensor:
    width = weight.shape[1]
    length = padded.shape[2] - (width - 1)
    w = weight.to(padded.dtype)
    y = padded.new_zeros(()) if bias is None else bias[:, None].to(padded.dtype)
    for j, seen in enumerate(_same_sequence(seq_idx, width)):
        part = padded[..., j : j + length]
        y = torch.addcmul(y, part if seen is None else part * seen, w[:, j, None])
    return y if seq_idx is None else y * (seq_idx >= 0)[:, None]


def _same_sequence(seq_idx: Tensor | None, width: int) -> Iterator[Tensor | None]:
    """For each j the mask ``(b, 1, l)`` of places whose neighbour ``k-1-j`` back is of their sequence, or None."""
    if seq_idx is None:
        yield from [None] * width
        return
    number = F.pad(seq_idx.long(), (width - 1, 0), value=-1)
    for j in range(width):
        yield (number[:, j : j + seq_idx.shape[1]] == seq_idx)[:, None]


def _ring(start: Tensor, first: int, end: int, size: int, x: Tensor) -> Tensor:
    """Places ``first … end-1`` behind ``start (b, 1)`` in a ring of ``size``: ``(b, d, end-first)``."""
    places = torch.arange(first, end, device=x.device) + start
    return places.remainder(size)[:, None].expand(-1, x.shape[1], -1)
