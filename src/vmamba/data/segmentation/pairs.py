"""Folders of images and masks: the layouts that are known, and which mask belongs to which image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmamba.data.arrays import ARRAY_SUFFIXES
from vmamba.data.files import image_names
from vmamba.data.images import IMAGE_SUFFIXES
from vmamba.errors import DataError

#: How the two folders may be called.
IMAGES = ("images", "image", "imgs", "img", "JPEGImages")
MASKS = ("masks", "mask", "annotations", "annotation", "labels", "label", "SegmentationClass")
#: How the folders of parts may be called, inside those two or above them.
PARTS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
#: What a mask's name may have behind its image's.
ENDINGS = ("", "_mask", "_masks", "_seg", "_label", "_labels")


@dataclass(frozen=True)
class Pair:
    """An image file and its mask's."""

    image: Path
    mask: Path


def find_pairs(root: Path) -> dict[str, list[Pair]]:
    """The pairs under a folder, by part: train, val and test as far as there are such, or all in one, called "".

    Known are ``images/ masks/``; with parts inside, ``images/train/ masks/train/`` and ADE20K's ``images/training/
    annotations/training/``; and with parts above, ``train/images/ train/masks/``. See `IMAGES`, `MASKS` and `PARTS` for
    other names.

    Raises:
        DataError: none of these, a folder without files, or a file without its partner; names some.
    """
    if not root.is_dir():
        raise DataError(f"data_dir {root} {'is a file, not a directory' if root.exists() else 'does not exist'}")
    above = {part: place for part in PARTS if (place := _one_of(root, PARTS[part])) is not None}
    if above and all(_one_of(place, IMAGES) for place in above.values()):
        return {part: _paired(*_both(place)) for part, place in above.items()}
    images, masks = _both(root)
    inside = {part: place for part in PARTS if (place := _one_of(images, PARTS[part])) is not None}
    if not inside:
        return {"": _paired(images, masks)}
    found = {}
    for part, place in inside.items():
        other = _one_of(masks, PARTS[part])
        if other is None:
            raise DataError(f"{place} has no folder of masks beside it: want {masks / place.name}")
        found[part] = _paired(place, other)
    return found


def _one_of(place: Path, names: Sequence[str]) -> Path | None:
    return next((place / name for name in names if (place / name).is_dir()), None)


def _both(place: Path) -> tuple[Path, Path]:
    images, masks = _one_of(place, IMAGES), _one_of(place, MASKS)
    if images is None or masks is None:
        lacking, names = ("images", IMAGES) if images is None else ("masks", MASKS)
        raise DataError(
            f"{place} has no folder of {lacking} ({', '.join(names)}); want images/ and masks/ with files of the same "
            "names, or each with train/ and val/ inside"
        )
    return images, masks


def _files(place: Path) -> dict[str, Path]:
    """The image files in a folder, by their path under it without ending."""
    try:
        names = image_names(str(place), ".", IMAGE_SUFFIXES + ARRAY_SUFFIXES)
    except OSError as error:
        raise DataError(f"cannot list {place}: {error}") from error
    files: dict[str, Path] = {}
    for name in names:
        path = place / Path(*Path(name.decode("utf-8", "surrogateescape")).parts)
        stem = str(path.relative_to(place).with_suffix(""))
        if stem in files:
            raise DataError(f"{files[stem]} and {path} have one name but for the ending; keep one of them")
        files[stem] = path
    if not files:
        raise DataError(f"no images in {place}: no file in it ends in {', '.join(IMAGE_SUFFIXES + ARRAY_SUFFIXES)}")
    return files


def _paired(images: Path, masks: Path) -> list[Pair]:
    left, right = _files(images), _files(masks)
    pairs, alone = [], []
    for stem, image in left.items():
        mask = next((found for end in ENDINGS if (found := right.pop(stem + end, None)) is not None), None)
        if mask is None:
            alone.append(image.name)
        else:
            pairs.append(Pair(image, mask))
    if alone or right:
        said = [f"{len(alone)} image(s) in {images} have no mask in {masks}: {_some(alone)}"] if alone else []
        spare = [path.name for path in right.values()]
        said += [f"{len(spare)} mask(s) in {masks} have no image in {images}: {_some(spare)}"] if spare else []
        raise DataError(f"{'; '.join(said)}. A mask has its image's name (photo1.jpg, photo1.png)")
    return pairs


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
