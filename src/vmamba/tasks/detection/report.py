"""Scores and answers of detection on the terminal and as pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from vmamba.tasks.sheet import picture_sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

    from vmamba.tasks.detection.prediction import DetectedImage
    from vmamba.tasks.detection.scores import DetectionScores

#: With more categories than this only the worst are shown; a JSON file always has all.
MAX_ROWS = 40
_TITLES = {
    "ap": "AP, IoU 0.50 to 0.95",
    "ap50": "AP, IoU 0.50",
    "ap75": "AP, IoU 0.75",
    "ap_small": "AP, below 32² pixels",
    "ap_medium": "AP, 32² to 96² pixels",
    "ap_large": "AP, above 96² pixels",
    "ar_1": "recall, 1 detection",
    "ar_10": "recall, 10 detections",
    "ar_100": "recall, 100 detections",
}


def summary_table(scores: DetectionScores, part: str) -> Table:
    """COCO's figures of boxes and masks."""
    table = _table(f"COCO's figures, {part} split")
    for column in ("", "boxes", "masks"):
        table.add_column(column, justify="right" if column else "left")
    for name, title in _TITLES.items():
        table.add_row(title, _share(scores.box[name]), _share(scores.mask[name]))
    return table


def category_table(scores: DetectionScores, part: str) -> Table:
    """A row for each category that occurs."""
    rows = [row for row in scores.categories if row.box_ap is not None]
    title = f"Each category, {part} split"
    if len(rows) > MAX_ROWS:
        rows = sorted(rows, key=lambda row: row.box_ap or 0.0)[:MAX_ROWS]
        title = f"The {len(rows)} worst of {len(scores.categories)} categories, {part} split"
    table = _table(title)
    for column in ("category", "box AP", "mask AP", "objects"):
        table.add_column(column, justify="left" if column == "category" else "right")
    for row in rows:
        table.add_row(Text(row.name), _share(row.box_ap), _share(row.mask_ap), f"{row.objects:,}")
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def said(answer: DetectedImage, most: int = 5) -> str:
    """What was found in an image, in a line."""
    counts = Counter(answer.categories.names[one.label] for one in answer.objects)
    words = [f"{count} {name}" for name, count in counts.most_common(most)]
    more = len(counts) - len(words)
    return ", ".join(words) + (f" and {more} more" if more else "") if words else "nothing"


def print_objects(answers: Sequence[DetectedImage], console: Console) -> None:
    """Each image with what was found in it."""
    table = Table.grid(padding=(0, 2))
    for answer in answers:
        table.add_row(Text(str(answer.path)), Text(said(answer)))
    console.print(table)


def objects_sheet(answers: Sequence[DetectedImage], total: int, title: str) -> Figure:
    """A cell for each image: its objects drawn in, its name, and what was found."""
    return picture_sheet(answers, total, title, lambda answer: said(answer, 3), cell=(2.4, 2.7), name_length=34)


def precision_figure(scores: DetectionScores, title: str) -> Figure:
    """Average precision of each category, boxes and masks, the best first."""
    from matplotlib.figure import Figure

    rows = sorted((row for row in scores.categories if row.box_ap is not None), key=lambda row: -(row.box_ap or 0.0))
    figure = Figure(figsize=(7, 1.2 + 0.3 * max(len(rows), 1)), dpi=130, layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))
    axes.barh([p - 0.2 for p in places], [row.box_ap or 0.0 for row in rows], 0.4, label="boxes", color="#2f6fb0")
    axes.barh([p + 0.2 for p in places], [row.mask_ap or 0.0 for row in rows], 0.4, label="masks", color="#e08a1e")
    axes.set_yticks(list(places), [row.name for row in rows], parse_math=False)
    axes.set(xlim=(0, 1), xlabel="average precision, IoU 0.50 to 0.95")
    axes.invert_yaxis()
    axes.set_title(title, fontsize=9, loc="left", parse_math=False)
    axes.legend(loc="lower right")
    return figure
