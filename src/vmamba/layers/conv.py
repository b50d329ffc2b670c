"""The depthwise convolutions of the layers over sequences ``(b, l, c)`` and volumes ``(b, z, h, w, c)``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.functional.depthwise3d import depthwise3x3x3


class DepthwiseConv1d(nn.Conv1d):
    """Each channel of a sequence with a kernel of its own, ``(b, l, c) → (b, l, c)``.

    Args:
        dim: channels ``c``.
        size: places of the kernel.
        bias: whether it has one.
        causal: look at this place and those before it; else at equally many on both sides, for an odd size.
    """

    def __init__(self, dim: int, size: int, bias: bool = True, *, causal: bool) -> None:
        super().__init__(dim, dim, size, groups=dim, bias=bias)
        self.causal = causal

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """``(b, l, c) → (b, l, c)``; ``before (b, size - 1, c)`` are the inputs before the first, else zeros."""
        reach = self.kernel_size[0] - 1
        if before is not None:
            x = torch.cat([before, x], dim=1)
        else:
            x = F.pad(x, (0, 0, reach, 0) if self.causal else (0, 0, reach // 2, reach // 2))
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class DepthwiseConv3d(nn.Conv3d):
    """Each channel of a volume with a kernel of its own, ``(b, z, h, w, c) → (b, z, h, w, c)``, zeros around."""

    def __init__(self, dim: int, size: int, bias: bool = True) -> None:
        super().__init__(dim, dim, size, padding=(size - 1) // 2, groups=dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, z, h, w, c) → (b, z, h, w, c)``; the permutations are views."""
        if self.kernel_size == (3, 3, 3):
            return depthwise3x3x3(x, self.weight, self.bias)
        return super().forward(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
