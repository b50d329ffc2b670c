"""Weight files from the command line: list the released ones, get them, convert between formats, look inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vmamba.errors import CheckpointError, OutputError
from vmamba.output import check_writable_file
from vmamba.weights import OFFICIAL, fetch_official, official_weights, read_weights, save_weights, translate_keys
from vmamba.weights.files import PICKLED_SUFFIXES, WeightFile, pick_state_dict, read_content
from vmamba.weights.misfits import Misfits, find_misfits, some
from vmamba.zoo.families import family_of_file

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True)
class WeightsRow:
    """One released file. ``bytes`` is None where it is not in the cache."""

    model: str
    file: str
    key: str
    url: str
    path: str
    bytes: int | None
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def weights_rows() -> list[WeightsRow]:
    """Every released checkpoint, and whether it lies in torch hub's cache."""
    return [
        WeightsRow(
            model=weights.model,
            file=weights.file_name,
            key=weights.key,
            url=weights.url,
            path=str(weights.path),
            bytes=weights.path.stat().st_size if weights.path.is_file() else None,
            note=weights.note,
        )
        for weights in OFFICIAL.values()
    ]


def weights_table(rows: Sequence[WeightsRow]) -> Table:
    """The rows as they are printed."""
    from rich.table import Table

    notes = [f"{row.model}: {row.note}." for row in rows if row.note]
    folders = sorted({str(Path(row.path).parent) for row in rows})
    caption = "\n".join([f"Cache: {', '.join(folders)} (TORCH_HOME moves it).", *notes])
    table = Table(box=None, pad_edge=False, caption=caption, caption_justify="left", caption_style="dim")
    table.add_column("model")
    table.add_column("file", overflow="fold")
    table.add_column("cached", justify="right")
    for row in rows:
        table.add_row(row.model, row.file, "no" if row.bytes is None else f"{row.bytes / 1e6:.1f} MB")
    return table


def get_weights(names: Sequence[str]) -> list[Path]:
    """Download the released weights of named models that are not in the cache, and verify all.

    Raises:
        ConfigError: an unknown model; noticed before anything is downloaded.
        CheckpointError: no weights were released, or they cannot be had.
        OutputError: the cache cannot be written.
    """
    for name in names:
        official_weights(name)
    return [fetch_official(name) for name in names]


def convert_weights(source: Path, destination: Path, key: str | None = None) -> int:
    """Write the weights of one file to another, bit by bit the same; the name's end decides the format.

    Names, dtypes and metadata are kept, and a training checkpoint's plain numbers as metadata; optimizer and the like
    are left out.

    Args:
        source: a weight file.
        destination: ``.safetensors``, or ``.pth``, ``.pt``, ``.bin`` or ``.ckpt``.
        key: the entry of a training checkpoint to take.

    Returns:
        The number of tensors.

    Raises:
        CheckpointError: ``source`` cannot be used.
        OutputError: ``destination`` cannot be written, has another ending, or is the source.
    """
    legal = (".safetensors", *PICKLED_SUFFIXES)
    if destination.suffix not in legal:
        raise OutputError(f"{destination} does not say its format; give a name that ends in {', '.join(legal)}")
    check_writable_file(destination)
    if destination.exists() and source.exists() and destination.samefile(source):
        raise OutputError(f"{destination} is the source itself; give another file")
    file = read_weights(source, key)
    save_weights(destination, file.state_dict, file.metadata)
    return len(file.state_dict)


