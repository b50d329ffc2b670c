"""Scores and answers of segmentation on the terminal and as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from vmamba.tasks.sheet import picture_sheet, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

    from vmamba.tasks.segmentation.prediction import SegmentedImage
    from vmamba.tasks.segmentation.scores import SegmentationScores

#: With more classes than this only the worst are shown; a JSON file always has all.
MAX_ROWS = 40
#: Classes named in an image's line.
_NAMED = 5
#: Side of a picture on the contact sheet, inches.
_SIDE = 2.0


def score_table(scores: SegmentationScores, part: str) -> Table:
    """A row for each class that occurs."""
    rows = [row for row in scores.classes if row.iou is not None]
    title = f"Each class of the {part} split"
    if len(rows) > MAX_ROWS:
        rows = sorted(rows, key=lambda row: row.iou or 0.0)[:MAX_ROWS]
        title = f"The {len(rows)} worst of {len(scores.classes)} classes, {part} split"
    far = any(row.hd95 is not None for row in rows)
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("class")
    for column in ("IoU", "Acc (sensitivity)", "specificity", "Dice", *(["HD95"] if far else []), "pixels"):
        table.add_column(column, justify="right")
    total = sum(row.pixels for row in scores.classes)
    for row in rows:
        shares = ["–" if v is None else f"{v:.1%}" for v in (row.iou, row.sensitivity, row.specificity, row.dice)]
        distance = ["–" if row.hd95 is None else f"{row.hd95:.1f}"] if far else []
        table.add_row(Text(row.name), *shares, *distance, f"{row.pixels / total:.1%}")
    return table


def print_areas(answers: Sequence[SegmentedImage], console: Console) -> None:
    """Each image with the classes that fill most of it."""
    table = Table.grid(padding=(0, 2))
    for answer in answers:
        largest = sorted(answer.shares.items(), key=lambda item: -item[1])
        said = ", ".join(f"{name} {share:.1%}" for name, share in largest[:_NAMED])
        more = f" and {len(largest) - _NAMED} more" if len(largest) > _NAMED else ""
        table.add_row(Text(str(answer.path)), Text(said + more))
    console.print(table)


def areas_sheet(answers: Sequence[SegmentedImage], total: int, title: str) -> Figure:
    """A cell for each image: its overlay, its name, and what fills most of it."""

    def said(answer: SegmentedImage) -> str:
        largest = sorted(answer.shares.items(), key=lambda item: -item[1])[:3]
        return shortened(", ".join(f"{word} {share:.0%}" for word, share in largest), 44)

    return picture_sheet(answers, total, title, said, cell=(_SIDE + 0.2, _SIDE + 0.5), name_length=30)
