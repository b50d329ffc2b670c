"""``"torch"``: the selective scan in plain PyTorch, parallel over the sequence, on any device.

The sequence is cut into blocks. Inside each block a prefix by doubling (shifts of 1, 2, 4, ... positions) gives every
state as if the block began from zero, and the product of the decays up to it; the same doubling over the blocks gives
the states at their ends, and one more pass carries those into the blocks. Only products of decays are formed, never
quotients, so where the recurrence decays nothing overflows.

While a graph is traced (`torch.compile`, `torch.export`) the block size and the number of shifts are constants, so one
graph of ordinary operations serves every length up to `MAX_TRACED_LENGTH`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.ops.backends.interface import Obstacle, Run, ScanCall, record

#: Positions in a block, and the most blocks, while tracing.
_TRACED_BLOCK, _TRACED_BLOCKS = 32, 1 << 17
#: The longest sequence that a traced graph can scan: 4 million positions.
MAX_TRACED_LENGTH = _TRACED_BLOCK * _TRACED_BLOCKS
#: Eager calls: positions in a block, and the length that one block takes whole.
_BLOCK, _ONE_BLOCK = 16, 64
#: Eager calls: state elements (b·k·d·n·l) worked on at a time; bounds the memory and stays near the cache.
_CHUNK = 1 << 20


def machine_obstacle() -> Obstacle | None:
    """It runs on every machine."""
    return None


def call_obstacle(call: ScanCall) -> Obstacle | None:
    """It runs every call."""
    return None


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """See `vmamba.ops.selective_scan`.

    Double backward, `torch.func.vmap` and `torch.func.grad` are right. Forward-mode derivatives (`torch.func.jvp`) are
    right where no input requires grad; where one does, torch raises its error that this function has no jvp.
    """
    if not torch.compiler.is_compiling():
        record(Run("torch", "selective_scan"))
    state_dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    u, delta, A, B, C = (t.to(state_dtype) for t in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(state_dtype)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)

    k = B.shape[1]
    d = u.shape[1] // k
    inputs = (u.unflatten(1, (k, d)), delta.unflatten(1, (k, d)), A.unflatten(0, (k, d)), B, C)
    # An exported graph holds plain operations only, so that any runtime can have it.
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs) and not _exporting():
        y: Tensor = _Scan.apply(*inputs)
    else:
        y = _forward(*inputs)
    y = y.flatten(1, 2)
    return y if D is None else torch.addcmul(y, D.to(state_dtype)[:, None], u)


class _Scan(torch.autograd.Function):
    """`_forward` with a backward that keeps the inputs only and scans again, so that no state is stored.

    Both directions are differentiable operations of their inputs, so double backward comes out right by itself.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return _forward(u, delta, A, B, C)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
        return _backward(dy, *ctx.saved_tensors)


def _forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """``u, delta (b, k, d, l)``, ``A (k, d, n)``, ``B, C (b, k, n, l)`` → ``y (b, k, d, l)``."""
    rows = []
    for items, channel_chunks in _chunks(u, A):
        B_part, C_part = B[items, :, None], C[items, :, None]
        parts = []
        for part in channel_chunks:
            step = delta[items, :, part]
            drive = (step * u[items, :, part])[..., None, :] * B_part
            states = _scan(_decays(step, A[:, part]), drive)
            parts.append(_sum(states * C_part, -2))
        rows.append(_cat(parts, 2))
    return _cat(rows, 0)


def _backward(dy: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, ...]:
    """The gradients of ``sum(dy * y)``: ``du, ddelta, dA, dB, dC`` in the shapes of `_forward`'s inputs."""
    rows = []
    for items, channel_chunks in _chunks(u, A):
        parts = [
            _backward_chunk(
                dy[items, :, part], u[items, :, part], delta[items, :, part], A[:, part], B[items], C[items]
            )
            for part in channel_chunks
        ]
        du, ddelta, dA, dB, dC = zip(*parts, strict=True)
        rows.append((_cat(du, 2), _cat(ddelta, 2), _cat(dA, 1), _add(dB), _add(dC)))
    du, ddelta, dA, dB, dC = zip(*rows, strict=True)
    return _cat(du, 0), _cat(ddelta, 0), _add(dA), _cat(dB, 0), _cat(dC, 0)


