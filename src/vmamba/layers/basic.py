"""The layers that every block is made of, on channels-last tensors ``(b, h, w, c)``."""

from __future__ import annotations

from torch import Tensor, nn

from vmamba.functional.depthwise import depthwise3x3
from vmamba.functional.linear import linear


class Pointwise(nn.Linear):
    """A product over channels at every place: ``(…, c_in) → (…, c_out)``, weight ``(c_out, c_in)``."""

    def forward(self, x: Tensor) -> Tensor:
        """``(…, c_in) → (…, c_out)``."""
        return linear(x, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` over a channels-last map: ``(b, h, w, c_in) → (b, h', w', c_out)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; the permutations are views, so cuDNN and oneDNN see ``torch.channels_last`` memory."""
        if self.is_depthwise3x3():
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
        return x * (mask.div_(keep) if keep > 0.0 else mask)

    def extra_repr(self) -> str:
        """Show the rate."""
        return f"p={self.p:.3f}"
