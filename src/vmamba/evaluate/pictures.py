"""Pictures as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmamba.output import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically, the same bytes for the same figure.

    Raises:
        OutputError: the place cannot be written.
    """
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None}))
