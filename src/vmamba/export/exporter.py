"""Export a model to a file that runs without this package, and prove that it computes what the model does."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from vmamba.errors import ConfigError, ExportError, OutputError, VMambaError, nearest
from vmamba.export.aoti import kernel_library
from vmamba.export.graph import AXES, Graph, scans_as_mamba2
from vmamba.export.source import Source, load_source
from vmamba.export.targets import TARGETS, Runner
from vmamba.kernels.native import library as native
from vmamba.output import check_writable_file

if TYPE_CHECKING:
    from rich.console import Console

#: The largest difference from the model's own float32 logits that a file may show, as a share of the largest of them.
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2}
_SEED = 0


@dataclass(frozen=True)
class ExportConfig:
    """What to export, to what, and where.

    Attributes:
        source: Run folder (its best weights), weight file, or a model's name.
        to: torch-export, aoti, onnx or openvino.
        output: The new file; by default NAME.onnx, NAME.xml, NAME.export.pt2 or NAME.aoti.pt2 in the current folder.
        dynamic: Axes of the images that may have any size, such as batch or batch,height,width. The others have the
            model's own size, and the batch 1.
        dtype: float32 or bfloat16. Images and logits are float32 in every file.
    """

    source: str
    to: Literal["torch-export", "aoti", "onnx", "openvino"]
    output: Path | None = None
    dynamic: str = ""
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.to not in TARGETS:
            raise ConfigError(f"to={self.to!r}: want {' or '.join(TARGETS)}{nearest(self.to, TARGETS)}")
        target = TARGETS[self.to]
        if self.dtype not in TOLERANCES:
            raise ConfigError(f"dtype={self.dtype!r}: want {' or '.join(TOLERANCES)}{nearest(self.dtype, TOLERANCES)}")
        if self.dtype not in target.dtypes:
            raise ConfigError(f"dtype={self.dtype} is not for {self.to}: {target.dtype_reason}")
        for axis in self.axes:
            if axis not in AXES:
                raise ConfigError(f"dynamic={self.dynamic!r}: {axis!r} is not one of {', '.join(AXES)}")
        if self.output is not None and not self.output.name.endswith(target.suffix):
            raise ConfigError(f"output {self.output}: a file for {self.to} ends in {target.suffix}")

    @property
    def axes(self) -> tuple[str, ...]:
        """The dynamic axes."""
        return tuple(axis.strip() for axis in self.dynamic.split(",") if axis.strip())


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: the file, for OpenVINO the two.
        error: the largest difference from the model's logits, as a share of the largest logit.
        images: how many images it was seen on.
    """

    files: tuple[Path, ...]
    error: float
    images: int


