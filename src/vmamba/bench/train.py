"""Times a training step with every backend, beside its forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.bench.measure import peak_mib, waiter
from vmamba.bench.report import machine, report
from vmamba.bench.setup import BenchModelConfig, check_models, finished_race, images, ours, why_wrong
from vmamba.bench.timing import Candidate, Race, race, threads
from vmamba.device import pick_device
from vmamba.kernels.interface import ScanCall
from vmamba.output import check_writable_folder
from vmamba.scan import recorded_runs
from vmamba.scan.dispatch import BACKENDS

if TYPE_CHECKING:
    from rich.console import Console

#: Largest error of a gradient, as a part of its largest value, against the same weights in float64 on the torch
#: backend: gradients go through some hundred float32 layers, and upstream's parity data are held to the same bound.
ALLOWED_GRADIENTS = 1e-3


def run_bench_train(config: BenchModelConfig, name: str, console: Console) -> int:
    """Time forward alone and a training step with every backend; write ``train.json`` and ``train.png``.

    Returns:
        0; 1 where a backend was wrong.

    Raises:
        ConfigError: an unknown model or an option that is not legal.
        OutputError: the folder cannot be written, said before anything is measured.
    """
    check_models(config, [name])
    check_writable_folder(config.output)
    device = pick_device(config.device)
    with threads(config.threads):
        one = train_race(config, name, device)
        return report("train", [one], machine(device), config.output, console)


def train_race(config: BenchModelConfig, name: str, device: torch.device) -> Race:
    """Check the gradients of every backend, then time forward alone and a whole step of each."""
    x = images(config, device)
    labels = torch.arange(config.batch, device=device)
    able = [
        backend
        for backend, row in BACKENDS.items()
        if row.obstacle(ScanCall("ss2d_scan", device.type, torch.float32)) is None
    ]
    expected = _gradients(ours(config, name, "torch", device).double(), x.double(), labels)
    candidates, steps = [], {}
    for backend in able:
        model = ours(config, name, backend, device)
        step = steps[backend] = _step(model, x, labels)
        check = _against_gradients(model, backend, x, labels, expected)
        candidates.append(Candidate(f"{backend}, forward", _no_grad(model, x), check))
        candidates.append(Candidate(f"{backend}, step", step, check))
    measured = []
    timings = race(candidates, rounds=config.rounds, seconds=config.seconds, wait=waiter(device))
    for timing in timings:
        backend, _, part = timing.name.partition(", ")
        if timing.best_ms is not None and part == "step":
            forward = next(other.best_ms for other in timings if other.name == f"{backend}, forward")
            extra = {
                "step / forward": None if forward is None else timing.best_ms / forward,
                "peak MiB": peak_mib(str(device), steps[backend]),
            }
            timing = dataclasses.replace(timing, extra=extra)
        measured.append(timing)
    title = f"{name}, {config.batch}×3×{config.size}×{config.size}, float32; step: forward, backward, AdamW"
    return finished_race(config, title, measured)


def _no_grad(model: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return model(x)

    return run


def _step(model: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], object]:
    """A training step that leaves the weights as they are: its learning rate is 0, which costs AdamW the same."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.05)

    def run() -> object:
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # last: gradients then count towards the peak memory of their own step
        return loss

    return run


def _gradients(model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The loss's gradient for every parameter, on the CPU, and the model left without any."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(F.cross_entropy(model(x), labels), parameters)
    return {name: gradient.cpu() for name, gradient in zip(names, found, strict=True)}


def _against_gradients(
    model: nn.Module, backend: str, x: Tensor, labels: Tensor, expected: Mapping[str, Tensor]
) -> Callable[[], str]:
    def check() -> str:
        with recorded_runs() as runs:
            got = _gradients(model, x, labels)
        ran = {run.backend for run in runs}
        if ran != {backend}:
            return f"what ran was {sorted(ran) or 'not recorded'}"
        return why_wrong(got, expected, ALLOWED_GRADIENTS)

    return check
