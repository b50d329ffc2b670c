"""How the operators are called: through torch's dispatcher where somebody looks on, else the functions behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vmamba import _torch
from vmamba.kernels.gradients import given


class Scan(NamedTuple):
    """A scan both ways, as operators and as the functions behind them."""

    kernel: Callable[..., tuple[Tensor | None, ...]]
    operator: Any
    gradients: Callable[..., Sequence[Tensor]]
    gradients_operator: Any
    outputs: int = 1  # of a kernel's results; the others are what backward starts from


def run(scan: Scan, tensors: Sequence[Tensor | None], *options: Any) -> tuple[Tensor, ...]:
    """Call the operator, or what is behind it where that serves; save states where backward will ask for them."""
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    # An operator's way through the dispatcher takes as long as the kernel does on a small map.
    if not _torch.is_plain(*tensors):
        found = scan.operator(*tensors, *options, save)
    elif save:
        found = _Differentiable.apply(scan, options, *tensors)
    else:
        found = scan.kernel(*tensors, *options, False)
    outputs: tuple[Tensor, ...] = found[: scan.outputs]
    return outputs


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scan: Scan, options: tuple[Any, ...], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        found = scan.kernel(*tensors, *options, True)
        ctx.save_for_backward(*found[scan.outputs :], *tensors)
        ctx.scan, ctx.options, ctx.count = scan, options, len(tensors)
        return found[: scan.outputs]  # type: ignore[return-value]

    @staticmethod
    def backward(ctx: Any, *of_outputs: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        # Gradients of gradients, batched ones and what compilers trace are for the operator to run or to refuse.
        if not torch.is_grad_enabled() and all(map(_is_plain_memory, of_outputs)):
            found = ctx.scan.gradients(*of_outputs, *kept, *ctx.options)
        else:
            # What an operator returns is never None, so neither is what it takes back.
            none = kept[0].new_empty(0)
            saved = (none if t is None else t for t in kept[: -ctx.count])
            found = ctx.scan.gradients_operator(*of_outputs, *saved, *kept[-ctx.count :], *ctx.options)
        return None, None, *given(found, kept[-ctx.count :])


def _is_plain_memory(t: Tensor) -> bool:
    return _torch.is_plain(t) and _torch.has_memory(t) and t.layout == torch.strided
