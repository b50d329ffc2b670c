"""Left-right flips that take turns: an image is seen one way round in one epoch, and the other way in the next.

By chance half of the images are seen in two epochs the same way round twice; in short trainings that is felt
(arXiv 2404.00498, "alternating flip").
"""

from __future__ import annotations

from typing import Literal

#: In place of a probability.
ALTERNATE: Literal["alternate"] = "alternate"

Hflip = float | Literal["alternate"]

_turn: bool | None = None


def take_turn(mirrored: bool | None) -> None:
    """Say whether the image that is transformed next has its turn to be mirrored; None: there are no turns."""
    global _turn
    _turn = mirrored


def flip_probability(hflip: Hflip) -> float:
    """With what probability the image at hand is flipped; 0 or 1 in its turn, and 0.5 where there are none."""
    if hflip != ALTERNATE:
        return float(hflip)
    return 0.5 if _turn is None else float(_turn)
