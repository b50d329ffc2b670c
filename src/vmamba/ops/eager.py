"""Whether a call is an ordinary one, which may take a shorter path than the operations that a tracer must see."""

from __future__ import annotations

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
