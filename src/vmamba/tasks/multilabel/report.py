"""Several labels an image on the terminal and as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vmamba.tasks.multilabel.scores import LabelScores

#: With more labels than this only the worst are shown; a JSON file always has all.
MAX_ROWS = 40


def score_table(scores: LabelScores, part: str) -> Table:
    """A row for each label."""
    rows = scores.labels
    title = f"Each label of the {part} split"
    if len(rows) > MAX_ROWS:
        rows = tuple(sorted((row for row in rows if row.images), key=lambda row: row.average_precision or 0.0))
        rows = rows[:MAX_ROWS]
        title = f"The {len(rows)} worst of {len(scores.labels)} labels, {part} split"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("label")
    for column in ("AP", "AUROC", "F1", "at threshold", "images"):
        table.add_column(column, justify="right")
    for row in rows:
        precision = "–" if row.average_precision is None else f"{row.average_precision:.1%}"
        auroc = "–" if row.auroc is None else f"{row.auroc:.3f}"
        table.add_row(Text(row.name), precision, auroc, f"{row.f1:.1%}", f"{row.threshold:.3f}", f"{row.images:,}")
    return table


def precision_figure(scores: LabelScores, title: str) -> Figure:
    """A bar for each label's average precision, the worst `MAX_ROWS` at most."""
    from matplotlib.figure import Figure

    known = [row for row in scores.labels if row.average_precision is not None]
    rows = sorted(known, key=lambda row: row.average_precision or 0.0)[:MAX_ROWS]
    figure = Figure(figsize=(6.4, 1.2 + 0.22 * len(rows)), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.barh([row.name for row in rows], [row.average_precision or 0.0 for row in rows], color="#1f5fa8")
    for label in axes.get_yticklabels():
        label.set_parse_math(False)  # a class may be called anything
    axes.set_xlim(0, 1)
    axes.set_xlabel("average precision")
    axes.set_title(title, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
