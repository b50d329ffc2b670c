"""What the functions of this folder ask before they take a compiled CPU kernel, and what they do where they cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vmamba import _torch


def takes_kernels(*tensors: Tensor | None) -> bool:
    """Whether this is an ordinary float32 call on the CPU, without autocast, of tensors that are not empty."""
    first = tensors[0]
    if not isinstance(first, Tensor) or first.device.type != "cpu":  # most of those who ask, and the quickest answer
        return False
    return (
        _torch.is_plain(*tensors)
        and not torch.is_autocast_enabled("cpu")
        and all(
            t is None
            or (t.dtype == torch.float32 and t.device.type == "cpu" and t.layout == torch.strided and t.numel() > 0)
            for t in tensors
        )
        and all(t is None or _torch.has_memory(t) for t in tensors)  # torch.autograd.grad(is_grads_batched=True)
    )


def needs_gradients(*tensors: Tensor | None) -> bool:
    """Whether backward will ask for the gradient of one of these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def standard_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Any], needed: Sequence[bool], dy: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of ``function(*inputs)`` by its own operations, which can be differentiated again and batched."""
    with torch.enable_grad():
        # Views, so that the gradient of one input does not go on into another that it was computed from.
        views = [None if t is None else t.view_as(t) for t in inputs]
        y = function(*views)
    wanted = [v for v, need in zip(views, needed, strict=True) if v is not None and need]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=torch.is_grad_enabled()))
    return tuple(next(found) if need else None for need in needed)
