"""Times whole models: forward latency beside peers, the share of it spent in the scan, and a training step."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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
from vmamba.optimized import TOLERANCE
from vmamba.tasks.bench_engines import ENGINES, Absent, runner
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
ALLOWED_GRADIENTS = 1e-3
#: The same for logits, by what the model computes in.
ALLOWED = {str(dtype).removeprefix("torch."): error for dtype, error in TOLERANCE.items()}


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


@dataclass(frozen=True)
class Grid:
    """What ``vmamba bench model`` goes through: every combination is a race of all models and engines.

    Attributes:
        engines: of `ENGINES`.
        dtypes: float32, bfloat16, float16.
        sizes, batches: as in `BenchModelConfig`, whose own are taken where these are empty.
    """

    engines: Sequence[str] = ("eager",)
    dtypes: Sequence[str] = ("float32",)
    sizes: Sequence[int] = ()
    batches: Sequence[int] = ()

    def __post_init__(self) -> None:
        for option, given, legal in (("engine", self.engines, ENGINES), ("dtype", self.dtypes, ALLOWED)):
            for name in given:
                if name not in legal:
                    raise ConfigError(f"--{option} {name!r}: want {' or '.join(legal)}{nearest(name, legal)}")

    @classmethod
    def from_words(
        cls,
        engine: Sequence[str] = ("eager",),
        dtype: Sequence[str] = ("float32",),
        size: Sequence[str] = (),
        batch: Sequence[str] = (),
    ) -> Grid:
        """The grid that the command line's words spell.

        Raises:
            ConfigError: an unknown engine or dtype, or a size that is no number.
        """
        for option, words in (("size", size), ("batch", batch)):
            for word in words:
                if not word.isdecimal():
                    raise ConfigError(f"--{option} takes a whole number ≥ 1, not {word!r}")
        return cls(engine, dtype, [int(word) for word in size], [int(word) for word in batch])


def run_bench_model(
    config: BenchModelConfig, names: Sequence[str], peers: Sequence[str], console: Console, grid: Grid | None = None
) -> int:
    """Time the forward pass of models of ours and of timm's; write ``model.json`` and ``model.png``.

    Args:
        config: the options; ``model_options`` are for our models alone.
        names: of our models.
        peers: names of timm's models, which are built with fresh weights.
        console: where the table goes.
        grid: engines, dtypes, sizes and batches; by default eager float32 at the configuration's size and batch.

    Returns:
        0; 1 where a candidate was wrong.

    Raises:
        ConfigError: an unknown model or an option that is not legal.
        OutputError: the folder cannot be written, said before anything is measured.
    """
    grid = Grid() if grid is None else grid
    configs = [
        dataclasses.replace(config, size=size, batch=batch)
        for batch in grid.batches or [config.batch]
        for size in grid.sizes or [config.size]
    ]
    for one in configs:
        check_models(one, names)
    check_timm(peers)
    check_writable_folder(config.output)
    device = pick_device(config.device)
    with threads(config.threads), torch.no_grad():
        races = [model_race(one, names, peers, device, grid.engines, dtype) for one in configs for dtype in grid.dtypes]
        return report("model", races, machine(device), config.output, console)


def run_bench_train(config: BenchModelConfig, name: str, console: Console) -> int:
    """Time forward alone and a training step with every backend; write ``train.json`` and ``train.png``.

    Returns, raises:
        as `run_bench_model`.
    """
    check_models(config, [name])
    check_writable_folder(config.output)
    device = pick_device(config.device)
    with threads(config.threads):
        one = train_race(config, name, device)
        return report("train", [one], machine(device), config.output, console)


def model_race(
    config: BenchModelConfig,
    names: Sequence[str],
    peers: Sequence[str],
    device: torch.device,
    engines: Sequence[str] = ("eager",),
    dtype: str = "float32",
) -> Race:
    """Check and time every model by every engine. Call it under ``torch.no_grad()``."""
    x, wait = images(config, device), waiter(device)
    models = {name: ours(config, name, None, device) for name in dict.fromkeys(names)}
    checks = {name: _against_oracle(config, name, x, ALLOWED[dtype]) for name in models}
    for name in dict.fromkeys(peers):
        models[name] = timm_model(name, config.size).eval().to(device)
        checks[name] = _finite_logits(x)
    candidates, absent, notes = [], [], []
    for name, model in models.items():
        note = "timm, fresh weights; only checked to be finite" if name in peers else ""
        for engine in dict.fromkeys(engines):
            title = name if tuple(engines) == ("eager",) else f"{name}, {engine}"
            try:
                run = runner(engine, model, x, getattr(torch, dtype))
            except Absent as why:
                absent.append(Timing(title, absent=str(why)))
                continue
            except Exception as error:  # one engine that fails is a result, not a reason to lose the others'
                absent.append(Timing(title, failure=f"{type(error).__name__}: {str(error)[:200]}"))
                continue
            candidates.append(Candidate(title, run, partial(checks[name], run), note))
            notes.append(name)
    timings = race(candidates, rounds=config.rounds, seconds=config.seconds, wait=wait)
    measured = []
    for timing, name, candidate in zip(timings, notes, candidates, strict=True):
        extra: dict[str, Any] = {}
        if timing.median_ms is not None:
            extra["images/s"] = config.batch / timing.median_ms * 1e3
            if name in names and candidate.name == name:  # eager alone: others do not call the layer
                extra["scan %"] = scan_share(models[name], x, wait) * 100
        measured.append(dataclasses.replace(timing, extra=extra))
    return _finish(config, f"forward, {config.batch}×3×{config.size}×{config.size}, {dtype}", [*measured, *absent])


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
    return _finish(config, title, measured)


# Models.


def images(config: BenchModelConfig, device: torch.device, size: int | None = None) -> Tensor:
    """Random images of the configuration's size, or another."""
    side = size or config.size
    return torch.randn(config.batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)


