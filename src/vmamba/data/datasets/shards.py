"""Tar archives in webdataset's layout: ``train-*.tar``, ``val-*.tar``, ``test-*.tar`` with ``KEY.jpg`` and ``KEY.cls``.

They are indexed, not streamed. An uncompressed archive can be read at any byte, so that a table of places makes one set
of all archives, which has a length. It is shuffled as a whole; an epoch is every image exactly once for any number of
loader and training processes; a measurement counts none twice; a place in an epoch is a number, to go on from. Streams
give up each of these for reading in one go, which matters where archives come from afar: put them on a disk first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from vmamba.data.config import DataConfig, preprocessing_for
from vmamba.data.reading.file_images import FileImages, find_faults
from vmamba.data.reading.files import FileList
from vmamba.data.reading.images import IMAGE_SUFFIXES, mode_of
from vmamba.data.reading.tar_index import Place, index_tar, read_bytes
from vmamba.data.splits import stratified_split
from vmamba.data.types import Splits
from vmamba.errors import DataError

#: The part that a name begins with.
_NAME = re.compile(r"(train|val|valid|validation|test)(?:[-_.].*)?\.tar", re.IGNORECASE)
_PART = {"valid": "val", "validation": "val"}
#: Share of train that is kept for validation where there is no val.
VAL_FRACTION = 0.2
#: A file with a class's name in each line, in the order of the numbers in ``.cls``.
CLASSES = "classes.txt"


class PackedFiles(FileList):
    """Files within archives: each name is ``ARCHIVE.tar/NAME``, and beside it stand the place and the size."""

    def __init__(self, names: FileList, archives: Sequence[str], places: npt.NDArray[np.int64]) -> None:
        """``places (n, 3)``: archive, offset, size."""
        super().__init__(names.root, names._text, names._starts, names._ends)
        self.archives = tuple(archives)
        self.places = places

    def take(self, indices: npt.NDArray[np.int64]) -> PackedFiles:
        """The files at ``indices``, in that order."""
        return PackedFiles(super().take(indices), self.archives, self.places[indices])

    def source(self, index: int) -> Any:
        """A file's bytes."""
        archive, offset, size = self.places[index].tolist()
        return read_bytes(self.root / self.archives[archive], offset, size)

    def size(self, index: int) -> int:
        """A file's size in bytes."""
        return int(self.places[index, 2])


def load(config: DataConfig) -> Splits:
    """The archives in ``data_dir``, by the part that their names begin with; without val, a fifth of train is kept."""
    root = config.data_dir
    assert root is not None  # DataConfig sees to it
    if not root.is_dir():
        raise DataError(f"data_dir {root} {'is a file, not a directory' if root.exists() else 'does not exist'}")
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for name in sorted(path.name for path in root.iterdir() if path.is_file()):
        if match := _NAME.fullmatch(name):
            part = match[1].lower()
            parts[_PART.get(part, part)].append(name)
    if not parts["train"]:
        raise DataError(f"no train-*.tar in {root}; want train-*.tar, val-*.tar and maybe test-*.tar")
    in_chans = config.in_chans or config.defaults.in_chans
    mode_of(in_chans)
    samples = {part: _Samples(root, names) for part, names in parts.items() if names}
    classes, number = _classes(root, samples["train"])
    images: dict[str, FileImages] = {}
    left_out: list[str] = []
    for part, found in samples.items():
        targets = found.targets(number, len(classes))
        faults = find_faults(found.files, str(config.verify))
        if faults and config.unreadable == "stop":
            index, why = next(iter(faults.items()))
            raise DataError(
                f"{len(faults)} unreadable image(s), the first: {found.files[index]}: {why}. Write the archive anew, "
                'or leave them out with unreadable="skip"'
            )
        good = np.setdiff1d(np.arange(len(found.files)), list(faults))
        left_out += [str(found.files[index]) for index in faults]
        images[part] = FileImages(found.files.take(good), targets[good], in_chans, config.unreadable == "skip")
    if "val" not in images:
        train = images["train"]
        by = train.targets if train.targets.ndim == 1 else np.zeros(len(train), np.int64)
        kept, held = stratified_split(by, (1 - VAL_FRACTION, VAL_FRACTION), config.seed)
        images |= {"train": train.subset(kept), "val": train.subset(held)}
    logs = tuple(part.faults for part in images.values())
    preprocessing = preprocessing_for(config)
    return Splits(images["train"], images["val"], images.get("test"), classes, preprocessing, tuple(left_out), logs)