@dataclass(frozen=True)
class Inspection:
    """What a weight file holds.

    Attributes:
        file: the file.
        entries: a training checkpoint's entries, each described; empty for a file of weights only.
        metadata: text that the file says about itself.
        tensors: their number.
        values: numbers in all of them.
        dtypes: tensors of each dtype.
        model: the named model that they belong to, or None.
        task: what that network is for, or None.
        config: the configuration of the network, or None if there is none.
        assumed: what of it the weights do not show.
        fits: whether that network loads them strictly.
        problem: why not, or why none was recognised.
        missing, unexpected, mis_shaped, unusable: the names that do not fit.
    """

    file: str
    entries: dict[str, str]
    metadata: dict[str, str]
    tensors: int
    values: int
    dtypes: dict[str, int]
    model: str | None
    task: str | None
    config: dict[str, Any] | None
    assumed: tuple[str, ...]
    fits: bool
    problem: str | None
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mis_shaped: tuple[str, ...]
    unusable: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def inspect_weights(path: Path, key: str | None = None) -> Inspection:
    """Look inside a weight file.

    Args:
        path: the file.
        key: the entry of a training checkpoint to look at, by default the one that loading takes.

    Raises:
        CheckpointError: the file cannot be read, or has no weights (under ``key``).
    """
    content = read_content(path)
    file = content if isinstance(content, WeightFile) and key is None else read_weights(path, key)
    entries: dict[str, str] = {}
    if isinstance(content, Mapping) and not all(isinstance(value, Tensor) for value in content.values()):
        entries = {str(name): _described(value) for name, value in content.items()}
    weights = file.state_dict
    facts: dict[str, Any] = {
        "file": str(path),
        "entries": entries,
        "metadata": file.metadata,
        "tensors": len(weights),
        "values": sum(value.numel() for value in weights.values()),
        "dtypes": dict(Counter(str(value.dtype).removeprefix("torch.") for value in weights.values())),
    }
    return Inspection(**facts, **_fit(file, str(path)))


def _fit(file: WeightFile, source: str) -> dict[str, Any]:
    nothing: dict[str, Any] = asdict(Misfits((), (), ()))
    try:
        family = family_of_file(file)
        found = family.describe(file, source)
        with torch.device("meta"):
            own = family.build(found.config).state_dict()
        misfits = find_misfits(translate_keys(file.state_dict, own), own)
    except CheckpointError as error:
        unknown = dict.fromkeys(("model", "task", "config"))
        return {**unknown, "assumed": (), "fits": False, "problem": str(error), **nothing}
    return {
        "model": found.name,
        "task": family.task,
        "config": found.config.to_dict(),
        "assumed": found.assumed,
        "fits": not misfits,
        "problem": str(misfits) or None,
        **asdict(misfits),
    }


def _described(value: object) -> str:
    """An entry in a few words."""
    if isinstance(value, Mapping):
        try:
            weights = pick_state_dict(value)
        except CheckpointError:
            return f"{len(value)} entries: {some(map(str, value))}" if value else "empty"
        return f"weights, {len(weights)} tensors"
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    return repr(value)[:80]


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Print it for people."""
    from rich.table import Table

    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in inspection.dtypes.items())
    rows: list[tuple[str, str]] = [("file", inspection.file)]
    rows += [(f"entry {name}", text) for name, text in inspection.entries.items()]
    rows += [(f"metadata {name}", text[:200]) for name, text in inspection.metadata.items()]
    rows += [("tensors", f"{inspection.tensors} ({dtypes}), {inspection.values / 1e6:.2f} M values")]
    if inspection.config is not None:
        rows.append(("model", f"{inspection.model or 'no named model'}, for {inspection.task}"))
        rows.append(("configuration", _summary(inspection.config)))
        rows.append(("assumed", ", ".join(inspection.assumed) or "nothing: the file says it"))
    rows.append(("fits", "yes, strictly" if inspection.fits else f"no: {inspection.problem}"))
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(*map(_plain, (name, text)))
    console.print(table)


def _summary(config: Mapping[str, Any]) -> str:
    """What tells networks apart, in one line."""
    shown = ("depths", "dims", "num_classes", "in_chans", "forward_type")
    if "decode_head" not in config:
        return ", ".join(f"{name}={config[name]}" for name in shown)
    backbone, head, auxiliary = config["backbone"], config["decode_head"], config["auxiliary_head"]
    parts = [f"{name}={head[name] if name == 'num_classes' else backbone[name]}" for name in shown]
    return ", ".join([head["type"], *parts, f"auxiliary_head={auxiliary and auxiliary['type']}"])


def _plain(text: str) -> Any:
    """Text that is printed as it is, brackets too."""
    from rich.text import Text

    return Text(text)
