"""Fashion-MNIST (arXiv 1708.07747): a directory of IDX files, gzipped or not, or torchvision's own download."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vmamba.data.config import DataConfig, preprocessing_for
from vmamba.data.splits import stratified_split
from vmamba.data.types import ArrayImages, Splits
from vmamba.errors import DataError

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

#: Share of the 60,000 training images that is kept for validation.
VAL_FRACTION = 1 / 12

#: Where Debian's package dataset-fashion-mnist puts the files.
DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")

_FILES = {"train": "train", "test": "t10k"}


def load(config: DataConfig) -> Splits:
    """55,000 training images, 5,000 for validation split off them by class, and the 10,000 of the published test set.

    ``data_dir`` is a directory that holds the four IDX files (``train-images-idx3-ubyte`` and so on, with or without
    ``.gz``), or one that torchvision laid out. Without it: Debian's package if installed, else torchvision's
    download into ``~/.cache/vmamba``.
    """
    place = config.data_dir or (DEBIAN_DIR if DEBIAN_DIR.is_dir() else None)
    read = _read_directory(_idx_directory(place)) if place is not None else _download
    train, test = read("train"), read("test")
    for name, images in (("train", train), ("test", test)):
        bad = np.unique(images.targets[images.targets >= len(CLASSES)]).tolist()
        if bad:
            raise DataError(f"Fashion-MNIST {name} labels go from 0 to {len(CLASSES) - 1}, found {bad[:5]} in {place}")
    kept, held = stratified_split(train.targets, (1 - VAL_FRACTION, VAL_FRACTION), config.seed)
    return Splits(train.subset(kept), train.subset(held), test, CLASSES, preprocessing_for(config))


def _idx_directory(data_dir: Path) -> Path:
    if not data_dir.is_dir():
        raise DataError(f"data_dir {data_dir} is not a directory; give one that holds train-images-idx3-ubyte[.gz] …")
    for place in (data_dir, data_dir / "FashionMNIST" / "raw", data_dir / "raw"):
        if _find(place, "train-images-idx3-ubyte") is not None:
            return place
    raise DataError(f"no train-images-idx3-ubyte or train-images-idx3-ubyte.gz in {data_dir} or its FashionMNIST/raw")


def _find(place: Path, name: str) -> Path | None:
    return next((p for p in (place / name, place / f"{name}.gz") if p.is_file()), None)


def _read_directory(place: Path) -> Callable[[str], ArrayImages]:
    def read(split: str) -> ArrayImages:
        arrays = []
        for name in (f"{_FILES[split]}-images-idx3-ubyte", f"{_FILES[split]}-labels-idx1-ubyte"):
            path = _find(place, name)
            if path is None:
                raise DataError(f"no {name} or {name}.gz in {place}")
            arrays.append(read_idx(path))
        if arrays[0].ndim != 3 or arrays[1].ndim != 1 or len(arrays[0]) != len(arrays[1]) or not len(arrays[0]):
            shapes = ", ".join(str(a.shape) for a in arrays)
            raise DataError(f"{split} files in {place} hold arrays {shapes}; want images (m, h, w) and labels (m,)")
        return ArrayImages(arrays[0], arrays[1].tolist())

    return read


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read a file of unsigned bytes in the IDX format, gzipped or not.

    Raises:
        DataError: it cannot be read, is cut short or is not IDX.
    """
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; fetch it again") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or not 1 <= data[3] <= 4 or len(data) < 4 + 4 * data[3]:
        raise DataError(f"{path} is not an IDX file of bytes (it begins with {data[:4].hex() or 'nothing'})")
    header = 4 + 4 * data[3]
    shape = struct.unpack(f">{data[3]}I", data[4:header])
    if len(data) - header != math.prod(shape):
        raise DataError(f"{path} holds {len(data) - header} bytes, its header says {math.prod(shape)}; fetch it again")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _download(split: str) -> ArrayImages:
    from torchvision.datasets import FashionMNIST

    root = Path.home() / ".cache" / "vmamba"
    try:
        data = FashionMNIST(str(root), train=split == "train", download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"Fashion-MNIST could not be downloaded to {root} ({error}); give data_dir: a directory with its IDX "
            "files, such as that of Debian's package dataset-fashion-mnist"
        ) from error
    return ArrayImages(data.data.numpy(), data.targets.tolist())
