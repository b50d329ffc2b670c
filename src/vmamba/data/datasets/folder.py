"""Any tree of class folders, checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vmamba.data.config import DataConfig, preprocessing_for
from vmamba.data.reading.file_images import FileImages, fault_finder, find_faults, measured_channels, suffixes_for
from vmamba.data.reading.files import FileList, image_names, list_folders, visible
from vmamba.data.reading.images import IMAGE_SUFFIXES
from vmamba.data.splits import FRACTIONS, stratified_split
from vmamba.data.types import Splits
from vmamba.errors import DataError

_VAL_NAMES = ("val", "valid", "validation")
#: Share of train/ that is kept for validation where there is no val/.
VAL_FRACTION = 0.2


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

    def read(place: Path) -> tuple[FileImages, tuple[str, ...]]:
        images, classes, bad = _read_tree(root, place, in_chans, config)
        faults.extend(bad)
        return images, classes

    train_dir = root / "train"
    if not train_dir.is_dir():
        everything, classes = read(root)
        train, val, test = _split(everything, FRACTIONS, classes, config.seed)
        return _splits(config, classes, faults, train, val, test)

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
    return _splits(config, classes, faults, train, found["val"], found.get("test"))


def _splits(
    config: DataConfig,
    classes: tuple[str, ...],
    left_out: Sequence[str],
    train: FileImages,
    val: FileImages,
    test: FileImages | None,
) -> Splits:
    logs = tuple(part.faults for part in (train, val, test) if part is not None)
    preprocessing = preprocessing_for(config, measured=lambda: measured_channels(train))
    return Splits(train, val, test, classes, preprocessing, tuple(left_out), logs)


def _split(images: FileImages, fractions: Sequence[float], classes: Sequence[str], seed: int) -> tuple[FileImages, ...]:
    counts = np.bincount(images.targets, minlength=len(classes)).tolist()
    for name, count in zip(classes, counts, strict=True):
        if count < len(fractions):
            raise DataError(
                f"class folder '{name}' under {images.files.root} has {count} image(s), too few to split into "
                f"{len(fractions)} parts; add images, or lay out train/ val/ test/ folders yourself"
            )
    return tuple(images.subset(part) for part in stratified_split(images.targets, fractions, seed))


def _differ(train: Path, classes: tuple[str, ...], place: Path, others: tuple[str, ...]) -> str:
    missing, extra = sorted(set(classes) - set(others)), sorted(set(others) - set(classes))
    said = [f"{place} lacks {missing[:10]}"] if missing else []
    said += [f"{place} has {extra[:10]}, which {train} lacks"] if extra else []
    return f"{train} and {place} hold different classes: {'; '.join(said)}"


def _read_tree(
    root: Path, place: Path, in_chans: int, config: DataConfig
) -> tuple[FileImages, tuple[str, ...], list[str]]:
    try:
        classes = tuple(entry.name for entry in visible(place) if entry.is_dir())
        under = "" if place == root else f"{place.name}/"
        files, counts = list_folders(root, [under + name for name in classes], suffixes_for(config))
        _check_classes(place, classes, dict(zip(classes, counts.tolist(), strict=True)))
    except OSError as error:
        raise DataError(f"cannot list {place}: {error}") from error

    targets = np.repeat(np.arange(len(classes)), counts)
    faults = find_faults(files, str(config.verify), fault_finder(config))
    if faults and config.unreadable == "stop":
        raise DataError(_refusal(files, faults))
    good = np.setdiff1d(np.arange(len(files)), list(faults))
    left = np.bincount(targets[good], minlength=len(classes)).tolist()
    for name, count in zip(classes, left, strict=True):
        if not count:
            raise DataError(f"class folder '{name}' in {place} has no readable image")
    images = FileImages(files.take(good), targets[good], in_chans, config.unreadable == "skip", config.full_depth)
    return images, classes, [str(files[index]) for index in faults]


def _check_classes(place: Path, classes: Sequence[str], counts: Mapping[str, int]) -> None:
    if not classes:
        loose = " (there are images, but they must lie in one folder for each class)" if _holds_images(place) else ""
        raise DataError(f"no class folders in {place}{loose}")
    kinds = ", ".join(IMAGE_SUFFIXES)
    if not any(counts.values()):
        raise DataError(f"no images in {place}: none of its {len(classes)} folders holds a file that ends in {kinds}")
    empty = [name for name, count in counts.items() if not count]
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


def _holds_images(place: Path) -> bool:
    return bool(image_names(str(place), ""))


def _refusal(files: FileList, faults: Mapping[int, str]) -> str:
    shown = "; ".join(f"{files[index]}: {why}" for index, why in list(faults.items())[:5])
    more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
    return f'{len(faults)} unreadable image(s): {shown}{more}. Remove them, or leave them out with unreadable="skip"'
