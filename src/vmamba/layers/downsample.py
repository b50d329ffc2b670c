"""Between two stages: half the map's sides, other channels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.errors import ConfigError
from vmamba.layers.basic import Conv2d, Pointwise
from vmamba.layers.norm import make_norm


def merge_patches(x: Tensor) -> Tensor:
    """Lay each 2×2 block side by side: ``(b, h, w, c) → (b, ⌈h/2⌉, ⌈w/2⌉, 4c)``.

    Blocks in the order (row, column) = (0,0), (1,0), (0,1), (1,1); odd sides are padded with zeros below and right.
    """
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    return torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)


class PatchMerging(nn.Module):
    """Downsample ``v1`` (Swin, arXiv 2103.14030, §3.1): merge 2×2 patches, norm, project."""

    def __init__(self, dim: int, out_dim: int, norm_layer: str | Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.reduction = Pointwise(4 * dim, out_dim, bias=False)  # first, as upstream orders the keys
        self.norm = make_norm(norm_layer, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, h, w, c) → (b, ⌈h/2⌉, ⌈w/2⌉, c')``."""
        y: Tensor = self.reduction(self.norm(merge_patches(x)))
        return y


def make_downsample(version: str, dim: int, out_dim: int, norm_layer: str | Callable[[int], nn.Module]) -> nn.Module:
    """Build a downsample layer ``(b, h, w, dim) → (b, h', w', out_dim)``.

    ``v1`` merges patches and rounds up; ``v2`` is a 2×2 convolution of stride 2 and drops an odd last row or column;
    ``v3`` is a padded 3×3 convolution of stride 2 and rounds up.

    Raises:
        ConfigError: an unknown version.
    """
    if version == "v1":
        return PatchMerging(dim, out_dim, norm_layer)
    if version in ("v2", "v3"):
        kernel, padding = (2, 0) if version == "v2" else (3, 1)
        conv = Conv2d(dim, out_dim, kernel_size=kernel, stride=2, padding=padding)
        return nn.Sequential(OrderedDict([("1", conv), ("3", make_norm(norm_layer, out_dim))]))
    raise ConfigError(f"downsample_version {version!r} is unknown; legal: v1, v2, v3")
