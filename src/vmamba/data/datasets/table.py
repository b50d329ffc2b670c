"""Labels from a CSV file: one or several for each image, with or without a column that says which part it is in."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vmamba.data.config import DataConfig, preprocessing_for
from vmamba.data.reading.file_images import FileImages, fault_finder, find_faults, measured_channels
from vmamba.data.reading.files import FileList
from vmamba.data.splits import FRACTIONS, stratified_split
from vmamba.data.types import Splits
from vmamba.errors import DataError, nearest

_FILE = ("file", "filename", "path", "image")
_LABEL = ("label", "labels", "class")
_SPLIT = "split"
#: What the split column, or the first folder of a file's name, may say.
_PARTS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip
#: Between several labels in one cell.
_SEPARATORS = re.compile(r"\s*[;|]\s*")
#: Share of the training images that is kept for validation where a table names none.
VAL_FRACTION = 0.2


@dataclass(frozen=True)
class LabelTable:
    """What a CSV file says.

    Attributes:
        files: names under the folder of images, each once, in the order in which they first occur.
        classes: names, sorted; or the columns that stand for them, as they come.
        targets: class indices ``(n,)``; or ``(n, classes)``, 1 where a label holds, if an image may have several.
        parts: train, val or test for each file; empty if nothing says so.
    """

    files: tuple[str, ...]
    classes: tuple[str, ...]
    targets: npt.NDArray[np.integer[Any]]
    parts: tuple[str, ...]


def load(config: DataConfig) -> Splits:
    """The images in ``data_dir`` that ``labels`` names.

    Parts come from the column ``split``, or from the first folder of the names if each is train, val or test. Where
    there is no val, a fifth of train is kept for it; where nothing says anything, all is split 60/20/20. Images of one
    label are split class by class, others at random.
    """
    root, place = config.data_dir, config.labels
    assert root is not None  # DataConfig sees to it
    assert place is not None
    if not root.is_dir():
        raise DataError(f"data_dir {root} {'is a file, not a directory' if root.exists() else 'does not exist'}")
    table = read_table(place)
    files = FileList.of(root, (name.encode("utf-8", "surrogateescape") for name in table.files))
    faults = find_faults(files, str(config.verify), fault_finder(config))
    if faults and config.unreadable == "stop":
        index, why = next(iter(faults.items()))
        raise DataError(
            f"{len(faults)} of the files in {place} cannot be read, the first: {files[index]}: {why}; names count from "
            f'data_dir={root}. Mend them, or leave them out with unreadable="skip"'
        )
    good = np.setdiff1d(np.arange(len(files)), list(faults))
    skip = config.unreadable == "skip"
    in_chans = config.in_chans or config.defaults.in_chans
    images = FileImages(files.take(good), table.targets[good], in_chans, skip, config.full_depth)
    parts = _divide(images, [table.parts[index] for index in good] if table.parts else [], config.seed, place)
    train, val, test = (None if part is None else images.subset(part) for part in parts)
    if train is None or val is None:
        raise DataError(f"{place} has no image to train on: its split column says {sorted(set(table.parts))}")
    logs = tuple(part.faults for part in (train, val, test) if part is not None)
    left_out = tuple(str(files[index]) for index in faults)
    preprocessing = preprocessing_for(config, measured=lambda: measured_channels(train))
    return Splits(train, val, test, table.classes, preprocessing, left_out, logs)


_Part = npt.NDArray[np.int64]


def _divide(
    images: FileImages, parts: Sequence[str], seed: int, place: Path
) -> tuple[_Part | None, _Part | None, _Part | None]:
    if not parts:
        train, val, test = _split(images.targets, FRACTIONS, seed, place)
        return train, val, test
    found = {name: np.flatnonzero(np.array(parts) == name) for name in ("train", "val", "test")}
    if not len(found["train"]):
        return None, None, None
    if not len(found["val"]):
        train = found["train"]
        kept, held = _split(images.targets[train], (1 - VAL_FRACTION, VAL_FRACTION), seed, place)
        found |= {"train": train[kept], "val": train[held]}
    return found["train"], found["val"], found["test"] if len(found["test"]) else None


def _split(
    targets: npt.NDArray[np.integer[Any]], fractions: Sequence[float], seed: int, place: Path
) -> tuple[_Part, ...]:
    if len(targets) < len(fractions):
        raise DataError(f"{place} has {len(targets)} image(s), too few for {len(fractions)} parts")
    if targets.ndim == 1:
        return stratified_split(targets, fractions, seed)
    return stratified_split(np.zeros(len(targets), np.int64), fractions, seed)


def read_table(path: Path) -> LabelTable:
    """Read a CSV file with a header.

    Its columns are ``file``, and ``label`` (one, or several with ``;`` or ``|`` between them; a file may also stand in
    several lines), or instead of that one column of 0 and 1 for each class; and maybe ``split``.

    Raises:
        DataError: it cannot be read, or is not such a table; names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text)
            rows = [(reader.line_num, row) for row in reader]
            header = list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read labels {path}: {error}; want a CSV file in UTF-8") from error
    file = _column(header, _FILE)
    if file is None or len(header) < 2:
        near = nearest("file", header)
        raise DataError(
            f"labels {path} has columns {header}: want 'file', and 'label' or a column of 0 and 1 for each class{near}"
        )
    if not rows:
        raise DataError(f"labels {path} has a header but no line")
    for line, row in rows:
        if None in row or None in row.values() or not row[file]:
            raise DataError(f"{path}, line {line}: {len(header)} cells wanted, one for each of {header}")
    names = list(dict.fromkeys(row[file] for _, row in rows))
    label = _column(header, _LABEL)
    of = {name: index for index, name in enumerate(names)}
    if label is not None:
        classes, targets = _from_words(path, rows, file, label, of)
    else:
        columns = [name for name in header if name not in (file, _SPLIT)]
        classes, targets = _from_columns(path, rows, file, columns, of)
    if len(classes) < 1 + (targets.ndim == 1):
        raise DataError(f"labels {path} knows the classes {list(classes)} alone: there is nothing to tell apart")
    return LabelTable(tuple(names), classes, targets, _parts(path, rows, file, header, names))


