"""Left-right flips that take turns: an image is seen one way round in one epoch, and the other way in the next.

By chance half of the images are seen in two epochs the same way round twice; in short trainings that is felt
(arXiv 2404.00498, "alternating flip").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

#: In place of a probability.
ALTERNATE: Literal["alternate"] = "alternate"

Hflip = float | Literal["alternate"]

_turn: bool | None = None


def take_turn(mirrored: bool | None) -> None:
    """Say whether the image that is transformed next has its turn to be mirrored; None: there are no turns."""
    global _turn
    _turn = mirrored


def flipped(hflip: Hflip, draw: Callable[[], float]) -> bool:
    """Whether the image at hand is flipped: in its turn, or with a probability, which is 0.5 where there are no turns.

    ``draw`` gives a random number from 0 to 1, and is called where one is needed.
    """
    if hflip != ALTERNATE:
        return draw() < hflip
    return draw() < 0.5 if _turn is None else _turn
