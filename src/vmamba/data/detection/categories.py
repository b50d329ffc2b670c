"""What objects may be: names, and the numbers that COCO's files give them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Categories:
    """Kinds of objects in the order of the network's labels, which is that of their numbers.

    Attributes:
        names: of each.
        ids: the number of each in COCO's files, ascending; any whole numbers.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]

    def __len__(self) -> int:
        """How many."""
        return len(self.names)

    @classmethod
    def of(cls, rows: Sequence[tuple[int, str]]) -> Categories:
        """From numbers and names, in any order."""
        ordered = sorted(rows)
        return cls(tuple(name for _, name in ordered), tuple(number for number, _ in ordered))

    @property
    def label_of(self) -> Mapping[int, int]:
        """The label of each number."""
        return {number: label for label, number in enumerate(self.ids)}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a weight file."""
        return {"names": list(self.names), "ids": list(self.ids)}


def coco_categories() -> Categories:
    """COCO's 80, numbered from 1 to 90 with gaps."""
    text = (files("vmamba.data.detection") / "coco.csv").read_text(encoding="utf-8")
    return Categories.of([(int(row["id"]), row["name"]) for row in csv.DictReader(text.splitlines())])
