"""How time, memory and work grow with the image: ``vmamba bench scale``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vmamba.bench.measure import peak_mib, waiter
from vmamba.bench.report import machine
from vmamba.bench.setup import BenchModelConfig, check_models, check_timm, images, ours, timm_model
from vmamba.bench.timing import Candidate, race, threads
from vmamba.device import pick_device
from vmamba.errors import ConfigError
from vmamba.output import check_writable_folder, write_atomically, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

SIZES = (224, 384, 512, 768, 1024)
PEERS = ("swin_tiny_patch4_window7_224", "convnext_tiny", "deit_small_patch16_224")


@dataclass(frozen=True)
class Point:
    """One model at one size.

    Attributes:
        size: side of the images in pixels.
        median_ms: the forward pass.
        peak_mib: most memory held at once during it, beyond the weights.
        gflop: floating-point operations, a multiply-add being two.
    """

    size: int
    median_ms: float
    peak_mib: float | None
    gflop: float


def slope(points: Sequence[tuple[int, float]]) -> float:
    """The exponent of growth against pixels: of ``(side, value)`` the least-squares slope of the logarithms."""
    pixels, values = zip(*((2 * math.log(side), math.log(value)) for side, value in points), strict=True)
    return float(np.polyfit(pixels, values, 1)[0])


def gflop(model: nn.Module, x: Tensor) -> float:
    """Floating-point operations of the forward pass in 10⁹: products, convolutions, attention, scans."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return float(counter.get_total_flops()) / 1e9


def run_bench_scale(
    config: BenchModelConfig, names: Sequence[str], peers: Sequence[str], sizes: Sequence[int], console: Console
) -> int:
    """Time the forward pass of every model at every size, taking turns; write ``scale.json`` and ``scale.png``.

    Args:
        config: the options; its ``size`` is not looked at.
        names: of our models.
        peers: names of timm's.
        sizes: sides of the images in pixels, two or more.
        console: where the table goes.

    Returns:
        0.

    Raises:
        ConfigError: an unknown model or an option that is not legal.
        OutputError: the folder cannot be written, said before anything is measured.
    """
    if len(set(sizes)) < 2 or min(sizes) < 32:
        raise ConfigError(f"bench scale takes two or more sizes of at least 32 pixels, not {list(sizes)}")
    check_models(config, names)
    check_timm(peers)
    check_writable_folder(config.output)
    device = pick_device(config.device)
    with threads(config.threads), torch.no_grad():
        setting = machine(device)
        found = _measure(config, names, peers, sorted(set(sizes)), device)
    growth = {
        name: {
            "time": slope([(p.size, p.median_ms) for p in points]),
            "memory": slope([(p.size, p.peak_mib) for p in points if p.peak_mib]) if points[0].peak_mib else None,
            "flop": slope([(p.size, p.gflop) for p in points]),
        }
        for name, points in found.items()
    }
    _print(found, growth, console)
    data = {
        name: {"points": [vars(point) for point in points], "slope": growth[name]} for name, points in found.items()
    }
    write_json(config.output / "scale.json", {"machine": setting, "batch": config.batch, "models": data})
    figure = _figure(
        found, growth, f"{setting['cpu']}, threads: {setting['threads']}; torch {setting['torch']}, float32"
    )
    write_atomically(config.output / "scale.png", lambda temporary: figure.savefig(temporary, format="png"))
    console.print(f"wrote {config.output / 'scale'}.json and .png", markup=False, soft_wrap=True)
    return 0


def _measure(
    config: BenchModelConfig, names: Sequence[str], peers: Sequence[str], sizes: Sequence[int], device: torch.device
) -> dict[str, list[Point]]:
    runs: dict[tuple[str, int], tuple[nn.Module, Tensor]] = {}
    for name in dict.fromkeys([*names, *peers]):
        for size in sizes:
            # Windows and positions of timm's models depend on the size; of ours nothing does.
            same = size != sizes[0] and name in names
            model = runs[name, sizes[0]][0] if same else _model(config, name, names, size, device)
            runs[name, size] = model, images(config, device, size)
    candidates = [Candidate(f"{name} {size}", partial(model, x)) for (name, size), (model, x) in runs.items()]
    timings = race(candidates, rounds=config.rounds, seconds=config.seconds, wait=waiter(device))
    found: dict[str, list[Point]] = {}
    for ((name, size), (model, x)), timing in zip(runs.items(), timings, strict=True):
        assert timing.median_ms is not None
        peak = peak_mib(str(device), partial(model, x))
        found.setdefault(name, []).append(Point(size, timing.median_ms, peak, gflop(model, x)))
    return found


def _model(config: BenchModelConfig, name: str, names: Sequence[str], size: int, device: torch.device) -> nn.Module:
    return ours(config, name, None, device) if name in names else timm_model(name, size).eval().to(device)


def _print(found: dict[str, list[Point]], growth: dict[str, dict[str, Any]], console: Console) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("model", overflow="fold")
    for head in ("size", "median ms", "ns/pixel", "peak MiB", "GFLOP"):
        table.add_column(head, justify="right")

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"

    for name, points in found.items():
        for p in points:
            row = [p.median_ms, p.median_ms * 1e6 / p.size**2, p.peak_mib, p.gflop]
            table.add_row(name if p is points[0] else "", str(p.size), *map(number, row))
        slopes = [f"{growth[name][what]:.2f}" if growth[name][what] else "–" for what in ("time", "memory", "flop")]
        table.add_row("  slope against pixels", "", slopes[0], "", slopes[1], slopes[2], style="bold")
    console.print(table)


def _figure(found: dict[str, list[Point]], growth: dict[str, dict[str, Any]], title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), dpi=120, layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, what, label in ((panels[0], "time", "median time, ms"), (panels[1], "memory", "peak memory, MiB")):
        for name, points in found.items():
            values = [p.median_ms if what == "time" else p.peak_mib for p in points]
            if None in values:
                continue
            text = f"{name} (slope {growth[name][what]:.2f})"
            axes.loglog([p.size for p in points], values, marker="o", label=text, base=2)
        sides = [p.size for p in next(iter(found.values()))]
        axes.set_xticks(sides, [str(side) for side in sides])
        axes.minorticks_off()
        axes.set_xlabel("side of the image, pixels")
        axes.set_ylabel(label)
        axes.legend(fontsize=7, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    return figure
