"""Image files asked about one by one, for commands that write files of their own for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from vmamba.errors import DataError, OutputError
from vmamba.evaluate.measure import to_device
from vmamba.output import check_writable_folder, write_atomically
from vmamba.tasks.overlay import png
from vmamba.tasks.protocol import Task

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console


@dataclass(frozen=True)
class Asked:
    """What became of one image file.

    Attributes:
        path: the file.
        name: what its results are called; no other file's are.
        output: of the task, for this image alone; None where there is none.
        fault: why there is none.
    """

    path: Path
    name: str
    output: Any = None
    fault: str | None = None


def check_results_folder(path: Path, overwrite: bool) -> None:
    """Make sure that results can be written into a folder, and that there are none yet.

    Raises:
        OutputError: it cannot be written, or is not empty and may not be overwritten.
    """
    check_writable_folder(path)
    if not overwrite and path.is_dir() and any(path.iterdir()):
        raise OutputError(f"output folder {path} is not empty; give a new one, or overwrite=true")


def one_by_one(
    task: Task, model: nn.Module, files: Sequence[Path], unreadable: Literal["stop", "skip"], device: torch.device
) -> Iterator[Asked]:
    """Run the model, on ``device`` already, on each file in turn.

    Raises:
        DataError: a file that cannot be read, unless such are left out.
    """
    twice = max(Counter(path.stem for path in files).values()) > 1
    for index, path in enumerate(files):
        name = f"{index:04d}_{path.stem}" if twice else path.stem
        try:
            inputs = to_device(task.stack([task.read(path)]), device)
        except DataError as error:
            if unreadable == "stop":
                raise DataError(f"{error}; leave such images out with unreadable=skip") from error
            yield Asked(path, name, fault=str(error))
            continue
        with torch.inference_mode():
            yield Asked(path, name, task.run(model, inputs)[0])


def write_png(path: Path, image: Image.Image) -> None:
    """Write an image, the whole file or nothing, the same bytes for the same image.

    Raises:
        OutputError: the place cannot be written.
    """
    data = png(image)
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def tell(console: Console | None, task: Task, answers: Sequence[Any], skipped: Sequence[str], written: str) -> None:
    """Print the answers, what was left out, and what was ``written``."""
    if console is not None:
        task.print_answers(answers, console)
        for fault in skipped:
            console.print(f"left out: {fault}", soft_wrap=True, markup=False)
        console.print(written, soft_wrap=True, markup=False)
