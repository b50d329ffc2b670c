"""The one layer that all pointwise products go through."""

from __future__ import annotations

from torch import Tensor, nn

from vmamba.functional.linear import linear


class Pointwise(nn.Linear):
    """A product over channels at every place: ``(…, c_in) → (…, c_out)``, weight ``(c_out, c_in)``."""

    def forward(self, x: Tensor) -> Tensor:
        """``(…, c_in) → (…, c_out)``."""
        return linear(x, self.weight, self.bias)
