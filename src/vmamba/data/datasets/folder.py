"""Any tree of class folders, checked before it is used."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from vmamba.data.config import DataConfig, preprocessing_for
from vmamba.data.images import IMAGE_SUFFIXES, image_fault, mode_of, read_image
from vmamba.data.splits import FRACTIONS, stratified_split
from vmamba.data.types import Splits
from vmamba.errors import DataError

_VAL_NAMES = ("val", "valid", "validation")
#: Share of train/ that is kept for validation where there is no val/.
VAL_FRACTION = 0.2


class FileImages:
    """Image files with their labels, read when asked for."""

    def __init__(self, root: Path, paths: Sequence[Path], targets: Sequence[int], in_chans: int = 3) -> None:
        self.root = root
        self.paths = list(paths)
        self.targets: Sequence[int] = list(targets)
        self.in_chans = in_chans

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return read_image(self.paths[index], self.in_chans), self.targets[index]

    def subset(self, indices: Sequence[int]) -> FileImages:
        """The files at ``indices``, in that order."""
        return FileImages(
            self.root, [self.paths[i] for i in indices], [self.targets[i] for i in indices], self.in_chans
        )

    def fingerprint(self) -> str:
        """From the files' names, sizes and labels: reading a million images to resume would be too slow."""
        digest = hashlib.sha256()
        for path, target in zip(self.paths, self.targets, strict=True):
            size = path.stat().st_size if path.exists() else -1
            digest.update(f"{path.relative_to(self.root).as_posix()}\0{size}\0{target}\n".encode())
        return digest.hexdigest()[:16]


def load(config: DataConfig) -> Splits:
    """A tree in one of three forms; classes are folder names in sorted order.

    ``train/ val/ test/`` (or without ``test/``): used as they are. ``train/`` without ``val/``: a fifth of train,
    by class, is kept for validation. Class folders directly under ``data_dir``: split 60/20/20, by class.
    """
    root = config.data_dir
    assert root is not None  # DataConfig sees to it
    if not root.is_dir():
        raise DataError(f"data_dir {root} {'is a file, not a directory' if root.exists() else 'does not exist'}")
    faults: list[str] = []
    in_chans = config.in_chans or config.defaults.in_chans
    mode_of(in_chans)

    def read(place: Path) -> tuple[FileImages, tuple[str, ...]]:
        images, classes, bad = _read_tree(root, place, in_chans, config)
        faults.extend(bad)
        return images, classes

    train_dir = root / "train"
    if not train_dir.is_dir():
        everything, classes = read(root)
        train, val, test = _split(everything, FRACTIONS, classes, config.seed)
        return Splits(train, val, test, classes, preprocessing_for(config), tuple(faults))

    train, classes = read(train_dir)
    named = {"val": next((root / n for n in _VAL_NAMES if (root / n).is_dir()), None)}
    named["test"] = root / "test" if (root / "test").is_dir() else None
    found: dict[str, FileImages] = {}
    for name, place in named.items():
        if place is not None:
            found[name], others = read(place)
            if others != classes:
                raise DataError(_differ(train_dir, classes, place, others))
    if "val" not in found:
        train, found["val"] = _split(train, (1 - VAL_FRACTION, VAL_FRACTION), classes, config.seed)
    return Splits(train, found["val"], found.get("test"), classes, preprocessing_for(config), tuple(faults))


def _split(images: FileImages, fractions: Sequence[float], classes: Sequence[str], seed: int) -> tuple[FileImages, ...]:
    counts = Counter(images.targets)
    for label, name in enumerate(classes):
        count = counts[label]
        if count < len(fractions):
            raise DataError(
                f"class folder '{name}' under {images.root} has {count} image(s), too few to split into "
                f"{len(fractions)} parts; add images, or lay out train/ val/ test/ folders yourself"
            )
    return tuple(images.subset(part.tolist()) for part in stratified_split(images.targets, fractions, seed))


def _differ(train: Path, classes: tuple[str, ...], place: Path, others: tuple[str, ...]) -> str:
    missing, extra = sorted(set(classes) - set(others)), sorted(set(others) - set(classes))
    said = [f"{place} lacks {missing[:10]}"] if missing else []
    said += [f"{place} has {extra[:10]}, which {train} lacks"] if extra else []
    return f"{train} and {place} hold different classes: {'; '.join(said)}"


def _visible(place: Path) -> list[os.DirEntry[str]]:
    with os.scandir(place) as entries:
        return sorted((e for e in entries if not e.name.startswith(".") and e.name != "__MACOSX"), key=lambda e: e.name)


def _image_files(place: Path) -> list[Path]:
    found: list[Path] = []
    for entry in _visible(place):
        if entry.is_dir():
            found += _image_files(Path(entry.path))
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            found.append(Path(entry.path))
    return found


def _read_tree(
    root: Path, place: Path, in_chans: int, config: DataConfig
) -> tuple[FileImages, tuple[str, ...], list[str]]:
    try:
        classes = tuple(entry.name for entry in _visible(place) if entry.is_dir())
        files = {name: _image_files(place / name) for name in classes}
    except OSError as error:
        raise DataError(f"cannot list {place}: {error}") from error
    if not classes:
        loose = " (there are images, but they must lie in one folder for each class)" if _image_files(place) else ""
        raise DataError(f"no class folders in {place}{loose}")
    kinds = ", ".join(IMAGE_SUFFIXES)
    if not any(files.values()):
        raise DataError(f"no images in {place}: none of its {len(classes)} folders holds a file that ends in {kinds}")
    empty = [name for name, paths in files.items() if not paths]
    if empty:
        raise DataError(
            f"class folder(s) without an image in {place}: {empty[:10]}; fill or remove them (read: {kinds})"
        )
    if len(classes) < 2:
        inner = place / classes[0]
        mend = (
            f"; if its folders are the classes, give data_dir={inner}" if any(map(Path.is_dir, inner.iterdir())) else ""
        )
        raise DataError(f"only one class folder, '{classes[0]}', in {place}; classification needs two or more{mend}")

    paths = [path for name in classes for path in files[name]]
    targets = [label for label, name in enumerate(classes) for _ in files[name]]
    faults = _faults(paths) if config.verify else {}
    if faults and config.unreadable == "stop":
        shown = "; ".join(f"{path}: {why}" for path, why in list(faults.items())[:5])
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise DataError(
            f'{len(faults)} unreadable image(s): {shown}{more}. Remove them, or leave them out with unreadable="skip"'
        )
    good = [(path, target) for path, target in zip(paths, targets, strict=True) if path not in faults]
    left = {target for _, target in good}
    for label, name in enumerate(classes):
        if label not in left:
            raise DataError(f"class folder '{name}' in {place} has no readable image")
    images = FileImages(root, [p for p, _ in good], [t for _, t in good], in_chans)
    return images, classes, [str(path) for path in faults]


def _faults(paths: Sequence[Path]) -> dict[Path, str]:
    # Decoding releases the interpreter lock, so threads are enough.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {path: why for path, why in zip(paths, pool.map(image_fault, paths), strict=True) if why is not None}
