"""Images with any number of channels and any depth, as float arrays: NumPy files, TIFFs of several pages, 16 bits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, ImageSequence

from vmamba.data.reading.images import UnreadableImageError, read_image, reason_for
from vmamba.errors import DataError

#: Besides what Pillow opens.
ARRAY_SUFFIXES = (".npy",)

Pixels = npt.NDArray[np.float32]


def read_pixels(path: Path, in_chans: int) -> Pixels:
    """Read one image file with its whole depth.

    Args:
        path: a ``.npy`` file with an array ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``, or an image that Pillow opens,
            whose pages are laid side by side as channels.
        in_chans: how many channels it must have.

    Returns:
        ``(in_chans, H, W)``, float32. Integers are divided by the largest that their type holds, so that 8 and 16 bits
        alike lie between 0 and 1; floats are as they are.

    Raises:
        UnreadableImageError: it is missing, damaged, or has another number of channels.
    """
    try:
        array = np.load(path, allow_pickle=False) if path.suffix.lower() == ".npy" else _pages(path)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(f"cannot read image {path}: {reason_for(error, path)}") from error
    if array.dtype.kind not in "buif" or (array.dtype.kind in "ui" and array.dtype.itemsize > 2):
        raise UnreadableImageError(
            f"cannot read image {path}: it holds {array.dtype}; want 8 or 16 bits, or floats of any range"
        )
    shape = array.shape
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and array.shape[-1] == in_chans:
        array = np.moveaxis(array, -1, 0)
    if array.ndim != 3 or array.shape[0] != in_chans or 0 in shape:
        raise UnreadableImageError(
            f"cannot read image {path}: its array is {shape}, want (H, W, {in_chans}) or ({in_chans}, H, W) for "
            f"in_chans={in_chans}"
        )
    scale = np.iinfo(array.dtype).max if array.dtype.kind in "ui" else 1
    pixels = array.astype(np.float32) / np.float32(scale)
    if not np.isfinite(pixels).all():
        raise UnreadableImageError(f"cannot read image {path}: it holds values that are not finite")
    return np.ascontiguousarray(pixels)


def _pages(path: Path) -> npt.NDArray[np.generic]:
    """All pages of an image file as ``(H, W)`` or ``(H, W, C)``."""
    with Image.open(path) as image:
        pages = [_array(ImageOps.exif_transpose(page)) for page in ImageSequence.Iterator(image)]
    if len({page.shape[:2] for page in pages}) > 1 or len({page.dtype for page in pages}) > 1:
        raise ValueError(f"its {len(pages)} pages differ in size or depth")
    channels = [page if page.ndim == 3 else page[..., None] for page in pages]
    return np.concatenate(channels, axis=-1)


def _array(page: Image.Image) -> npt.NDArray[np.generic]:
    array = np.asarray(page.convert("RGB") if page.mode == "P" else page)
    if page.mode == "I" and array.min(initial=0) >= 0 and array.max(initial=0) <= 65535:
        return array.astype(np.uint16)  # as older versions of Pillow open 16-bit grey
    return array


def array_fault(path: Path, in_chans: int) -> str | None:
    """Why `read_pixels` fails, or None."""
    try:
        read_pixels(path, in_chans)
    except UnreadableImageError as error:
        return str(error).partition(f"{path}: ")[2]
    return None


def preview(path: Path) -> Image.Image:
    """An RGB picture of any image file for people; of an array its first three channels, or its first, stretched."""
    if path.suffix.lower() not in ARRAY_SUFFIXES:
        return read_image(path, 3)
    try:
        array = np.load(path, allow_pickle=False).astype(np.float32)
    except (OSError, ValueError, EOFError) as error:
        raise UnreadableImageError(f"cannot read image {path}: {reason_for(error, path)}") from error
    if array.ndim == 3:
        array = np.moveaxis(array, int(np.argmin(array.shape)), -1)
        array = array[..., :3] if array.shape[-1] >= 3 else array[..., 0]
    low, high = float(array.min()), float(array.max())
    return Image.fromarray(((array - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)).convert("RGB")


def channel_statistics(paths: Sequence[Path], in_chans: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over the images at ``paths`` that can be read, each image equally.

    Raises:
        DataError: none can be read, or a channel is the same everywhere.
    """

    def moments(path: Path) -> npt.NDArray[np.float64] | None:
        try:
            pixels = read_pixels(path, in_chans).astype(np.float64).reshape(in_chans, -1)
        except UnreadableImageError:
            return None
        return np.stack([pixels.mean(1), np.square(pixels).mean(1)])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        seen = [found for found in pool.map(moments, paths) if found is not None]
    if not seen:
        raise DataError(f"none of {len(paths)} images can be read, such as {paths[0]}: give data.mean and data.std")
    mean, square = np.mean(seen, axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    if std.min() <= 1e-9:
        raise DataError(
            f"channel {int(std.argmin())} of {in_chans} is the same everywhere in {len(seen)} images, such as "
            f"{paths[0]}: leave it out, or give data.mean and data.std"
        )
    return tuple(round(float(v), 6) for v in mean), tuple(max(round(float(v), 6), 1e-6) for v in std)
