"""Scores and answers of segmentation on the terminal and as pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

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
    from matplotlib.figure import Figure

    columns = min(6, len(answers), math.ceil(math.sqrt(len(answers) * 1.6)))
    rows = math.ceil(len(answers) / columns)
    figure = Figure(
        figsize=(max(4.4, columns * (_SIDE + 0.2) + 0.4), rows * (_SIDE + 0.5) + 0.8), dpi=130, layout="constrained"
    )
    shown = f"{total:,} image{'s' if total != 1 else ''}"
    shown = f"the first {len(answers)} of {shown}" if len(answers) < total else shown
    figure.suptitle(f"{title}\n{shown}", fontsize=9, x=0.01, ha="left", parse_math=False)
    for axes in (every := figure.subplots(rows, columns, squeeze=False).ravel()):
        axes.set_axis_off()
    for axes, answer in zip(every, answers, strict=False):
        axes.imshow(answer.picture())
        name = answer.path.name if len(answer.path.name) <= 30 else f"{answer.path.name[:29]}…"
        largest = sorted(answer.shares.items(), key=lambda item: -item[1])[:3]
        said = ", ".join(f"{word} {share:.0%}" for word, share in largest)
        said = said if len(said) <= 44 else f"{said[:43]}…"
        axes.set_title(f"{name}\n{said}", fontsize=6.5, color="#566270", parse_math=False)
    return figure
