"""`vmamba.count` and what `vmamba flops` does: find the network that is meant, count it, print or write the figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vmamba.analysis.count import Cost, ModuleCost, Size, count_network
from vmamba.errors import CheckpointError, ConfigError, nearest
from vmamba.inference.exported import kind_of, open_exported
from vmamba.output import check_writable_file, write_json
from vmamba.tasks.registry import DEFAULT, TASKS
from vmamba.tasks.run_files import RunFiles
from vmamba.tasks.trained import FORMAT
from vmamba.weights import read_weights
from vmamba.weights.files import WeightFile
from vmamba.zoo import create_model, list_models
from vmamba.zoo.families import family_of_file

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True)
class FlopsConfig:
    """What to count.

    Attributes:
        model: Name of a model, run folder, weight file, or exported file.
        image_size: Side of the image, or height and width as "512x2048", pixels; by default the model's own, 800x1280
            of a named detector.
        depth: Modules shown, in levels below the whole network.
        proposals: Regions that a detector's box head is counted with; by default as many as there can be.
        detections: Regions that its mask head is counted with; by default as many as there can be.
        json: File for the figures of all modules.
    """

    model: str
    image_size: str | None = None
    depth: int = 2
    proposals: int | None = None
    detections: int | None = None
    json: Path | None = None

    def __post_init__(self) -> None:
        if self.depth < 0:
            raise ConfigError(f"depth={self.depth}: want levels, 0 or more")


def count(
    model: nn.Module | str | Path,
    size: int | Size | None = None,
    *,
    in_chans: int | None = None,
    proposals: int | None = None,
    detections: int | None = None,
) -> Cost:
    """What a model costs for one image: parameters, multiply-adds, floating-point operations, activations, by module.

    It takes neither memory nor the time of a run: shapes are all that is computed.

        cost = vmamba.count("vmamba_tiny_s1l8")
        cost.macs  # 4.88e9: one for a multiply-add, what most papers call FLOPs
        cost.fvcore  # 4.91e9: norms besides, as VMamba's published figures
        cost["layers.2"].flops

    Args:
        model: a network, one of this package's or any that takes images ``(1, in_chans, H, W)``; or the name of one, a
            run's folder, a weight file, or an exported file that says what it was made of.
        size: of the image in pixels, a side or height and width; by default the model's own.
        in_chans: of the image; by default the model's own.
        proposals, detections: how many regions a detector's box head and mask head are counted with; by default as
            many as there can be.

    Raises:
        ConfigError: no such model or option, an image that the network cannot take, or a network that cannot be run
            without memory.
        CheckpointError: a file that cannot be used.
    """
    if not isinstance(model, nn.Module):
        model, own = _described(str(model))
        size = own if size is None else size
    return count_network(model, size, in_chans=in_chans, proposals=proposals, detections=detections)


def _described(what: str) -> tuple[nn.Module, Size | None]:
    """A network without memory by its name or a file's description, and the size of a run's images."""
    path = Path(what)
    if not path.exists():
        if what in list_models():
            with torch.device("meta"):
                return create_model(what), None
        if path.suffix or len(path.parts) > 1:
            raise CheckpointError(f"there is no run or weight file {what}")
        raise ConfigError(
            f"{what!r} is neither a run's folder, a weight file nor a model{nearest(what, list_models())}; "
            "`vmamba models` lists the models"
        )
    file = RunFiles(path).weights if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"{path} holds neither best.safetensors nor last.safetensors; is it a run's folder?")
    content = _of_exported(file) if kind_of(file) else read_weights(file)
    family = family_of_file(content)
    found = family.describe(content, str(file))
    with torch.device("meta"):
        return family.build(found.config), _image_size(content)


def _of_exported(path: Path) -> WeightFile:
    """What an exported file says about the network that it was exported from; without weights."""
    metadata = open_exported(path)[1]
    if "config" not in metadata:
        raise CheckpointError(
            f"{path} does not say which network it was exported from, so it cannot be counted; "
            "count the model, run or weight file itself"
        )
    return WeightFile({}, metadata)


def _image_size(file: WeightFile) -> Size | None:
    """Of a file that a run wrote, the size of the images that its model is evaluated with."""
    if file.metadata.get("format") != FORMAT or "config" not in file.metadata:
        return None
    task = TASKS.get(file.metadata.get("task", DEFAULT))
    if task is None or any(name not in file.metadata for name in task.described_by):
        return None
    p = task.from_metadata(file.metadata).preprocessing
    return p.height, p.width


def count_model(config: FlopsConfig, console: Console) -> Cost:
    """Count a model, print its figures and perhaps write them.

    Raises:
        ConfigError, CheckpointError, OutputError: as `count`, or a place that cannot be written.
    """
    if config.json is not None:
        check_writable_file(config.json)
    size = None if config.image_size is None else parse_size(config.image_size)
    cost = count(config.model, size, proposals=config.proposals, detections=config.detections)
    console.print(cost_table(cost, config.depth))
    for line in _facts(cost):
        console.print(line, soft_wrap=True, markup=False)
    if config.json is not None:
        write_json(config.json, cost_record(config.model, cost))
        console.print(f"wrote {config.json}", soft_wrap=True, markup=False)
    return cost


def parse_size(text: str) -> Size:
    """Height and width from ``"224"`` or ``"512x2048"``.

    Raises:
        ConfigError: anything else.
    """
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise ConfigError(f"image_size={text!r}: want a side, such as 224, or height and width, such as 512x2048")
    return int(parts[0]), int(parts[-1])


def cost_record(model: str, cost: Cost) -> dict[str, Any]:
    """The figures as plain values."""
    return {
        "model": model,
        "height": cost.size[0],
        "width": cost.size[1],
        "scan_flops": cost.scan_flops,
        "regions": None if cost.regions is None else dict(zip(("proposals", "detections"), cost.regions, strict=True)),
        "modules": [asdict(module) for module in cost.modules],
    }


def cost_table(cost: Cost, depth: int) -> Table:
    """The modules down to ``depth`` as they are printed; those without parameters that cost nothing are left out."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, collapse_padding=True)  # it just fits into 80 columns
    table.add_column("module", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    for name in ("params", "MACs", "FLOPs", "fvcore", "activations", "share"):
        table.add_column(name, justify="right")
    for module in _shown(cost, depth):
        table.add_row(
            "  " * module.depth + module.name.rpartition(".")[2] if module.name else "whole network",
            module.kind,
            *map(short, (module.parameters, module.macs, module.flops, module.fvcore, module.activations)),
            f"{100 * module.flops / max(cost.flops, 1):.1f} %",
            style="bold" if not module.name else None,
        )
    return table


def _shown(cost: Cost, depth: int) -> Iterator[ModuleCost]:
    for module in cost.modules:
        if not module.name or (module.depth <= depth and (module.parameters or module.flops)):
            yield module


def short(value: int) -> str:
    """A number with three digits or more and its unit: ``4.88 G``, ``30.2 M``."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            scaled = value / size
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 1000 else 0}f} {unit}"
    return str(value)


def _facts(cost: Cost) -> list[str]:
    scans = 100 * cost.scan_flops / max(cost.flops, 1)
    facts = [
        f"one image of {cost.size[0]}×{cost.size[1]} pixels; scans are {scans:.1f} % of the FLOPs",
        "MACs count a multiply-add once, FLOPs twice; both have a scan's 9n + 1 operations",
        "fvcore has norms, pooling and resizing too, as that package counts them and VMamba's figures were published",
    ]
    if cost.regions is not None:
        facts.append(f"counted with {cost.regions[0]} proposals and {cost.regions[1]} detections")
    return facts
