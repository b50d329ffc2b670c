"""The classes of pixels: names and colours, as a user gives them, as ADE20K has them, or made up."""

from __future__ import annotations

import colorsys
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from vmamba.errors import ConfigError

Colour = tuple[int, int, int]

#: The name that stands for ADE20K's 150 classes.
ADE20K = "ade20k"
#: Names of the class that shows nothing of interest, which pictures leave as they are.
BACKGROUND = ("background", "unlabelled", "unlabeled", "void")


@dataclass(frozen=True)
class PixelClasses:
    """Names and colours, in the order of a network's logits.

    Attributes:
        names: each once.
        palette: a colour for each.
        made_up: whether the colours are this package's, so that no mask can have been painted with them.
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    made_up: bool = False

    def __len__(self) -> int:
        return len(self.names)

    @property
    def background(self) -> tuple[int, ...]:
        """Where in `names` the classes are that show nothing of interest."""
        return tuple(place for place, name in enumerate(self.names) if name.lower() in BACKGROUND)

    @classmethod
    def of(cls, names: Sequence[str]) -> PixelClasses:
        """With made-up colours: far apart in hue from one to the next, black for a background."""
        colours: list[Colour] = []
        for name in names:
            # The golden section spreads any number of hues evenly; brightness alternates for neighbours in hue.
            place = len(colours)
            hue, value = (0.02 + place * 0.618034) % 1.0, (0.95, 0.75, 0.6)[place // 8 % 3]
            red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, value))
            colours.append((0, 0, 0) if name.lower() in BACKGROUND else (red, green, blue))
        return cls(tuple(names), tuple(colours), made_up=True)


def ade20k_classes() -> PixelClasses:
    """ADE20K's 150 classes with their usual colours, in the order of the released models' logits."""
    text = (files("vmamba.data.segmentation") / "ade20k.csv").read_text(encoding="utf-8")
    return _from_rows(list(csv.DictReader(text.splitlines())))


def pixel_classes(given: Any) -> PixelClasses:
    """Classes as a configuration names them.

    Args:
        given: `PixelClasses`; ``"ade20k"``; a list of names; or a file: one name a line, or a CSV table with the
            columns name and, if there are colours, red, green and blue.

    Raises:
        ConfigError: it is none of these, there are fewer than two, or two have one name.
    """
    if isinstance(given, PixelClasses):
        return given
    if given == ADE20K:
        return ade20k_classes()
    found: PixelClasses | None = None
    if isinstance(given, (list, tuple)) and all(isinstance(name, str) for name in given):
        found = PixelClasses.of(given)
    elif isinstance(given, (str, Path)):
        found = _read(Path(given))
    if found is None:
        raise ConfigError(f"classes={given!r}: want {ADE20K}, a list of names, or a file with a name in each line")
    if len(found) < 2 or len(set(found.names)) < len(found):
        raise ConfigError(f"classes={given!r}: want two or more, each with a name of its own; given {found.names[:20]}")
    return found


def _read(path: Path) -> PixelClasses:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"classes={path}: neither {ADE20K} nor a file of names that can be read ({error})") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or "name" not in lines[0].split(","):
        return PixelClasses.of(lines)
    try:
        return _from_rows(list(csv.DictReader(lines)))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"classes={path}: want the columns name, red, green and blue (0 to 255): {error}") from error


def _from_rows(rows: Sequence[dict[str, str]]) -> PixelClasses:
    names = tuple(row["name"] for row in rows)
    if not rows or "red" not in rows[0]:
        return PixelClasses.of(names)
    palette = tuple((int(row["red"]), int(row["green"]), int(row["blue"])) for row in rows)
    if any(not 0 <= part <= 255 for colour in palette for part in colour):
        raise ValueError("a colour is beyond 0 to 255")
    return PixelClasses(names, palette)
