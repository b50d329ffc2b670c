"""Whether a call is an ordinary one, which may take a shorter path than the operations that a tracer must see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def plain_eager(*tensors: Tensor | None) -> bool:
    """Whether nobody looks on or rewrites the operations on these tensors.

    Compilers and exporters do, function transforms, forward-mode differentiation, dispatch modes such as a FLOP
    counter, and subclasses of `torch.Tensor`.
    """
    return (
        not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None  # torch.jit.trace
        and not torch._C._are_functorch_transforms_active()
        and not is_in_torch_dispatch_mode()
        and forward_ad._current_level < 0
        and all(t is None or type(t) in (Tensor, torch.nn.Parameter) for t in tensors)
    )


def plain_eager_cpu(*tensors: Tensor | None) -> bool:
    """Whether this is besides a float32 call on the CPU, without autocast, of tensors that are not empty."""
    return (
        plain_eager(*tensors)
        and not torch.is_autocast_enabled("cpu")
        and all(
            t is None
            or (t.dtype == torch.float32 and t.device.type == "cpu" and t.layout == torch.strided and t.numel() > 0)
            for t in tensors
        )
        and all(t is None or torch._C._has_storage(t) for t in tensors)  # torch.autograd.grad(is_grads_batched=True)
    )


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
