"""Classification on the terminal: bars for predictions, one line each for many images; tables for scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from vmamba.tasks.classification.prediction import Prediction, right_of

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from vmamba.tasks.classification.scores import Scores

#: Up to this many images every bar is shown.
MAX_DETAILED = 8
#: With more classes than this only the worst are shown; a JSON file always has all.
MAX_ROWS = 40

_STYLES = {None: "cyan", True: "green", False: "red"}


def report(predictions: Sequence[Prediction], console: Console) -> None:
    """Print what was found."""
    detailed = len(predictions) <= MAX_DETAILED
    console.print(_bars(predictions) if detailed else _lines(predictions))
    if share := right_of(predictions):
        console.print(share)


def _bars(predictions: Sequence[Prediction]) -> Group:
    width = max(cell_len(name) for prediction in predictions for name in prediction.classes)
    parts: list[Text | Table] = []
    for prediction in predictions:
        table = Table.grid(padding=(0, 2))
        table.add_column(width=min(width, 40) + 2)
        for rank, (name, share) in enumerate(zip(prediction.classes, prediction.probabilities, strict=True)):
            style = "bright_black" if rank else _STYLES[prediction.right]
            table.add_row(Text(f"  {name}", style="" if rank else "bold"), _percent(share), Text(bar(share), style))
        parts += [_name(prediction), table]
    return Group(*parts)


def _lines(predictions: Sequence[Prediction]) -> Table:
    table = Table.grid(padding=(0, 2))
    for prediction in predictions:
        share, style = prediction.probabilities[0], _STYLES[prediction.right]
        table.add_row(
            _name(prediction), Text(prediction.classes[0], style="bold"), _percent(share), Text(bar(share, 16), style)
        )
    return table


def _name(prediction: Prediction) -> Text:
    name = Text(str(prediction.path))
    if prediction.right is False:
        name.append(f"  is {prediction.truth}", style="red")
    return name


def _percent(share: float) -> Text:
    return Text(f"{share:.1%}".rjust(6))


def bar(share: float, width: int = 24) -> str:
    """A bar of ``share × width`` cells, to an eighth of a cell."""
    whole, eighths = divmod(round(min(max(share, 0.0), 1.0) * width * 8), 8)
    return "█" * whole + ("▏▎▍▌▋▊▉"[eighths - 1] if eighths else "")


def score_tables(scores: Scores, part: str) -> Iterator[RenderableType]:
    """The table of classes, an empty line, and the commonest confusions."""
    rows = scores.classes
    title = f"Each class of the {part} split"
    if len(rows) > MAX_ROWS:
        rows = tuple(sorted((row for row in rows if row.images), key=lambda row: row.f1)[:MAX_ROWS])
        title = f"The {len(rows)} worst of {len(scores.classes)} classes, {part} split"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("class")
    for column in ("precision", "recall", "F1", "images"):
        table.add_column(column, justify="right")
    for row in rows:
        shares = (f"{share:.1%}" for share in (row.precision, row.recall, row.f1))
        table.add_row(Text(row.name), *shares, f"{row.images:,}")
    yield table
    yield ""
    if wrong := _confusions(scores):
        yield "Most often confused: " + ", ".join(f"{a} taken for {b} ({n})" for n, a, b in wrong)


def _confusions(scores: Scores, count: int = 3) -> list[tuple[int, str, str]]:
    names = [row.name for row in scores.classes]
    wrong = [
        (n, names[i], names[j]) for i, row in enumerate(scores.confusion) for j, n in enumerate(row) if i != j and n > 0
    ]
    return sorted(wrong, key=lambda item: -item[0])[:count]
