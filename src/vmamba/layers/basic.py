"""The small layers every block is made of, all on channels-last tensors ``(b, h, w, c)``."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from vmamba.errors import ConfigError, nearest
from vmamba.functional.depthwise import depthwise3x3
from vmamba.functional.eager import plain_eager_cpu

#: Upstream's names of activations.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
}


def make_activation(name: str | Callable[[], nn.Module]) -> nn.Module:
    """Build an activation from upstream's name for it (any case) or from a class.

    Raises:
        ConfigError: an unknown name.
    """
    if not isinstance(name, str):
        return name()
    if name.lower() not in ACTIVATIONS:
        raise ConfigError(
            f"activation {name!r} is unknown; legal: {', '.join(ACTIVATIONS)}{nearest(name, ACTIVATIONS)}"
        )
    return ACTIVATIONS[name.lower()]()


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling ``module`` is ``kind.forward`` and no more: no subclass, no hooks, nothing patched.

    Only then may its parent compute what it would in another way.
    """
    return (
        type(module) is kind
        and "forward" not in module.__dict__
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        and not _has_any_global_hook()
    )


def is_idle(module: nn.Dropout | DropPath, kind: type[nn.Module]) -> bool:
    """Whether ``module`` is a plain ``kind`` that drops nothing now."""
    return is_plain(module, kind) and (module.p == 0.0 or not module.training)


class ChannelsFirst(nn.Module):
    """Run a channels-first module ``(b, c, h, w)`` on a channels-last map: for norms that a user brings along."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """``(b, h, w, c) → (b, h, w, c)``."""
        y: Tensor = self.module(x.permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1)


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` over a channels-last map: ``(b, h, w, c_in) → (b, h', w', c_out)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; the permutations are views, so cuDNN and oneDNN see ``torch.channels_last`` memory."""
        if plain_eager_cpu(x) and self.is_depthwise3x3():
            return depthwise3x3(x, self.weight, self.bias, silu=False)
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def is_depthwise3x3(self) -> bool:
        """Whether `vmamba.functional.depthwise.depthwise3x3` computes this."""
        return (
            self.groups == self.in_channels == self.out_channels
            and self.kernel_size == (3, 3)
            and self.padding == (1, 1)
            and self.stride == self.dilation == (1, 1)
            and self.padding_mode == "zeros"
        )


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, drop a sample's residual branch with probability ``p``."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.p = float(p)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, …) → (b, …)``; kept samples are scaled by ``1 / (1 - p)``."""
        if not self.training or self.p == 0.0:
            return x
        keep = 1.0 - self.p
        mask = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * (mask / keep if keep > 0.0 else mask)

    def extra_repr(self) -> str:
        """Show the rate."""
        return f"p={self.p:.3f}"


class SoftmaxOverPlaces(nn.Module):
    """Softmax over the ``h·w`` places of each channel (postfix ``_onsoftmax``)."""

    def forward(self, x: Tensor) -> Tensor:
        """``(b, h, w, c) → (b, h, w, c)``."""
        y: Tensor = F.softmax(x.flatten(1, 2), dim=1).unflatten(1, x.shape[1:3])
        return y
