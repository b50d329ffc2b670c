"""Times the scan operators: every backend that runs here, the plain loop, and whatever peers a caller adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from vmamba.bench.measure import waiter
from vmamba.bench.report import machine, report
from vmamba.bench.scan_calls import (
    Size,
    Tensors,
    leaves,
    make_inputs,
    relative_error,
    results,
    run_loop,
    run_scan,
    tolerance,
)
from vmamba.bench.timing import Candidate, Race, Timing, first_timed, race, threads, with_ratios
from vmamba.device import pick_device
from vmamba.errors import ConfigError
from vmamba.kernels.interface import ScanCall
from vmamba.output import check_writable_folder
from vmamba.scan import recorded_runs
from vmamba.scan.dispatch import BACKENDS

if TYPE_CHECKING:
    from rich.console import Console

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

#: First and second stage of VMamba-T at 224×224 pixels: one image, eight images; and one stage with Mamba's 16 states;
#: of Mamba-2's scan the first stage of `vmamba_tiny_m2`.
SHAPES = {
    "selective_scan": ("1,4,96,1,3136", "8,4,96,1,3136", "1,4,192,16,3136"),
    "ss2d_scan": ("1,56,56,96,1,6", "8,56,56,96,1,6", "1,56,56,192,16,12"),
    "ssd_scan": ("1,3136,24,16,4,64", "8,3136,24,16,4,64"),
}
LETTERS = {"selective_scan": "b,k,d,n,l", "ss2d_scan": "b,h,w,d,n,r", "ssd_scan": "b,l,h,p,g,n"}
LOOP = "plain loop"


@dataclass(frozen=True)
class BenchScanConfig:
    """How to time scans.

    Attributes:
        op: The operator.
        backward: Time forward plus backward, all gradients, instead of forward alone.
        dtype: Of the activations; parameters are float32.
        device: auto, cpu, cuda, cuda:1, ...
        threads: torch's threads; without it as many as torch has by default.
        rounds: Timed turns of every candidate, at most.
        seconds: No turn starts after so long, for each shape.
        loop: Whether the plain loop (the readable reference, one step at a time) is timed too.
        baseline: Candidate that ratios refer to; by default the first that was timed.
        output: Folder for scan.json and scan.png.
    """

    op: Literal["selective_scan", "ss2d_scan", "ssd_scan"] = "selective_scan"
    backward: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"
    threads: int | None = None
    rounds: int = 20
    seconds: float = 20.0
    loop: bool = True
    baseline: str | None = None
    output: Path = Path("runs/bench")


@dataclass(frozen=True)
class ScanCase:
    """One call to time; what a peer is given.

    Attributes:
        inputs: the operator's arguments by name, on ``device``; they ask for gradients.
        y_gradient: what backward starts from, shaped as ``y``.
        expected: the oracle's results, float64: ``y``, and with ``backward`` the gradient ``d…`` of every input.
        allowed: the largest error, as a part of the largest value of a tensor.
    """

    op: str
    shape: str
    size: Size
    dtype: torch.dtype
    device: torch.device
    backward: bool
    inputs: Tensors
    y_gradient: Tensor
    expected: Tensors = field(repr=False)
    allowed: float

    def wrong(self, got: Tensors) -> str:
        """Why ``got`` is not what was expected, or an empty string."""
        for name, want in self.expected.items():
            if name not in got or got[name].shape != want.shape:
                return f"{name} has shape {tuple(got[name].shape) if name in got else 'none'}, not {tuple(want.shape)}"
            error = relative_error(got[name], want)
            if not error <= self.allowed:
                return f"the error of {name} is {error:.1e} of its largest value, more than {self.allowed:.1e}"
        return ""

    def candidate(
        self, name: str, run: Callable[[], Any], to_tensors: Callable[[Any], Tensors] = lambda got: got, note: str = ""
    ) -> Candidate:
        """A candidate that is checked against the oracle; ``to_tensors`` turns what ``run`` returns into results."""
        return Candidate(name, run, lambda: self.wrong(to_tensors(run())), note)

    def torch_candidate(self, name: str, scan: Callable[[Tensors], Tensor], note: str = "") -> Candidate:
        """A candidate whose gradients are autograd's."""

        def run() -> Tensors:
            if self.backward:
                return results(scan(self.inputs), self.inputs, self.y_gradient)
            with torch.no_grad():
                return {"y": scan(self.inputs)}

        return self.candidate(name, run, note=note)


#: Makes a candidate for a case, or says why it cannot take part.
Peer = Callable[[ScanCase], "Candidate | str"]


