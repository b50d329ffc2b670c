"""Times whole models: forward latency beside peers, the share of it spent in the scan, and a training step."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.errors import ConfigError, nearest
from vmamba.layers import SS2D
from vmamba.models import create_model, model_config
from vmamba.ops import recorded_runs
from vmamba.ops.backends import BACKENDS, ScanCall
from vmamba.tasks.bench_report import machine, report
from vmamba.tasks.bench_timing import Candidate, Race, Timing, first_timed, race, threads, with_ratios
from vmamba.tasks.device import pick_device
from vmamba.tasks.measure import peak_mib, waiter
from vmamba.tasks.run_folder import check_writable_folder
from vmamba.tasks.scan_calls import relative_error

if TYPE_CHECKING:
    from rich.console import Console

#: Largest errors as parts of a tensor's largest value, against the same weights in float64 on the torch backend. Logits
#: and gradients go through some hundred float32 layers; upstream's parity data are held to the same bounds.
ALLOWED_LOGITS, ALLOWED_GRADIENTS = 1e-4, 1e-3


@dataclass(frozen=True)
class BenchModelConfig:
    """Options of ``vmamba bench model`` and ``vmamba bench train``.

    Attributes:
        size: side of the images in pixels.
        batch: images at once.
        device: auto, cpu, cuda, cuda:1, ...
        threads: torch's threads; without it as many as torch has by default.
        rounds: timed turns of every candidate, at most.
        seconds: no turn starts after so long.
        baseline: candidate that ratios refer to; by default the first that was timed.
        model_options: other fields of the model, such as {dims: [8, 16], depths: [1, 1]}.
        output: folder for the JSON file and the picture.
    """

    size: int = 224
    batch: int = 1
    device: str = "cpu"
    threads: int | None = None
    rounds: int = 20
    seconds: float = 30.0
    baseline: str | None = None
    model_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    output: Path = Path("runs/bench")


def run_bench_model(config: BenchModelConfig, names: Sequence[str], peers: Sequence[str], console: Console) -> int:
    """Time the forward pass of models of ours and of timm's; write ``model.json`` and ``model.png``.

    Args:
        config: the options; ``model_options`` are for our models alone.
        names: of our models.
        peers: names of timm's models, which are built with fresh weights.
        console: where the table goes.

    Returns:
        0; 1 where a candidate was wrong.

    Raises:
        ConfigError: an unknown model or an option that is not legal.
        OutputError: the folder cannot be written, said before anything is measured.
    """
    _check(config, names)
    _check_timm(peers)
    check_writable_folder(config.output)
    device = pick_device(config.device)
    with threads(config.threads), torch.no_grad():
        one = model_race(config, names, peers, device)
        return report("model", [one], machine(device), config.output, console)


def run_bench_train(config: BenchModelConfig, name: str, console: Console) -> int:
    """Time forward alone and a training step with every backend; write ``train.json`` and ``train.png``.

    Returns, raises:
        as `run_bench_model`.
    """
    _check(config, [name])
    check_writable_folder(config.output)
    device = pick_device(config.device)
    with threads(config.threads):
        one = train_race(config, name, device)
        return report("train", [one], machine(device), config.output, console)


def model_race(config: BenchModelConfig, names: Sequence[str], peers: Sequence[str], device: torch.device) -> Race:
    """Check and time the models. Call it under ``torch.no_grad()``."""
    x = _images(config, device)
    wait = waiter(device)
    models: dict[str, nn.Module] = {}
    candidates = []
    for name in dict.fromkeys(names):
        models[name] = ours = _ours(config, name, None, device)
        candidates.append(_forward(name, ours, x, _against_oracle(config, name, ours, x), ""))
    for name in dict.fromkeys(peers):
        peer = _timm_model(name, config.size).eval().to(device)
        candidates.append(
            _forward(name, peer, x, _finite_logits(peer, x), "timm, fresh weights; only checked to be finite")
        )
    timings = race(candidates, rounds=config.rounds, seconds=config.seconds, wait=wait)
    measured = [
        dataclasses.replace(timing, extra={"scan %": scan_share(models[timing.name], x, wait) * 100})
        if timing.times_ms and timing.name in models
        else timing
        for timing in timings
    ]
    return _finish(config, f"forward, {config.batch}×3×{config.size}×{config.size}, float32", measured)


def scan_share(model: nn.Module, x: Tensor, wait: Callable[[], None], rounds: int = 3) -> float:
    """The part of the forward pass from ``x_proj`` to ``out_norm`` (`SS2D.scan`), all blocks: median of ``rounds``."""
    shares = []
    for _ in range(rounds):
        with _clocked_scans(model, wait) as spent:
            wait()
            start = time.perf_counter()
            model(x)
            wait()
            shares.append(sum(spent) / (time.perf_counter() - start))
    return statistics.median(shares)


@contextmanager
def _clocked_scans(model: nn.Module, wait: Callable[[], None]) -> Iterator[list[float]]:
    """Collect the seconds of every call of `SS2D.scan` inside the ``with`` block."""
    spent: list[float] = []
    layers = [module for module in model.modules() if isinstance(module, SS2D)]

    def clocked(scan: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            wait()
            start = time.perf_counter()
            y = scan(x)
            wait()
            spent.append(time.perf_counter() - start)
            return y

        return run

    for layer in layers:
        layer.__dict__["scan"] = clocked(layer.scan)
    try:
        yield spent
    finally:
        for layer in layers:
            del layer.__dict__["scan"]


def train_race(config: BenchModelConfig, name: str, device: torch.device) -> Race:
    """Check the gradients of every backend, then time forward alone and a whole step of each."""
    x = _images(config, device)
    labels = torch.arange(config.batch, device=device)
    able = [
        backend
        for backend, row in BACKENDS.items()
        if row.obstacle(ScanCall("ss2d_scan", device.type, torch.float32)) is None
    ]
    expected = _gradients(_ours(config, name, "torch", device).double(), x.double(), labels)
    candidates, steps = [], {}
    for backend in able:
        model = _ours(config, name, backend, device)
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
    return _finish(config, title, measured)


# Models.


def _images(config: BenchModelConfig, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(config.batch, 3, config.size, config.size, generator=generator).to(device)


def _ours(config: BenchModelConfig, name: str, backend: str | None, device: torch.device) -> nn.Module:
    """The model with the same fresh weights at every call, in evaluation mode: nothing in it draws random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(name, **{**config.model_options, "selective_scan_backend": backend})
    return model.eval().to(device)


