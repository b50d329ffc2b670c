"""Norms over the channels of channels-last maps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vmamba._torch import is_plain_module
from vmamba.errors import ConfigError, nearest
from vmamba.functional.norm import layer_norm

#: Upstream's names. ``ln`` and ``ln2d`` differ in layout only, so they build the same norm here.
NORMS = ("ln", "ln2d", "bn")


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last axis that also takes an input of a wider dtype than its own parameters.

    The scan's output is float32 whatever the module's dtype; a module cast to bfloat16 as a whole must still run.
    """

    def forward(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """``(…, c) → (…, c)`` in the dtype of ``x``, or converted to ``dtype``."""
        return layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps, dtype)


def normed(norm: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    """``norm(x)`` in ``dtype``: by one kernel where that can be and nobody looks at what is between."""
    if is_plain_module(norm, LayerNorm):
        return norm(x, dtype)  # type: ignore[no-any-return]
    y: Tensor = norm(x)
    return y.to(dtype)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of a channels-first map ``(b, c, h, w)``, for users' own channels-first code."""

    def forward(self, x: Tensor) -> Tensor:
        """``(b, c, h, w) → (b, c, h, w)``."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm over the channels of a channels-last map."""

    def forward(self, x: Tensor) -> Tensor:
        """``(b, h, w, c) → (b, h, w, c)``."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ChannelsFirst(nn.Module):
    """Run a channels-first module ``(b, c, h, w)`` on a channels-last map: for norms that a user brings along."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """``(b, h, w, c) → (b, h, w, c)``."""
        y: Tensor = self.module(x.permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1)


def make_norm(norm_layer: str | Callable[[int], nn.Module], dim: int, channel_first: bool = False) -> nn.Module:
    """Build the norm over ``dim`` channels of a channels-last map.

    Args:
        norm_layer: ``"ln"``, ``"ln2d"`` or ``"bn"`` in any case, or a class such as ``torch.nn.LayerNorm``.
        dim: channels.
        channel_first: whether a class of the user's own works on ``(b, c, h, w)``.

    Raises:
        ConfigError: an unknown name.
    """
    if not isinstance(norm_layer, str):
        if norm_layer in (nn.LayerNorm, LayerNorm, LayerNorm2d):
            return LayerNorm(dim)
        if norm_layer is nn.BatchNorm2d or norm_layer is BatchNorm:
            return BatchNorm(dim)
        return ChannelsFirst(norm_layer(dim)) if channel_first else norm_layer(dim)
    name = norm_layer.lower()
    if name not in NORMS:
        raise ConfigError(f"norm_layer {norm_layer!r} is unknown; legal: {', '.join(NORMS)}{nearest(name, NORMS)}")
    return BatchNorm(dim) if name == "bn" else LayerNorm(dim)
