"""Reading images as they come: any mode that Pillow opens, turned into the 1 or 3 channels that a model takes."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vmamba.data.reading.tar_index import member
from vmamba.errors import ConfigError, DataError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

_MODES: dict[int, Literal["L", "RGB"]] = {1: "L", 3: "RGB"}


class UnreadableImageError(DataError):
    """An image that is missing, not an image, or damaged.

    Attributes:
        may_skip: whether the user would rather have such images left out.
    """

    may_skip = False

    def __init__(self, message: str) -> None:
        # A loader's process sends its mistakes on as the text of a traceback, whose last line is what was said.
        super().__init__(message.strip().rpartition(f"{type(self).__name__}: ")[2])


def mode_of(in_chans: int) -> Literal["L", "RGB"]:
    """The Pillow mode with ``in_chans`` channels.

    Raises:
        ConfigError: ``in_chans`` is neither 1 (grey) nor 3 (RGB).
    """
    if in_chans not in _MODES:
        raise ConfigError(
            f"in_chans={in_chans}: images are read with 1 channel (grey) or 3 (RGB); arrays with more are for data of "
            "full_depth"
        )
    return _MODES[in_chans]


def convert(image: Image.Image, in_chans: int) -> Image.Image:
    """Turn an image of any mode upright and into 8-bit grey (``in_chans=1``) or RGB (``3``).

    Transparency is laid over white. 16-bit and floating-point images keep their whole range: dropping the low
    byte, not clipping at 255, which is what a bare ``Image.convert`` does to them.
    """
    mode = mode_of(in_chans)
    if type(image) is Image.Image and image.mode == mode and not image.info:
        return image  # from memory, or converted before
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == mode and type(image) is Image.Image else image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    high = float(values.max(initial=0.0))
    if image.mode == "F" and high <= 1.0:
        scale = 255.0  # floats in [0, 1]
    elif image.mode in ("I", "F") and high <= 255.0:
        scale = 1.0
    elif high <= 65535.0:
        scale = 255.0 / 65535.0
    else:
        scale = 255.0 / high
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))


def read_image(source: Path | IO[bytes], in_chans: int, name: str = "") -> Image.Image:
    """Read one image file, decoded whole, as ``convert`` gives it.

    Args:
        source: its path, which may be ``ARCHIVE.tar/NAME``, or a stream.
        in_chans: 1 (grey) or 3 (RGB).
        name: what messages call it; by default its path.

    Raises:
        UnreadableImageError: the file is missing, not an image, or cut short.
    """
    try:
        with Image.open(member(source) if isinstance(source, Path) else source) as image:
            image.load()
            return convert(image, in_chans)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(f"cannot read image {name or source}: {reason_for(error, source)}") from error


def image_fault(path: Path | IO[bytes]) -> str | None:
    """Decode a file or stream and return why that fails, or None. A JPEG is decoded small, which reads all of it."""
    try:
        with Image.open(path) as image:
            image.draft(None, (32, 32))
            image.load()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        return reason_for(error, path)
    return None


def reason_for(error: BaseException, source: object) -> str:
    """Why a file could not be read, in a few words without its name."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow knows"
    return str(error).replace(str(source), "").strip(" :'\"") or type(error).__name__