def _timm_model(name: str, size: int) -> nn.Module:
    import timm

    choices: tuple[dict[str, Any], ...] = ({"img_size": size}, {})
    for options in choices:  # models whose windows depend on the size must be told it; others refuse
        try:
            model: nn.Module = timm.create_model(name, **options)
            return model
        except TypeError:
            continue
    raise ConfigError(f"--peer {name!r} cannot be built by timm with its defaults")


def _check(config: BenchModelConfig, names: Sequence[str]) -> None:
    for option, value in (("size", config.size), ("batch", config.batch), ("rounds", config.rounds)):
        if value < 1:
            raise ConfigError(f"--{option} takes a number ≥ 1, not {value}")
    for name in names:
        model_config(name, **config.model_options)


def _check_timm(names: Sequence[str]) -> None:
    import timm

    for name in names:
        if not timm.is_model(name):
            raise ConfigError(f"--peer {name!r} is not a model of timm's{nearest(name, timm.list_models())}")


def _finish(config: BenchModelConfig, title: str, timings: Sequence[Timing]) -> Race:
    baseline = config.baseline or first_timed(timings)
    setting = {"size": config.size, "batch": config.batch, "model_options": config.model_options}
    return Race(title, baseline, with_ratios(timings, baseline), setting)


# What is timed, and what is right.


def _forward(name: str, model: nn.Module, x: Tensor, check: Callable[[], str], note: str) -> Candidate:
    return Candidate(name, lambda: model(x), check, note)


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


def _against_oracle(config: BenchModelConfig, name: str, model: nn.Module, x: Tensor) -> Callable[[], str]:
    def check() -> str:
        exact = _ours(config, name, "torch", x.device).double()
        return _wrong({"logits": model(x)}, {"logits": exact(x.double()).cpu()}, ALLOWED_LOGITS)

    return check


def _finite_logits(model: nn.Module, x: Tensor) -> Callable[[], str]:
    def check() -> str:
        logits = model(x)
        if logits.dim() != 2 or logits.shape[0] != x.shape[0]:
            return f"the output has shape {tuple(logits.shape)}, not (batch, classes)"
        return "" if logits.isfinite().all() else "the output is not finite"

    return check


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
        return _wrong(got, expected, ALLOWED_GRADIENTS)

    return check


def _wrong(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], allowed: float) -> str:
    # A gradient that is 0 but for rounding has no scale of its own.
    floor = 1e-6 * max(float(want.abs().max()) for want in expected.values())
    for name, want in expected.items():
        error = relative_error(got[name], want, floor)
        if not error <= allowed:
            return f"the error of {name} is {error:.1e} of its largest value, more than {allowed:.1e}"
    return ""
