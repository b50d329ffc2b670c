"""The blocks' feed-forward parts."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from vmamba.layers.activation import make_activation
from vmamba.layers.basic import Pointwise
from vmamba.layers.chain import chain


class Mlp(nn.Module):
    """Two pointwise products with an activation between: ``fc2(act(fc1(x)))``."""

    def __init__(
        self, dim: int, hidden: int, act_layer: str | Callable[[], nn.Module] = "gelu", drop: float = 0.0
    ) -> None:
        super().__init__()
        self.fc1 = Pointwise(dim, hidden)
        self.act = make_activation(act_layer)
        self.fc2 = Pointwise(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """``(…, c) → (…, c)``."""
        return chain(x, self.fc1, self.act, self.drop, self.fc2, self.drop)


class GatedMlp(nn.Module):
    """``fc1`` gives ``x`` and ``z``; the result is ``fc2(x · act(z))``."""

    def __init__(
        self, dim: int, hidden: int, act_layer: str | Callable[[], nn.Module] = "gelu", drop: float = 0.0
    ) -> None:
        super().__init__()
        self.fc1 = Pointwise(dim, 2 * hidden)
        self.act = make_activation(act_layer)
        self.fc2 = Pointwise(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """``(…, c) → (…, c)``."""
        x, z = self.fc1(x).chunk(2, dim=-1)
        x = self.fc2(x * self.act(z))
        return self.drop(x)  # type: ignore[no-any-return]