def _backward_chunk(dy: Tensor, u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, ...]:
    B, C, dy_n = B[:, :, None], C[:, :, None], dy[..., None, :]
    scaled = (step * u)[..., None, :]
    decays = _decays(step, A)
    states = _scan(decays, scaled * B)
    dC = _sum(states * dy_n, 2)
    # What is left of the state before: exp(δ_t A) h_{t-1}.
    kept = decays * F.pad(states, (1, 0))[..., :-1]
    del states

    # The adjoint recurrence g_t = C_t dy_t + exp(δ_{t+1} A) g_{t+1}.
    next_decays = F.pad(decays, (0, 1))[..., 1:]
    del decays
    g = _scan(next_decays, dy_n * C, reverse=True)
    del next_decays
    dB = _sum(g * scaled, 2)
    through_input = _sum(g * B, -2)
    through_decay = g * kept
    du = step * through_input
    ddelta = torch.addcmul(_sum(through_decay * A[..., None], -2), u, through_input)
    dA = (through_decay * step[..., None, :]).sum((0, -1))
    return du, ddelta, dA, dB, dC


def _decays(step: Tensor, A: Tensor) -> Tensor:
    """``exp(δ A) (b, k, d, n, l)``, and 0 for the first position.

    Nothing comes before it; the 0 keeps its decay out of all products, where it might overflow for nothing.
    """
    position = torch.arange(step.shape[-1], device=step.device)
    start = torch.zeros_like(position, dtype=step.dtype).masked_fill(position == 0, -math.inf)
    return torch.exp(torch.addcmul(start, step[..., None, :], A[..., None]))


def _scan(decay: Tensor, drive: Tensor, *, reverse: bool = False) -> Tensor:
    """Solve ``h_t = decay_t h_{t-1} + drive_t`` along the last axis, or ``h_t = decay_t h_{t+1} + drive_t``."""
    length = drive.shape[-1]
    if _tracing():
        block = _TRACED_BLOCK
        # An even number: then the tracer can prove that it is never 1, a size that it would treat apart.
        blocks = 2 * ((length + 2 * block - 1) // (2 * block))
    else:
        block = length if length <= _ONE_BLOCK else _BLOCK
        blocks = (length + block - 1) // block
    padding = blocks * block - length
    if _tracing() or padding:
        decay, drive = F.pad(decay, (0, padding)), F.pad(drive, (0, padding))
    product, state = _prefix(decay.unflatten(-1, (blocks, block)), drive.unflatten(-1, (blocks, block)), block, reverse)
    if _tracing() or blocks > 1:
        end = 0 if reverse else -1
        _, ends = _prefix(product[..., end], state[..., end], _TRACED_BLOCKS if _tracing() else blocks, reverse)
        entering = F.pad(ends, (0, 1))[..., 1:] if reverse else F.pad(ends, (1, 0))[..., :-1]
        state = torch.addcmul(state, product, entering[..., None])
    state = state.flatten(-2)
    return F.pad(state, (0, -padding)) if _tracing() else state[..., :length]


def _prefix(product: Tensor, state: Tensor, reach: int, reverse: bool) -> tuple[Tensor, Tensor]:
    """Turn decays and drives into products of decays and states counted from the start of the last axis.

    ``reach`` is that axis' size or more: shifts of 1, 2, 4, … below it are made.
    """
    size = state.shape[-1]
    shift = 1
    while shift < reach:
        padding, kept = ((0, shift), slice(shift, None)) if reverse else ((shift, 0), slice(0, size))
        state = torch.addcmul(state, product, F.pad(state, padding)[..., kept])
        product = product * F.pad(product, padding, value=1.0)[..., kept]
        shift *= 2
    return product, state


def _tracing() -> bool:
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def _exporting() -> bool:
    return torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None


def _chunks(u: Tensor, A: Tensor) -> Iterator[tuple[slice, list[slice]]]:
    """Cut the batch, and each part's channels, so that a chunk has about `_CHUNK` state elements; one chunk if tracing."""
    if _tracing():
        yield slice(None), [slice(None)]
        return
    b, k, d, length = u.shape
    per_channel = k * A.shape[-1] * length
    channels = min(d, max(1, _CHUNK // per_channel))
    items = max(1, _CHUNK // (per_channel * channels)) if channels == d else 1
    channel_chunks = [slice(i, i + channels) for i in range(0, d, channels)]
    for i in range(0, b, items):
        yield slice(i, i + items), channel_chunks


def _sum(t: Tensor, dim: int) -> Tensor:
    return t.squeeze(dim) if t.shape[dim] == 1 else t.sum(dim)


def _cat(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def _add(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
