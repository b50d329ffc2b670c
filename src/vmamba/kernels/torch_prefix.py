"""``"torch"``: the selective scan in plain PyTorch, parallel over the sequence, on any device.

`vmamba.kernels.linear_recurrence` solves for the states; here is what surrounds it, both ways.

Exports see the plain operations, with constant block sizes: one graph serves every length up to `MAX_EXPORTED_LENGTH`.
`torch.compile` sees one operator instead, because what its compilers make of the plain operations is many times slower
than running them, and takes minutes to make; and so do counters of operations, which count it as any backend's scan.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba import _torch
from vmamba.errors import InputError
from vmamba.kernels.gradients import fake_results, given, no_second_derivatives, or_zeros, results
from vmamba.kernels.interface import Obstacle, ScanCall, ScanRun, record
from vmamba.kernels.linear_recurrence import MAX_EXPORTED_LENGTH, solve
from vmamba.kernels.ssd.scan import ssd_scan as ssd_scan

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
    return _run(u, delta, A, B, C, D, delta_bias, None, delta_softplus)[0]


def selective_scan_states(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    z: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """`selective_scan` with a gate and from a state; also the state it ends with."""
    y, last = _run(u, delta, A, B, C, D, delta_bias, initial_state, delta_softplus)
    return y if z is None else y * F.silu(z.to(y.dtype)), last


def _run(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    initial: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """``y (b, k·d, l)`` and the state behind it ``(b, k·d, n)``."""
    state_dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    u, delta, A, B, C = (t.to(state_dtype) for t in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(state_dtype)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)

    k = B.shape[1]
    d = u.shape[1] // k
    start = None if initial is None else initial.to(state_dtype).unflatten(1, (k, d))
    inputs = (u.unflatten(1, (k, d)), delta.unflatten(1, (k, d)), A.unflatten(0, (k, d)), B, C, start)
    if _torch.is_exporting():
        _check_exported_length(u.shape[2])
        y, last = _forward(*inputs)
    elif torch.compiler.is_compiling():
        y, last = torch.ops.vmamba.torch_scan(*inputs)
    else:
        record(ScanRun("torch", "selective_scan"))
        differentiate = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
        # Forward mode, alone or over reverse mode, differentiates the plain operations.
        y, last = _Scan.apply(*inputs) if differentiate and not _torch.is_forward_mode() else _eager(*inputs)
    # For an open length the same by a copy: where torch 2.11 merges axes it asks whether l ≤ d·l, and cannot prove it.
    y = y.flatten(1, 2) if isinstance(u.shape[2], int) else torch.cat(y.unbind(1), 1)
    return y if D is None else torch.addcmul(y, D.to(state_dtype)[:, None], u), last.flatten(1, 2)


class _Scan(torch.autograd.Function):
    """`_forward` with a backward that keeps the inputs only and scans again, so that no state is stored.

    Both are differentiable operations of the inputs, so second derivatives come out right by themselves.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        return _eager(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        dy = or_zeros(dy, inputs[0])
        if _torch.is_counted() and not torch.is_grad_enabled():
            return given(torch.ops.vmamba.torch_scan_backward(dy, dlast, *inputs), inputs)
        return _backward(dy, dlast, *inputs)


def _eager(*inputs: Tensor | None) -> tuple[Tensor, Tensor]:
    """`_forward`, as one operator where operations are counted."""
    scan: Any = torch.ops.vmamba.torch_scan if _torch.is_counted() else _forward
    y, last = scan(*inputs)
    return y, last


@torch.library.custom_op("vmamba::torch_scan", mutates_args=())
def _scan_op(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None
) -> tuple[Tensor, Tensor]:
    record(ScanRun("torch", "selective_scan"))
    y, last = _forward(u, delta, A, B, C, initial)
    return y.contiguous(), last.contiguous()


@torch.library.custom_op("vmamba::torch_scan_backward", mutates_args=())
def _scan_backward_op(
    dy: Tensor,
    dlast: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta, A, B, C and the initial state, empty where that is None."""
    return results(_backward(dy, dlast, u, delta, A, B, C, initial), dy)  # type: ignore[return-value]


@_scan_op.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), u.new_empty((*u.shape[:3], A.shape[-1]))


@_scan_backward_op.register_fake
def _(dy: Tensor, dlast: Tensor | None, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    return fake_results(inputs, dy)


def _gradients(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors
    return given(torch.ops.vmamba.torch_scan_backward(or_zeros(dy, inputs[0]), dlast, *inputs), inputs)


_scan_op.register_autograd(_gradients, setup_context=_Scan.setup_context)
no_second_derivatives(_scan_backward_op)


def _forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``u, delta (b, k, d, l)``, ``A (k, d, n)``, ``B, C (b, k, n, l)``, ``initial (b, k, d, n)`` → ``y, last``."""
    rows, last_rows = [], []
    for items, channel_chunks in _chunks(u, A):
        B_part, C_part = B[items, :, None], C[items, :, None]
        parts, last_parts = [], []
        for part in channel_chunks:
            step = delta[items, :, part]
            drive = (step * u[items, :, part])[..., None, :] * B_part
            if initial is not None:
                drive = drive + _entering(step, A[:, part], initial[items, :, part])
            states = solve(_decays(step, A[:, part]), drive)
            parts.append(_sum(states * C_part, -2))
            last_parts.append(states[..., -1].clone())  # a view would keep all states
        rows.append(_cat(parts, 2))
        last_rows.append(_cat(last_parts, 2))
    return _cat(rows, 0), _cat(last_rows, 0)


def _backward(
    dy: Tensor,
    dlast: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The gradients of ``sum(dy * y) + sum(dlast * last)``: ``du, ddelta, dA, dB, dC, dinitial`` like the inputs."""
    rows = []
    for items, channel_chunks in _chunks(u, A):
        parts = []
        dB, dC = torch.zeros_like(B[items]), torch.zeros_like(C[items])
        for part in channel_chunks:
            *of_channels, dB_part, dC_part = _backward_chunk(
                dy[items, :, part],
                None if dlast is None else dlast[items, :, part],
                u[items, :, part],
                delta[items, :, part],
                A[:, part],
                B[items],
                C[items],
                None if initial is None else initial[items, :, part],
            )
            parts.append(of_channels)
            # Summed as they come: kept until the end, they would take as much memory as all states.
            dB, dC = dB + dB_part, dC + dC_part
        du, ddelta, dinitial, dA = zip(*parts, strict=True)
        rows.append((_cat(du, 2), _cat(ddelta, 2), _cat(dA, 1), dB, dC, _cat(dinitial, 2)))
    dus, ddeltas, dAs, dBs, dCs, dinitials = zip(*rows, strict=True)
    of_initial = None if initial is None else _cat(dinitials, 0)
    return _cat(dus, 0), _cat(ddeltas, 0), torch.stack(dAs).sum(0), _cat(dBs, 0), _cat(dCs, 0), of_initial


def _backward_chunk(
    dy: Tensor,
    dlast: Tensor | None,
    u: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor | None,
) -> tuple[Tensor, ...]:
    B, C, dy_n = B[:, :, None], C[:, :, None], dy[..., None, :]
    scaled = (step * u)[..., None, :]
    decays, entering = _decays(step, A), None if initial is None else _entering(step, A, initial)
    states = solve(decays, scaled * B if entering is None else scaled * B + entering)
    dC = _sum(states * dy_n, 2)
    # What is left of the state before: exp(δ_t A) h_{t-1}.
    kept = decays * F.pad(states, (1, 0))[..., :-1]
    if entering is not None:
        kept = kept + entering
    del states, entering

    # The adjoint recurrence g_t = C_t dy_t + exp(δ_{t+1} A) g_{t+1}.
    next_decays = F.pad(decays, (0, 1))[..., 1:]
    del decays
    after = None if dlast is None else F.pad(dlast[..., None], (dy.shape[-1] - 1, 0))
    g = solve(next_decays, dy_n * C if after is None else dy_n * C + after, reverse=True)
    del next_decays, after
    dB = _sum(g * scaled, 2)
    through_input = _sum(g * B, -2)
    through_decay = g * kept
    du = step * through_input
    ddelta = torch.addcmul(_sum(through_decay * A[..., None], -2), u, through_input)
    dA = (through_decay * step[..., None, :]).sum((0, -1))
    return du, ddelta, _first_decay(step, A) * g[..., 0], dA, dB, dC


def _first_decay(step: Tensor, A: Tensor) -> Tensor:
    """``exp(δ_1 A) (b, k, d, n)``: what is left of the initial state at the first position."""
    return torch.exp(step[..., None, 0] * A)


def _entering(step: Tensor, A: Tensor, initial: Tensor) -> Tensor:
    """What the initial state adds to the drive ``(b, k, d, n, l)``: something at the first position only."""
    return F.pad((_first_decay(step, A) * initial)[..., None], (0, step.shape[-1] - 1))


def _decays(step: Tensor, A: Tensor) -> Tensor:
    """``exp(δ A) (b, k, d, n, l)``, and 0 for the first position.

    No position comes before it; the 0 keeps its decay out of all products, where it might overflow for nothing.
    """
    position = torch.arange(step.shape[-1], device=step.device)
    start = torch.zeros_like(position, dtype=step.dtype).masked_fill(position == 0, -math.inf)
    return torch.exp(torch.addcmul(start, step[..., None, :], A[..., None]))


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
