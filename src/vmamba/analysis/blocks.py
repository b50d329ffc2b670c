"""Finding a VSS block in whatever model holds a VMamba trunk, and seeing what its scan is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn

from vmamba.errors import ConfigError
from vmamba.layers.ss2d import SS2D
from vmamba.models.trunk import Stage, Trunk

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


def one_image(what: str, image: Tensor) -> Tensor:
    """``image (in_chans, H, W)``, or a batch of it alone, as ``(1, in_chans, H, W)``.

    Raises:
        ConfigError: several images; ``what`` is of one.
    """
    batch = image if image.dim() == 4 else image[None]
    if batch.dim() != 4 or len(batch) != 1:
        raise ConfigError(f"a {what} is of one image (in_chans, H, W), given {tuple(image.shape)}")
    return batch


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it the model is in eval mode; afterwards as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def stage_of(model: nn.Module, stage: int = -1) -> Stage:
    """A stage of the model's trunk, from 0; negative ones count from the last.

    Raises:
        ConfigError: no such stage; tells how many there are.
    """
    return _picked(list(trunk_of(model).stages()), stage, "stage", "the model")


def ss2d_of(model: nn.Module, stage: int = -1, block: int = -1) -> SS2D:
    """The SS2D layer of a block.

    Args:
        model: whose.
        stage: from 0; negative ones count from the last.
        block: within the stage, as ``stage``.

    Raises:
        ConfigError: no such stage or block; tells how many there are.
    """
    blocks = stage_of(model, stage).blocks
    assert isinstance(blocks, nn.Sequential)
    where = f"stage {stage % len(list(trunk_of(model).stages()))}"
    layer = _picked(list(blocks), block, "block", where).op
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