def run_bench_scan(
    config: BenchScanConfig, console: Console, shapes: Sequence[str] = (), peers: Mapping[str, Peer] | None = None
) -> int:
    """Time every shape, print, and write ``scan.json`` and ``scan.png``.

    Args:
        config: the options.
        console: where the tables go.
        shapes: each spelt in the operator's `LETTERS`, such as ``"1,4,96,1,3136"``; the defaults are those of `SHAPES`.
        peers: further candidates by name.

    Returns:
        0; 1 where a candidate was wrong.

    Raises:
        ConfigError: an option or shape that is not legal.
        OutputError: the folder cannot be written, said before anything is measured.
    """
    sizes = {shape: parse_shape(config.op, shape) for shape in shapes or SHAPES[config.op]}
    if config.rounds < 1:
        raise ConfigError(f"--rounds takes a number ≥ 1, not {config.rounds}")
    check_writable_folder(config.output)
    device = pick_device(config.device)
    with threads(config.threads):
        races = [scan_race(config, device, shape, size, peers or {}) for shape, size in sizes.items()]
        return report("scan", races, machine(device), config.output, console)


def parse_shape(op: str, text: str) -> Size:
    """The size that a shape in an operator's `LETTERS` spells.

    Raises:
        ConfigError: it does not.
    """
    letters = LETTERS[op]
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != len(letters.split(",")) or min(numbers) < 1:
        raise ConfigError(f"--shape of {op} takes {letters}, whole numbers ≥ 1 as in {SHAPES[op][0]}, not {text!r}")
    if op == "selective_scan":
        b, k, d, n, length = numbers
        return Size(b, k, d, n, 1, length)
    if op == "ssd_scan":
        b, length, heads, p, groups, n = numbers
        if heads % groups:
            raise ConfigError(f"--shape of {op}: {groups} groups do not divide {heads} heads, given {text!r}")
        return Size(b, groups, heads // groups * p, n, 1, length, p)
    b, h, w, d, n, r = numbers
    return Size(b, 4, d, n, h, w, r)


def scan_race(config: BenchScanConfig, device: torch.device, shape: str, size: Size, peers: Mapping[str, Peer]) -> Race:
    """Check and time all candidates on one shape.

    Raises:
        ConfigError: ``config.baseline`` names no candidate.
    """
    case = make_case(config, device, shape, size)
    candidates, absent = _own(case), []
    if config.loop:
        note = "one step at a time in PyTorch; the readable reference, not a product"
        candidates.append(case.torch_candidate(LOOP, lambda inputs: run_loop(case.op, inputs), note))
    for name, peer in peers.items():
        made = peer(case)
        if isinstance(made, str):
            absent.append(Timing(name, absent=made))
        else:
            candidates.append(made)
    names = [candidate.name for candidate in candidates]
    if config.baseline is not None and config.baseline not in names:
        raise ConfigError(f"--baseline {config.baseline!r} is not among the candidates {', '.join(names)}")
    timings = race(candidates, rounds=config.rounds, seconds=config.seconds, wait=waiter(device))
    baseline = config.baseline or first_timed(timings)
    passes = "forward and backward" if config.backward else "forward"
    return Race(
        title=f"{config.op} ({LETTERS[config.op]}) = ({shape}), {passes}, {config.dtype}",
        baseline=baseline,
        timings=(*with_ratios(timings, baseline), *absent),
        setting={
            "op": config.op,
            "shape": dict(zip(LETTERS[config.op].split(","), map(int, shape.split(",")), strict=True)),
            "backward": config.backward,
            "dtype": config.dtype,
            "allowed_error": case.allowed,
        },
    )


def make_case(config: BenchScanConfig, device: torch.device, shape: str, size: Size) -> ScanCase:
    """Draw the inputs and ask the oracle, in float64 on the CPU."""
    dtype = DTYPES[config.dtype]
    inputs = make_inputs(config.op, dtype, size)
    exact = leaves(inputs, "cpu", torch.float64)
    with torch.set_grad_enabled(config.backward):
        y = run_loop(config.op, exact)
    y_gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    expected = results(y, exact, y_gradient) if config.backward else {"y": y}
    return ScanCase(
        op=config.op,
        shape=shape,
        size=size,
        dtype=dtype,
        device=device,
        backward=config.backward,
        inputs=leaves(inputs, str(device)),
        y_gradient=y_gradient.to(device),
        expected=expected,
        allowed=tolerance(dtype, size.h * size.w),
    )


def _own(case: ScanCase) -> list[Candidate]:
    """Every backend that can run the case; the check makes sure that it is the one that ran."""
    call = ScanCall(case.op, case.device.type, case.dtype)  # type: ignore[arg-type]
    return [_backend(case, name) for name, backend in BACKENDS.items() if backend.obstacle(call) is None]


def _backend(case: ScanCase, name: str) -> Candidate:
    scan = partial(run_scan, case.op, backend=name)
    candidate = case.torch_candidate(name, scan)

    def check() -> str:
        with recorded_runs() as runs:
            problem = "" if candidate.check is None else candidate.check()
        ran = {run.backend for run in runs}
        return problem if ran == {name} else f"what ran was {sorted(ran) or 'not recorded'}"

    return Candidate(name, candidate.run, check)