def _column(header: Sequence[str], known: Sequence[str]) -> str | None:
    return next((name for name in header if name.strip().lower() in known), None)


_Rows = Sequence[tuple[int, Mapping[str, str]]]
_Labels = tuple[tuple[str, ...], npt.NDArray[np.integer[Any]]]


def _from_words(path: Path, rows: _Rows, file: str, label: str, of: Mapping[str, int]) -> _Labels:
    given: list[tuple[int, str]] = []
    for line, row in rows:
        words = [word for word in _SEPARATORS.split(row[label].strip()) if word]
        if not words and label.strip().lower() != "labels":
            raise DataError(
                f"{path}, line {line}: {row[file]} has no label; leave the line out, or call the column labels"
            )
        given += [(of[row[file]], word) for word in words]
    names = sorted(
        {word for _, word in given}, key=lambda word: (not word.isdecimal(), int(word) if word.isdecimal() else 0, word)
    )
    place = {word: index for index, word in enumerate(names)}
    pairs = np.array([(index, place[word]) for index, word in given], np.int64).reshape(-1, 2)
    if label.strip().lower() != "labels" and len(pairs) == len(of) == len(set(pairs[:, 0].tolist())):
        targets = np.empty(len(of), np.int64)
        targets[pairs[:, 0]] = pairs[:, 1]
        return tuple(names), targets
    several = np.zeros((len(of), len(names)), np.int8)
    several[pairs[:, 0], pairs[:, 1]] = 1
    return tuple(names), several


def _in_order(word: str) -> tuple[bool, int, str]:
    """Numbers by their size, before words."""
    number = word.isascii() and word.isdecimal()
    return not number, int(word) if number else 0, word


def _from_columns(path: Path, rows: _Rows, file: str, columns: Sequence[str], of: Mapping[str, int]) -> _Labels:
    targets = np.zeros((len(of), len(columns)), np.int8)
    for line, row in rows:
        for place, name in enumerate(columns):
            if row[name].strip() not in ("0", "1"):
                raise DataError(
                    f"{path}, line {line}: column {name!r} holds {row[name]!r}; want 0 or 1, since without a column "
                    "'label' each column is a class"
                )
            targets[of[row[file]], place] |= row[name].strip() == "1"
    return tuple(columns), targets


def _parts(path: Path, rows: _Rows, file: str, header: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    if _SPLIT not in header:
        first = [_PARTS.get(name.replace("\\", "/").partition("/")[0]) for name in names]
        return tuple(part for part in first if part is not None) if None not in first else ()
    said: dict[str, str] = {}
    for line, row in rows:
        part = _PARTS.get(row[_SPLIT].strip().lower())
        if part is None:
            raise DataError(f"{path}, line {line}: split is {row[_SPLIT]!r}; want train, val or test")
        if said.setdefault(row[file], part) != part:
            raise DataError(f"{path}, line {line}: {row[file]} is in {part} here, in {said[row[file]]} before")
    return tuple(said[name] for name in names)
