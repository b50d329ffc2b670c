"""The blocks' feed-forward parts."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from vmamba.functional.eager import plain_eager_cpu
from vmamba.functional.mlp import mlp_gelu
from vmamba.layers.basic import is_idle, is_plain, make_activation
from vmamba.layers.pointwise import Pointwise


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
        if plain_eager_cpu(x) and self._is_one_operation():
            return mlp_gelu(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        x = self.drop(self.act(self.fc1(x)))
        return self.drop(self.fc2(x))  # type: ignore[no-any-return]

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """``residual + self(x)``."""
        if is_plain(self, Mlp) and plain_eager_cpu(x) and self._is_one_operation():
            return mlp_gelu(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, residual)
        return residual + self(x)  # type: ignore[no-any-return]

    def _is_one_operation(self) -> bool:
        return (
            is_plain(self.fc1, Pointwise)
            and is_plain(self.act, nn.GELU)
            and self.act.approximate == "none"
            and is_plain(self.fc2, Pointwise)
            and is_idle(self.drop, nn.Dropout)
        )


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
