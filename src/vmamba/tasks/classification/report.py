"""Predictions on the terminal: every bar for a few images, one line each for many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from vmamba.tasks.classification.prediction import Prediction, right_of

if TYPE_CHECKING:
    from rich.console import Console

#: Up to this many images every bar is shown.
MAX_DETAILED = 8

_STYLES = {None: "cyan", True: "green", False: "red"}


def report(predictions: Sequence[Prediction], skipped: Sequence[Exception], console: Console) -> None:
    """Print what was found, and what was left out and why."""
    detailed = len(predictions) <= MAX_DETAILED
    console.print(_bars(predictions) if detailed else _lines(predictions))
    if share := right_of(predictions):
        console.print(share)
    for error in skipped:
        console.print(f"left out: {error}", soft_wrap=True, markup=False)


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
