"""Benchmarks as a table, a picture and a file: ratios to a named baseline, and what was not timed and why."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vmamba.bench.measure import cpu_name
from vmamba.bench.timing import Race
from vmamba.output import write_atomically, write_json
from vmamba.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

#: Times further apart than this ratio are shown on a logarithmic scale.
_LOG_FROM = 8.0


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures depend on: versions, processor, device, threads."""
    return {
        "vmamba": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
    }


def print_race(one: Race, console: Console) -> None:
    """A table of one race."""
    from rich.table import Table

    extras = list(dict.fromkeys(name for timing in one.timings for name in timing.extra))
    table = Table(box=None, pad_edge=False)
    table.add_column("candidate", overflow="fold")
    for head in ("best ms", "median ms", f"× {one.baseline}", *extras):
        table.add_column(head, justify="right")
    for timing in one.timings:
        figures = [_number(timing.best_ms), _number(timing.median_ms), _number(timing.ratio)]
        table.add_row(timing.name, *figures, *(_number(timing.extra.get(name)) for name in extras))
    console.print(one.title, style="bold", markup=False, soft_wrap=True)
    console.print(table)
    for timing in one.timings:
        for word, text, style in (("FAILED", timing.failure, "red"), ("absent", timing.absent, "yellow")):
            if text:
                console.print(f"{timing.name} {word}: {text}", style=style, markup=False, soft_wrap=True)
        if timing.note:
            console.print(f"{timing.name}: {timing.note}", style="dim", markup=False, soft_wrap=True)
    console.print()


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def races_figure(races: Sequence[Race], machine: dict[str, Any]) -> Figure:
    """A bar for each candidate that was timed, one panel for each race: the best time, its ratio beside it."""
    from matplotlib.figure import Figure

    counts = [max(1, sum(1 for timing in one.timings if timing.times_ms)) for one in races]
    height = 0.36 * sum(counts) + 0.95 * len(races) + 0.5
    figure = Figure(figsize=(9, height), dpi=120, layout="constrained")
    panels = figure.subplots(len(races), 1, squeeze=False, height_ratios=[count + 0.6 for count in counts])[:, 0]
    for axes, one in zip(panels, races, strict=True):
        timed = [(timing, timing.best_ms) for timing in one.timings if timing.best_ms is not None]
        best = [value for _, value in timed]
        colours = ["#1f5fa8" if timing.name == one.baseline else "#8fb3d9" for timing, _ in timed]
        bars = axes.barh([timing.name for timing, _ in timed], best, color=colours)
        labels = [f"{value:.3g} ms  (×{_number(timing.ratio)})" for timing, value in timed]
        axes.bar_label(bars, labels, padding=4, fontsize=9)
        axes.invert_yaxis()
        if best and max(best) > _LOG_FROM * min(best):
            axes.set_xscale("log")
            axes.set_xlim(min(best) / 2, max(best) * (max(best) / min(best) * 2) ** 0.35)
            axes.set_xlabel("best time, ms (log scale)")
        else:
            axes.set_xlim(0, max(best, default=1) * 1.35)
            axes.set_xlabel("best time, ms")
        left_out = [timing.name for timing in one.timings if timing.failure]
        title = "; failed: ".join(filter(None, [one.title, ", ".join(left_out)]))
        axes.set_title(title, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    place = f"{machine['cpu']}, threads: {machine['threads']}"
    place = place if machine["device"] == "cpu" else f"{machine['device']}"
    figure.suptitle(f"{place}; torch {machine['torch']}; ratios to the dark bar", fontsize=9, x=0.01, ha="left")
    return figure


def report(name: str, races: Sequence[Race], machine: dict[str, Any], output: Path, console: Console) -> int:
    """Print the races and write ``output/name.json`` and ``output/name.png``.

    Returns:
        0; 1 where a candidate failed.

    Raises:
        OutputError: the place cannot be written.
    """
    for one in races:
        print_race(one, console)
    write_json(output / f"{name}.json", {"machine": machine, "races": [one.to_dict() for one in races]})
    figure = races_figure(races, machine)
    write_atomically(output / f"{name}.png", lambda temporary: figure.savefig(temporary, format="png"))
    console.print(f"wrote {output / name}.json and .png", markup=False, soft_wrap=True)
    return 0 if all(one.passed for one in races) else 1