class _Samples:
    """The images of some archives, and what their ``.cls`` or ``.json`` says of each."""

    def __init__(self, root: Path, archives: Sequence[str]) -> None:
        names: list[bytes] = []
        places: list[tuple[int, int, int]] = []
        self.labels: list[Any] = []
        for number, archive in enumerate(archives):
            for name, place, label in _samples(root / archive):
                names.append(f"{archive}/{name}".encode("utf-8", "surrogateescape"))
                places.append((number, *place))
                self.labels.append(label)
        self.files = PackedFiles(FileList.of(root, names), archives, np.array(places, np.int64).reshape(-1, 3))

    def targets(self, number: Callable[[Any], int], classes: int) -> npt.NDArray[np.integer[Any]]:
        """Class indices ``(n,)``, or where labels are lists ``(n, classes)`` of 0 and 1."""
        if not any(isinstance(label, list) for label in self.labels):
            return np.array([number(label) for label in self.labels], np.int64)
        targets = np.zeros((len(self.labels), classes), np.int8)
        for row, label in zip(targets, self.labels, strict=True):
            row[[number(one) for one in (label if isinstance(label, list) else [label])]] = 1
        return targets


def _samples(archive: Path) -> list[tuple[str, Place, Any]]:
    """The images of one archive in order, each with its label; files of one sample share the name before the dot."""
    grouped: dict[str, dict[str, tuple[str, Place]]] = {}
    for name, place in index_tar(archive).items():
        path = PurePosixPath(name)
        key, _, kind = path.name.partition(".")
        grouped.setdefault(str(path.with_name(key)), {})[f".{kind.lower()}"] = (name, place)
    found = []
    with archive.open("rb") as file:
        for key, kinds in grouped.items():
            images = [kind for kind in kinds if kind in IMAGE_SUFFIXES]
            if not images:
                raise DataError(f"{archive}: {key} has {', '.join(kinds)}, but no image ({', '.join(IMAGE_SUFFIXES)})")
            said = next((kind for kind in (".cls", ".json") if kind in kinds), None)
            if said is None:
                raise DataError(f"{archive}: {key} has {', '.join(kinds)}, but neither .cls nor .json with its label")
            name, place = kinds[said]
            file.seek(place.offset)
            found.append((*kinds[images[0]], _label(file.read(place.size), said, f"{archive}/{name}")))
    return found


def _label(data: bytes, kind: str, name: str) -> Any:
    """A number, a word, or a list of these."""
    try:
        text = data.decode().strip()
        if kind == ".cls":
            return int(text) if text.lstrip("-").isdecimal() else text
        values = json.loads(text)
        return values["labels"] if "labels" in values else values["label"]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{name} is no label ({error!r}); want a number or a word, in JSON as label or labels"
        ) from error


def _classes(root: Path, train: _Samples) -> tuple[tuple[str, ...], Callable[[Any], int]]:
    """The classes' names, and what turns a label into an index."""
    every: set[Any] = set()
    for label in train.labels:
        every.update(label if isinstance(label, list) else [label])
    numbers = all(isinstance(label, int) for label in every)
    known = root / CLASSES
    if known.is_file():
        names = tuple(line.strip() for line in known.read_text(encoding="utf-8").splitlines() if line.strip())
    elif numbers:
        names = tuple(map(str, range(max(every, default=-1) + 1)))
    else:
        names = tuple(sorted(map(str, every)))
    if len(names) < 2:
        raise DataError(f"the train archives in {root} know the classes {list(names)} alone; want two or more")
    place = {name: index for index, name in enumerate(names)}

    def number(label: Any) -> int:
        index = label if numbers and isinstance(label, int) else place.get(str(label), -1)
        if not 0 <= index < len(names):
            raise DataError(
                f"an image in {root} has the label {label!r}, but there are {len(names)} classes "
                f"({', '.join(names[:10])}…); mend it, or name all classes in {known}"
            )
        return int(index)

    return names, number
