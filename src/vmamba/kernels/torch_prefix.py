"""``"torch"``: the selective scan in plain PyTorch, parallel over the sequence, on any device.

The sequence is cut into blocks. Inside each block a prefix by doubling (shifts of 1, 2, 4, … positions) gives every
state as if the block began from zero, and the product of the decays up to it; the states at the blocks' ends then
follow the same recurrence, on a sequence of one item a block, and are solved the same way; one more pass carries them
into the blocks. Only products of decays are formed, never quotients, so where the recurrence decays nothing overflows.

Exports see the plain operations, with constant block sizes: one graph serves every length up to `MAX_EXPORTED_LENGTH`.
`torch.compile` sees one operator instead, because what its compilers make of the plain operations is many times slower
than running them, and takes minutes to make.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba import _torch
from vmamba.errors import BackendError, InputError
from vmamba.kernels.interface import Obstacle, ScanCall, ScanRun, record

#: Positions in a block, level by level, in an exported graph.
_EXPORTED_BLOCKS = (16, 64, 64, 64)
#: The longest sequence that an exported graph scans; on a longer one it stops with an index out of range.
MAX_EXPORTED_LENGTH = math.prod(_EXPORTED_BLOCKS)
#: Elsewhere: positions in a block, and the length that one block takes whole.
_BLOCK, _ONE_BLOCK = 16, 64
#: State elements (b·k·d·n·l) worked on at a time: near a CPU's cache; elsewhere as many as bound the memory, at 128 MiB
#: a tensor, since each operation there is a launch.
_CHUNK = {"cpu": 1 << 19}
_CHUNK_ELSEWHERE = 1 << 25


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
    """See `vmamba.scan.selective_scan`.

    Second derivatives, forward-mode derivatives and `torch.func` transforms are right; in a graph made by
    `torch.compile` second derivatives raise an error.
    """
    state_dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    u, delta, A, B, C = (t.to(state_dtype) for t in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(state_dtype)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)

    k = B.shape[1]
    d = u.shape[1] // k
    inputs = (u.unflatten(1, (k, d)), delta.unflatten(1, (k, d)), A.unflatten(0, (k, d)), B, C)
    if _torch.is_exporting():
        _check_exported_length(u.shape[2])
        y = _forward(*inputs)
    elif torch.compiler.is_compiling():
        y = torch.ops.vmamba.torch_scan(*inputs)
    else:
        record(ScanRun("torch", "selective_scan"))
        differentiate = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
        # Forward mode, alone or over reverse mode, differentiates the plain operations.
        y = _Scan.apply(*inputs) if differentiate and not _torch.is_forward_mode() else _forward(*inputs)
    # For an open length the same by a copy: where torch 2.11 merges axes it asks whether l ≤ d·l, and cannot prove it.
    y = y.flatten(1, 2) if isinstance(u.shape[2], int) else torch.cat(y.unbind(1), 1)
    return y if D is None else torch.addcmul(y, D.to(state_dtype)[:, None], u)


class _Scan(torch.autograd.Function):
    """`_forward` with a backward that keeps the inputs only and scans again, so that no state is stored.

    Both are differentiable operations of the inputs, so second derivatives come out right by themselves.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Tensor) -> Tensor:
        return _forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        return _backward(dy, *ctx.saved_tensors)


