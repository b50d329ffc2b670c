"""What the programs of this folder share: two steps of training, and a look at every parameter's gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def train(
    model: nn.Module, *inputs: Tensor, target: Tensor, loss: Callable[..., Tensor] = F.cross_entropy, lr: float = 0.03
) -> None:
    """Train two steps and print the loss in front of each, and behind the last.

    The step is written out: torch's optimizers import its compiler, which takes longer than all else here.
    """
    for step in range(3):
        value = loss(model(*inputs), target)
        print(f"step {step} loss {value.item():.6f}")
        names, parameters = zip(*model.named_parameters(), strict=True)
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        without = [name for name, g in zip(names, gradients, strict=True) if g is None or not g.abs().sum() > 0]
        if without:
            raise RuntimeError(f"no gradient reaches {', '.join(without)}")
        if step < 2:
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter -= lr * gradient