def ours(config: BenchModelConfig, name: str, backend: str | None, device: torch.device) -> nn.Module:
    """The model with the same fresh weights at every call, in evaluation mode: nothing in it draws random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(name, **{**config.model_options, "selective_scan_backend": backend})
    return model.eval().to(device)


def timm_model(name: str, size: int) -> nn.Module:
    """A model of timm's for images of this size, with fresh weights.

    Raises:
        ConfigError: it cannot be built with its defaults.
    """
    import timm

    choices: tuple[dict[str, Any], ...] = ({"img_size": size}, {})
    for options in choices:  # models whose windows depend on the size must be told it; others refuse
        try:
            model: nn.Module = timm.create_model(name, **options)
            return model
        except TypeError:
            continue
    raise ConfigError(f"--peer {name!r} cannot be built by timm with its defaults")


def check_models(config: BenchModelConfig, names: Sequence[str]) -> None:
    """Refuse options that are not legal, and unknown models of ours, before anything is measured.

    Raises:
        ConfigError: one is.
    """
    for option, value in (("size", config.size), ("batch", config.batch), ("rounds", config.rounds)):
        if value < 1:
            raise ConfigError(f"--{option} takes a number ≥ 1, not {value}")
    for name in names:
        model_config(name, **config.model_options)


def check_timm(names: Sequence[str]) -> None:
    """Refuse names that timm does not know.

    Raises:
        ConfigError: one is unknown.
    """
    import timm

    for name in names:
        if not timm.is_model(name):
            raise ConfigError(f"--peer {name!r} is not a model of timm's{nearest(name, timm.list_models())}")


def _finish(config: BenchModelConfig, title: str, timings: Sequence[Timing]) -> Race:
    baseline = config.baseline or first_timed(timings)
    setting = {"size": config.size, "batch": config.batch, "model_options": config.model_options}
    return Race(title, baseline, with_ratios(timings, baseline), setting)


# What is timed, and what is right.


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


def _against_oracle(
    config: BenchModelConfig, name: str, x: Tensor, allowed: float
) -> Callable[[Callable[[], Tensor]], str]:
    def check(run: Callable[[], Tensor]) -> str:
        exact = ours(config, name, "torch", x.device).double()
        return _wrong({"logits": run()}, {"logits": exact(x.double()).cpu()}, allowed)

    return check


def _finite_logits(x: Tensor) -> Callable[[Callable[[], Tensor]], str]:
    def check(run: Callable[[], Tensor]) -> str:
        logits = run()
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