@torch.library.custom_op("vmamba::torch_scan", mutates_args=())
def _scan_op(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    record(ScanRun("torch", "selective_scan"))
    return _forward(u, delta, A, B, C).contiguous()


@torch.library.custom_op("vmamba::torch_scan_backward", mutates_args=())
def _scan_backward_op(
    dy: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    du, ddelta, dA, dB, dC = _backward(dy, u, delta, A, B, C)
    return du.contiguous(), ddelta.contiguous(), dA.contiguous(), dB.contiguous(), dC.contiguous()


@_scan_op.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    return u.new_empty(u.shape)


@_scan_backward_op.register_fake
def _(dy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in inputs)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = torch.ops.vmamba.torch_scan_backward(dy, *ctx.saved_tensors)
    return gradients


def _no_second_derivative(ctx: Any, *_: Tensor) -> None:
    raise BackendError('compiled graphs of backend="torch" have no second derivatives; call it outside torch.compile')


_scan_op.register_autograd(_gradients, setup_context=_Scan.setup_context)
_scan_backward_op.register_autograd(_no_second_derivative)


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
        parts = []
        dB, dC = torch.zeros_like(B[items]), torch.zeros_like(C[items])
        for part in channel_chunks:
            dy_part, u_part, step = (t[items, :, part] for t in (dy, u, delta))
            *of_channels, dB_part, dC_part = _backward_chunk(dy_part, u_part, step, A[:, part], B[items], C[items])
            parts.append(of_channels)
            # Summed as they come: kept until the end, they would take as much memory as all states.
            dB, dC = dB + dB_part, dC + dC_part
        du, ddelta, dA = zip(*parts, strict=True)
        rows.append((_cat(du, 2), _cat(ddelta, 2), _cat(dA, 1), dB, dC))
    dus, ddeltas, dAs, dBs, dCs = zip(*rows, strict=True)
    return _cat(dus, 0), _cat(ddeltas, 0), torch.stack(dAs).sum(0), _cat(dBs, 0), _cat(dCs, 0)


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
    return _solve(decay, drive, _levels(drive.shape[-1]), reverse)


def _solve(decay: Tensor, drive: Tensor, levels: Sequence[tuple[int, int]], reverse: bool) -> Tensor:
    (block, blocks), *above = levels
    length = drive.shape[-1]
    padding = blocks * block - length
    if _torch.is_exporting() or padding:
        decay, drive = F.pad(decay, (0, padding)), F.pad(drive, (0, padding))
    product, state = _prefix(decay.unflatten(-1, (blocks, block)), drive.unflatten(-1, (blocks, block)), reverse)
    if above:
        end = 0 if reverse else -1
        ends = _solve(product[..., end], state[..., end], above, reverse)
        entering = F.pad(ends, (0, 1))[..., 1:] if reverse else F.pad(ends, (1, 0))[..., :-1]
        state = torch.addcmul(state, product, entering[..., None])
    state = state.flatten(-2)
    if not _torch.is_exporting():
        return state[..., :length]
    if above:  # a slice would ask the tracer to prove that length is smaller; it cannot
        return F.pad(state, (0, -padding))
    return state.index_select(-1, torch.arange(length, device=state.device))  # fails where a block is too short


def _levels(length: int) -> list[tuple[int, int]]:
    """``(positions in a block, blocks)`` of each level: the first cuts the sequence, the last is one block."""
    levels = []
    if _torch.is_exporting():
        span = 1
        for block in _EXPORTED_BLOCKS[:-1]:
            span *= block
            # Even, so that the tracer can prove that it is never 1, a size that it would treat apart.
            levels.append((block, 2 * ((length + 2 * span - 1) // (2 * span))))
        return [*levels, (_EXPORTED_BLOCKS[-1], 1)]
    while length > _ONE_BLOCK:
        length = (length + _BLOCK - 1) // _BLOCK
        levels.append((_BLOCK, length))
    return [*levels, (length, 1)]


def _prefix(product: Tensor, state: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """Turn decays and drives into products of decays and states, from the start of each block (the last axis)."""
    step = _double_out_of_place if _torch.is_exporting() or _torch.is_functorch_active() else _double
    shift = 1
    while shift < state.shape[-1]:
        product, state = step(product, state, shift, reverse)
        shift *= 2
    return product, state


def _double(product: Tensor, state: Tensor, shift: int, reverse: bool) -> tuple[Tensor, Tensor]:
    """Let each item take in the one ``shift`` places before it (after it with ``reverse``) where its block has it."""
    taking, taken = slice(shift, None), slice(None, -shift)
    if reverse:
        taking, taken = taken, taking
    new_product, new_state = product.clone(), state.clone()
    new_state[..., taking].addcmul_(product[..., taking], state[..., taken])
    new_product[..., taking].mul_(product[..., taken])
    return new_product, new_state


def _double_out_of_place(product: Tensor, state: Tensor, shift: int, reverse: bool) -> tuple[Tensor, Tensor]:
    """`_double` for exports and `torch.func`, which do not take its writes into slices; a third more memory traffic."""
    taken, padding = (slice(shift, None), (0, shift)) if reverse else (slice(None, -shift), (shift, 0))
    state = torch.addcmul(state, product, F.pad(state[..., taken], padding))
    return product * F.pad(product[..., taken], padding, value=1.0), state


def _check_exported_length(length: int) -> None:
    if isinstance(length, int) and length > MAX_EXPORTED_LENGTH:
        raise InputError(f"the sequence has l = {length} positions; a graph can be exported for {MAX_EXPORTED_LENGTH}")


def _chunks(u: Tensor, A: Tensor) -> Iterator[tuple[slice, list[slice]]]:
    """Cut the batch, and each part's channels, so that a chunk has some `_CHUNK` state elements; one if exporting."""
    if _torch.is_exporting():
        yield slice(None), [slice(None)]
        return
    b, k, d, length = u.shape
    chunk = _CHUNK.get(u.device.type, _CHUNK_ELSEWHERE)
    per_channel = k * A.shape[-1] * length
    channels = min(d, max(1, chunk // per_channel))
    items = max(1, chunk // (per_channel * channels)) if channels == d else 1
    channel_chunks = [slice(i, i + channels) for i in range(0, d, channels)]
    for i in range(0, max(b, 1), items):  # one part, empty, of an empty batch
        yield slice(i, i + items), channel_chunks


def _sum(t: Tensor, dim: int) -> Tensor:
    return t.squeeze(dim) if t.shape[dim] == 1 else t.sum(dim)


def _cat(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)
