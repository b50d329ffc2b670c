"""A linear recurrence in plain PyTorch, parallel over the sequence.

The sequence is cut into blocks. Inside each block a prefix by doubling (shifts of 1, 2, 4, … positions) gives every
state as if the block began from zero, and the product of the decays up to it; the states at the blocks' ends then
follow the same recurrence, on a sequence of one item a block, and are solved the same way; one more pass carries them
into the blocks. Only products of decays are formed, never quotients, so where the recurrence decays nothing overflows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba import _torch

#: Positions in a block, level by level, in an exported graph.
_EXPORTED_BLOCKS = (16, 64, 64, 64)
#: The longest sequence that an exported graph scans; on a longer one it stops with an index out of range.
MAX_EXPORTED_LENGTH = math.prod(_EXPORTED_BLOCKS)
#: Elsewhere: positions in a block, and the length that one block takes whole.
_BLOCK, _ONE_BLOCK = 16, 64


def solve(decay: Tensor, drive: Tensor, *, reverse: bool = False) -> Tensor:
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
