"""Mask files: what each pixel shows, read from any kind of file, checked, and counted from 0."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vmamba.data.images import UnreadableImageError, reason_for
from vmamba.data.segmentation.classes import Colour
from vmamba.errors import ConfigError, DataError

#: What is neither learnt nor counted, where nothing else is said.
IGNORE = 255

Labels = npt.NDArray[np.uint16]
#: One more than the largest value that a mask file can hold.
_VALUES = 65536


@dataclass(frozen=True)
class MaskFormat:
    """How the values in mask files stand for classes.

    Attributes:
        count: of classes; labels are 0 to count − 1.
        ignore_index: the label of pixels that are neither learnt nor counted, in files and after reading.
        reduce_zero_label: whether 0 in a file means such a pixel, and every other value one class less, as in ADE20K.
        values: the value in a file that stands for each class, such as (0, 255); empty where it is the class itself.
        palette: the colour that stands for each class in RGB files; empty where such are refused.
    """

    count: int
    ignore_index: int = IGNORE
    reduce_zero_label: bool = False
    values: tuple[int, ...] = ()
    palette: tuple[Colour, ...] = ()

    def __post_init__(self) -> None:
        if not self.count <= self.ignore_index < _VALUES:
            raise ConfigError(
                f"ignore_index={self.ignore_index} with {self.count} classes: want a number from {self.count} up to "
                f"{_VALUES - 1}, which is no class's"
            )
        if self.values and (self.reduce_zero_label or len(set(self.values)) != self.count):
            raise ConfigError(
                f"mask_values={list(self.values)}: want one value of its own for each of {self.count} classes, and no "
                "reduce_zero_label beside them"
            )
        if self.values and not all(0 <= value < _VALUES for value in self.values):
            raise ConfigError(f"mask_values={list(self.values)}: want numbers from 0 to {_VALUES - 1}")

    @cached_property
    def _table(self) -> npt.NDArray[np.int32]:
        """The label of each value; −1 where it has none."""
        table = np.full(_VALUES, -1, np.int32)
        if self.ignore_index not in self.values:
            table[self.ignore_index] = self.ignore_index
        if self.reduce_zero_label:
            table[[0, IGNORE]] = self.ignore_index
            table[1 : self.count + 1] = np.arange(self.count)
        else:
            table[list(self.values) or slice(self.count)] = np.arange(self.count)
        return table

    def labels(self, values: Labels, name: object) -> Labels:
        """The labels ``(h, w)`` of a file's values.

        Raises:
            DataError: a value stands for no class; names it.
        """
        labels = self._table[values]
        if labels.min(initial=0) < 0:
            wrong = np.unique(values[labels < 0]).tolist()
            raise DataError(f"mask {name} holds {wrong[:10]}, which stand for no class: {self._legal()}")
        return labels.astype(np.uint16)

    def _legal(self) -> str:
        first = int(self.reduce_zero_label)
        known = list(self.values) if self.values else f"{first} to {self.count - 1 + first}"
        mend = "name all classes with task_options.classes, or the values with task_options.mask_values"
        return f"{self.count} classes are {known}, and {self.ignore_index} is ignored; {mend}"

    def read(self, path: Path) -> Labels:
        """Read a mask file as labels ``(h, w)``. Raises as `read_values` and `labels`."""
        if self.palette and (array := _read(path)).ndim == 3:
            return self._by_colour(array, path)
        return self.labels(read_values(path), path)

    def _by_colour(self, colours: Labels, path: Path) -> Labels:
        """The labels of ``colours (h, w, 3)``; black is no class where no class is black."""
        keys, words = _words(np.array(self.palette)), _words(colours)
        order = np.argsort(keys)
        place = order[np.searchsorted(keys, words, sorter=order).clip(max=len(keys) - 1)]
        known = keys[place] == words
        if not (known | (words == 0)).all():
            colour = colours[~known & (words != 0)][0].tolist()
            raise DataError(
                f"mask {path} holds the colour {colour}, which is none of the {len(keys)} classes'; such masks must be "
                "saved without loss (PNG), and with the colours of task_options.classes"
            )
        return np.where(known, place, self.ignore_index).astype(np.uint16)


def read_values(path: Path) -> Labels:
    """What a mask file holds, ``(h, w)``.

    Grey files of 1, 8 and 16 bits and ``.npy`` arrays of whole numbers hold values, and so do RGB files that are grey;
    of a file with a palette the indices are taken, whatever its colours.

    Raises:
        UnreadableImageError: it is missing or damaged.
        DataError: it holds something else; says what would mend it.
    """
    array = _read(path)
    if array.ndim == 2:
        return array
    if (array == array[..., :1]).all():
        return array[..., 0]
    raise DataError(
        f"mask {path} is an RGB picture, and which colour is which class is not known: give a table of name, red, "
        "green, blue with task_options.classes, or save masks with one channel of class numbers"
    )


def _read(path: Path) -> Labels:
    """Values ``(h, w)``, or RGB colours ``(h, w, 3)``."""
    try:
        if path.suffix.lower() == ".npy":
            array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                image.load()
                array = _array(image)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(f"cannot read mask {path}: {reason_for(error, path)}") from error
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    colours = array.ndim == 3 and array.shape[-1] == 3 and array.dtype == np.uint8
    if not colours and (array.ndim != 2 or array.dtype.kind not in "bui"):
        raise DataError(
            f"mask {path} holds {array.dtype} of shape {array.shape}; want whole numbers (height, width), or RGB"
        )
    if array.size and (array.min() < 0 or array.max() >= _VALUES):
        raise DataError(f"mask {path} holds numbers from {array.min()} to {array.max()}; want 0 to {_VALUES - 1}")
    return array.astype(np.uint16)


def _array(image: Image.Image) -> npt.NDArray[Any]:
    if image.mode in ("RGBA", "LA") and image.getchannel("A").getextrema() == (255, 255):
        image = image.convert(image.mode[:-1])
    return np.asarray(image)


def _words(colours: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Each colour ``(…, 3)`` as one number."""
    red, green, blue = np.moveaxis(colours.astype(np.int64), -1, 0)
    words: npt.NDArray[np.int64] = (red * 256 + green) * 256 + blue
    return words
