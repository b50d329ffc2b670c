"""Times the forward pass of whole models, beside peers, and the share of it spent in the scan."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vmamba.bench.engines import ENGINES, Absent, runner
from vmamba.bench.measure import waiter
from vmamba.bench.report import machine, report
from vmamba.bench.setup import (
    BenchModelConfig,
    check_models,
    check_timm,
    finished_race,
    images,
    ours,
    timm_model,
    whole_numbers,
    why_wrong,
)
from vmamba.bench.timing import Candidate, Race, Timing, race, threads
from vmamba.device import pick_device
from vmamba.errors import ConfigError, nearest
from vmamba.inference.engines import TOLERANCE
from vmamba.layers import SS2D
from vmamba.output import check_writable_folder

if TYPE_CHECKING:
    from rich.console import Console

#: By what the model computes in: the largest error of the logits, as a part of the largest of them, against the same
#: weights in float64 on the torch backend. The bounds are those that `vmamba.optimize` holds its engines to.
ALLOWED = {str(dtype).removeprefix("torch."): error for dtype, error in TOLERANCE.items()}


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
        return cls(engine, dtype, whole_numbers("image_size", size), whole_numbers("batch_size", batch))


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
    return finished_race(
        config, f"forward, {config.batch}×3×{config.size}×{config.size}, {dtype}", [*measured, *absent]
    )


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


def _against_oracle(
    config: BenchModelConfig, name: str, x: Tensor, allowed: float
) -> Callable[[Callable[[], Tensor]], str]:
    def check(run: Callable[[], Tensor]) -> str:
        exact = ours(config, name, "torch", x.device).double()
        return why_wrong({"logits": run()}, {"logits": exact(x.double()).cpu()}, allowed)

    return check


def _finite_logits(x: Tensor) -> Callable[[Callable[[], Tensor]], str]:
    def check(run: Callable[[], Tensor]) -> str:
        logits = run()
        if logits.dim() != 2 or logits.shape[0] != x.shape[0]:
            return f"the output has shape {tuple(logits.shape)}, not (batch, classes)"
        return "" if logits.isfinite().all() else "the output is not finite"

    return check
