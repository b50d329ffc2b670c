"""Activations by upstream's names."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.errors import ConfigError, nearest

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


class SoftmaxOverPlaces(nn.Module):
    """Softmax over the places of each channel (postfix ``_onsoftmax``)."""

    def forward(self, x: Tensor) -> Tensor:
        """``(b, *sizes, c) → (b, *sizes, c)``."""
        y: Tensor = F.softmax(x.flatten(1, -2), dim=1).unflatten(1, x.shape[1:-1])
        return y
