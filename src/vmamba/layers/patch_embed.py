"""From an image to a map of tokens. Submodules carry upstream's indices, so that its keys fit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.errors import ConfigError
from vmamba.layers.basic import Conv2d
from vmamba.layers.norm import make_norm


def make_patch_embed(
    version: str,
    in_chans: int,
    dim: int,
    patch_size: int,
    patch_norm: bool,
    norm_layer: str | Callable[[int], nn.Module],
) -> nn.Sequential:
    """Build the patch embedding ``(b, H, W, in_chans) → (b, h, w, dim)``.

    ``v1`` is one convolution of the patch's size and rounds an odd image down; ``v2`` is two overlapping
    convolutions of stride ``patch_size / 2`` with a GELU between and rounds up: ``(patch_size / 2)²`` pixels a token,
    which is ``patch_size`` for 4 alone.

    Raises:
        ConfigError: an unknown version, or an odd or too small patch for ``v2``.
    """

    def norm(channels: int) -> nn.Module:
        return make_norm(norm_layer, channels) if patch_norm else nn.Identity()

    if version == "v1":
        conv = Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)
        return nn.Sequential(OrderedDict([("0", conv), ("2", norm(dim))]))
    if version == "v2":
        if patch_size < 2 or patch_size % 2:
            raise ConfigError(f"patch_size {patch_size} does not fit patchembed_version 'v2'; give an even number")
        stride = patch_size // 2
        first = Conv2d(in_chans, dim // 2, kernel_size=stride + 1, stride=stride, padding=1)
        second = Conv2d(dim // 2, dim, kernel_size=stride + 1, stride=stride, padding=1)
        return nn.Sequential(
            OrderedDict([("0", first), ("2", norm(dim // 2)), ("4", nn.GELU()), ("5", second), ("7", norm(dim))])
        )
    raise ConfigError(f"patchembed_version {version!r} is unknown; legal: v1, v2")


def resize_pos_embed(pos_embed: Tensor, h: int, w: int) -> Tensor:
    """Resize ``(1, c, h₀, w₀)`` to ``(1, c, h, w)``: bicubic, corners not aligned; itself where the grids agree."""
    if pos_embed.shape[-2:] == (h, w):
        return pos_embed
    return F.interpolate(pos_embed, size=(h, w), mode="bicubic", align_corners=False)