def export(config: ExportConfig, console: Console | None = None) -> Exported:
    """Export, run the result on random and real images, compare with the model, and put the file in its place.

    Raises:
        CheckpointError: weights that cannot be used.
        ConfigError: an unknown source, or a package that is missing.
        ExportError: it cannot be exported, or the result is off by more than `TOLERANCES`; nothing is left behind.
        OutputError: the place cannot be written.
    """

    def say(text: str, style: str | None = None) -> None:
        if console is not None:
            console.print(text, style=style, soft_wrap=True, markup=False)

    target = TARGETS[config.to]
    if obstacle := target.obstacle():
        raise ConfigError(f"{config.to} {obstacle}")
    if config.output is not None:
        check_writable_file(config.output)
    source = load_source(config.source)
    output = config.output or Path(source.file_stem + target.default_ending)
    check_writable_file(output)
    if source.warning:
        say(f"warning: {source.warning}", "yellow")
    say(f"exporting {source.described}")
    open_sizes = {"height", "width"} & set(config.axes)
    if config.to == "aoti" and open_sizes and scans_as_mamba2(source.model):
        say("warning: inductor compiles Mamba-2's scan for all sizes itself, which takes many minutes", "yellow")
    elif config.to == "aoti" and open_sizes and kernel_library() is None:
        say(
            "warning: without the compiled kernels' static library inductor compiles the scan for all sizes itself, "
            f"which takes far more than ten minutes; {native.MEND}, with torch 2.8 or newer",
            "yellow",
        )

    example = _example(source, config.axes)
    graph = Graph(source.model, example, config.axes, getattr(torch, config.dtype), source.metadata)
    cases = _cases(source, config.axes)
    with _beside(output) as folder:
        with _told(config.to):
            files = target.write(graph, folder / output.name)
            run = target.open(files[0])
            error = _largest_error(source, run, cases)
            del run
        tolerance = TOLERANCES[config.dtype]
        count = sum(len(case) for case in cases)
        if not error <= tolerance:
            raise ExportError(
                f"the {config.to} file is off by {error:.1e} of the logits' scale on {count} images, "
                f"allowed {tolerance:.0e}; it was removed"
            )
        placed = _place(files, output.parent)
    say(f"largest error against the model, of its logits' scale: {error:.1e} (allowed {tolerance:.0e}; {count} images)")
    for path in placed:
        say(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return Exported(tuple(placed), error, count)


def _example(source: Source, axes: Sequence[str]) -> Tensor:
    """Images to trace with: of the model's own size, but along ``axes`` large enough for a graph of all sizes."""
    config = source.network
    # Two places are left at the last stage.
    least = 2 * config.stem_stride * 2 ** (len(config.depths) - 1)
    sizes = {"height": source.preprocessing.height, "width": source.preprocessing.width}
    height, width = (max(size, least) if axis in axes else size for axis, size in sizes.items())
    if "height" in axes and "width" in axes:
        width += least  # not the same, or one size could be taken for the other
    return torch.zeros(2 if "batch" in axes else 1, config.in_chans, height, width)


def _cases(source: Source, axes: Sequence[str]) -> list[Tensor]:
    """Batches of random and real images, of other sizes too along ``axes``."""
    channels, (height, width) = source.preprocessing.in_chans, source.pixels.shape[2:]
    generator = torch.Generator().manual_seed(_SEED)

    def noise(b: int, h: int, w: int) -> Tensor:
        return torch.randn(b, channels, h, w, generator=generator)

    batch = 3 if "batch" in axes else 1
    # Not multiples of a patch, and not square, where they may be.
    other = (height + 37 if "height" in axes else height, width + 22 if "width" in axes else width)
    cases = [noise(1, height, width), noise(batch, *other)]
    return cases + list(source.pixels.split(len(source.pixels) if "batch" in axes else 1))


def _largest_error(source: Source, run: Runner, cases: Sequence[Tensor]) -> float:
    worst = 0.0
    for pixels in cases:
        with torch.inference_mode():
            want = source.model(pixels)
        got = run(pixels)
        if got.shape != want.shape:
            raise ExportError(
                f"it gives logits {tuple(got.shape)} for images {tuple(pixels.shape)}, not {tuple(want.shape)}"
            )
        error = float((got.double() - want.double()).abs().max() / want.double().abs().max().clamp(min=1e-12))
        # A NaN compares with nothing.
        worst = error if not error <= worst else worst
    return worst


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Turn whatever an exporter raises into `ExportError`, and keep its warnings to itself."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (VMambaError, KeyboardInterrupt):
        raise
    except OSError as error:
        raise OutputError(f"cannot write the {name} file: {error.strerror or error}; choose another place") from error
    except Exception as error:  # exporters raise many kinds
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise ExportError(f"{name}: the export failed ({reason}); nothing was written") from error


@contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """A temporary folder on the same file system as ``output``, removed with all that is in it."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror}; choose another place") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place(files: Sequence[Path], folder: Path) -> list[Path]:
    """Move ``files`` into ``folder``: all of them, or none and what was there before stays."""
    placed: list[tuple[Path, Path]] = []
    try:
        # The first file names the others, so it comes last.
        for file in reversed(files):
            goal, old = folder / file.name, file.with_name(f"{file.name}.old")
            if len(files) > 1 and goal.exists():
                os.replace(goal, old)
            placed.append((goal, old))
            os.replace(file, goal)
    except OSError as error:
        for goal, old in placed:
            if old.exists():
                os.replace(old, goal)
            elif len(files) > 1:
                goal.unlink(missing_ok=True)
        raise OutputError(f"cannot write {folder / files[0].name}: {error.strerror}; choose another place") from error
    return [goal for goal, _ in reversed(placed)]
