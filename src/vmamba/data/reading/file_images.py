"""Image files with labels, read when asked for; one that cannot be read stops the reading or is noted and left out."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vmamba.data.config import DataConfig
from vmamba.data.reading.arrays import ARRAY_SUFFIXES, array_fault, channel_statistics, read_pixels
from vmamba.data.reading.files import FileList, spread
from vmamba.data.reading.images import IMAGE_SUFFIXES, UnreadableImageError, image_fault, read_image

#: Files that ``verify="sample"`` decodes before anything else.
VERIFIED = 1000
#: Training images on which the mean and deviation of their channels are measured.
MEASURED = 500

_BLOCK = 10_000


class FaultLog:
    """Which files of a list were found damaged, by any of a loader's processes: one byte a file, in shared memory."""

    def __init__(self, files: FileList) -> None:
        self._files = files
        self._flags = torch.zeros(len(files), dtype=torch.uint8).share_memory_()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._flags.share_memory_()  # it was sent to another process of a run, which has loaders of its own

    def note(self, index: int) -> None:
        """The file at ``index`` is damaged."""
        self._flags[index] = 1

    def names(self) -> tuple[str, ...]:
        """The damaged files, in order."""
        return tuple(str(self._files[int(index)]) for index in self._flags.nonzero()[:, 0])


class FileImages:
    """Image files with their labels.

    Args:
        files: which.
        targets: class indices ``(n,)``, or for images of several labels ``(n, classes)``, 1 where one holds.
        in_chans: channels that images are read with.
        skip: whether a file that cannot be read may be left out, see `UnreadableImageError.may_skip`.
        full_depth: whether images are arrays, see `read_pixels`.
    """

    def __init__(
        self,
        files: FileList,
        targets: npt.NDArray[np.integer[Any]],
        in_chans: int = 3,
        skip: bool = False,
        full_depth: bool = False,
    ) -> None:
        self.files = files
        self.targets = targets
        self.in_chans = in_chans
        self.skip = skip
        self.full_depth = full_depth
        self.faults = FaultLog(files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        try:
            image = self._image(index)
        except UnreadableImageError as error:
            if self.skip:
                self.faults.note(index)
                error.may_skip = True
                raise
            raise UnreadableImageError(f"{error}; leave such images out with unreadable=skip") from error
        target = self.targets[index]
        return image, int(target) if target.ndim == 0 else target

    def _image(self, index: int) -> Any:
        if self.full_depth:
            return read_pixels(self.files[index], self.in_chans)
        try:
            source = self.files.source(index)
        except OSError as error:
            raise UnreadableImageError(f"cannot read image {self.files[index]}: {error}") from error
        return read_image(source, self.in_chans, str(self.files[index]))

    def name(self, index: int) -> str:
        """The file."""
        return str(self.files[index])

    def subset(self, indices: npt.NDArray[np.int64]) -> FileImages:
        """The files at ``indices``, in that order."""
        return FileImages(self.files.take(indices), self.targets[indices], self.in_chans, self.skip, self.full_depth)

    def fingerprint(self) -> str:
        """From names, labels and some sizes: reading a million images to resume would be too slow."""
        return self.files.fingerprint(self.targets)


def measured_channels(images: FileImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel over `MEASURED` of the images of full depth, evenly spread."""
    paths = [images.files[index] for index in spread(len(images), MEASURED).tolist()]
    return channel_statistics(paths, images.in_chans)


def find_faults(files: FileList, verify: str, fault_of: Callable[[Any], str | None] = image_fault) -> dict[int, str]:
    """Decode all files, a sample of them or none; why those that cannot be decoded cannot, by their place.

    Args:
        files: which.
        verify: all, none, or sample: `VERIFIED` of them, evenly spread, the same each time.
        fault_of: why a file cannot be decoded, or None.
    """
    if verify == "none":
        return {}
    chosen: list[int] = (np.arange(len(files)) if verify == "all" else spread(len(files), VERIFIED)).tolist()
    faults: dict[int, str] = {}
    # Decoding releases the interpreter lock, so threads are enough.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(chosen), _BLOCK):  # a pool keeps an object for each file that waits
            block = chosen[start : start + _BLOCK]
            why = pool.map(lambda index: fault_of(files.source(index)), block)
            faults |= {index: fault for index, fault in zip(block, why, strict=True) if fault is not None}
    return faults


def suffixes_for(config: DataConfig) -> tuple[str, ...]:
    """How the names of a configuration's image files may end."""
    return IMAGE_SUFFIXES + (ARRAY_SUFFIXES if config.full_depth else ())


def fault_finder(config: DataConfig) -> Callable[[Any], str | None]:
    """What tells why a file of a configuration's images cannot be read."""
    if not config.full_depth:
        return image_fault
    in_chans = config.in_chans or config.defaults.in_chans
    return lambda path: array_fault(path, in_chans)
