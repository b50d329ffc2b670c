"""Finding a VSS block in whatever model holds a VMamba trunk, and seeing what its scan is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn

from vmamba.errors import ConfigError
from vmamba.layers.ss2d import SS2D
from vmamba.models.trunk import Trunk

Thing = TypeVar("Thing", bound=nn.Module)


def trunk_of(model: nn.Module) -> Trunk:
    """The model's patch embedding and stages: itself, or the only trunk within it.

    Raises:
        ConfigError: there is none, or more than one.
    """
    found = [module for module in model.modules() if isinstance(module, Trunk)]
    if len(found) != 1:
        raise ConfigError(
            f"a {type(model).__name__} holds {len(found)} VMamba trunks, want 1; give a model of `vmamba models` as it "
            "is built, not an optimized or exported one"
        )
    return found[0]


def ss2d_of(model: nn.Module, stage: int = -1, block: int = -1) -> SS2D:
    """The SS2D layer of a block.

    Args:
        model: whose.
        stage: from 0; negative ones count from the last.
        block: within the stage, as ``stage``.

    Raises:
        ConfigError: no such stage or block; tells how many there are.
    """
    stages = list(trunk_of(model).stages())
    blocks = _picked(stages, stage, "stage", "the model").blocks
    assert isinstance(blocks, nn.Sequential)
    layer = _picked(list(blocks), block, "block", f"stage {stage % len(stages)}").op
    assert isinstance(layer, SS2D)
    return layer


def _picked(things: Sequence[Thing], index: int, what: str, where: str) -> Thing:
    if not -len(things) <= index < len(things):
        raise ConfigError(f"{what}={index}: {where} has {len(things)}, so want {-len(things)} to {len(things) - 1}")
    return things[index]


@contextmanager
def watched_scan(layer: SS2D, seen: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Within it, each call of the layer's scan appends what goes in and what comes out, both ``(b, h, w, d)``."""

    def scan(x: Tensor) -> Tensor:
        y = SS2D.scan(layer, x)
        seen.append((x.detach(), y.detach()))
        return y

    layer.__dict__["scan"] = scan
    try:
        yield
    finally:
        del layer.__dict__["scan"]
