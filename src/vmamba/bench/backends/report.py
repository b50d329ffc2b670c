"""What scans run on this machine: each backend and what keeps it from running, what ``None`` picks, and who decides."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vmamba.bench.backends.check import OPERATORS, Check, run_checks
from vmamba.bench.measure import cpu_name
from vmamba.errors import BackendError
from vmamba.kernels.interface import Obstacle, Operator, ScanCall
from vmamba.output import check_writable_file, write_json
from vmamba.scan.dispatch import BACKENDS, ENVIRONMENT_VARIABLE, Backend, check_name, choose
from vmamba.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_NO_GPU = Obstacle("torch sees no GPU", "needs a GPU and a build of torch that supports it")


@dataclass(frozen=True)
class Device:
    """A place where tensors can be: ``"cpu"``, ``"cuda:0"``, …; ``"cuda"``, not ``present``, where there is no GPU."""

    name: str
    description: str
    present: bool = True

    @property
    def type(self) -> str:
        """The ``torch.device.type``."""
        return self.name.partition(":")[0]


@dataclass(frozen=True)
class Availability:
    """Whether a backend runs on a device; ``obstacle`` says why not and the mend, ``details`` what will run."""

    backend: str
    summary: str
    device: str
    obstacle: Obstacle | None
    details: dict[str, str]


@dataclass(frozen=True)
class Pick:
    """What ``selective_scan_backend=None`` runs for calls of one operator on one device, by dtype."""

    device: str
    op: str
    by_dtype: dict[str, str]

    def __str__(self) -> str:
        usual = self.by_dtype["float32"]
        others = [f"{name} for {dtype}" for dtype, name in self.by_dtype.items() if name != usual]
        return f"{self.op}: {', '.join([usual, *others])}"


@dataclass(frozen=True)
class Report:
    """All that ``vmamba backends`` says.

    Attributes:
        versions: of vmamba and torch.
        threads: ``torch.get_num_threads()``, which the CPU kernels use.
        environment: the value of ``VMAMBA_SELECTIVE_SCAN_BACKEND``, or None.
        environment_problem: why that value makes scans fail here, or an empty string.
        checks: measurements, empty unless asked for.
    """

    versions: dict[str, str]
    threads: int
    devices: list[Device]
    availability: list[Availability]
    picks: list[Pick]
    environment: str | None
    environment_problem: str
    recommendation: str
    checks: list[Check]

    @property
    def passed(self) -> bool:
        """Whether every check passed and the environment asks for something that runs here."""
        return not self.environment_problem and all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values: dict[str, Any] = dataclasses.asdict(self)
        for check, of in zip(values["checks"], self.checks, strict=True):
            check["passed"] = of.passed
        return {**values, "passed": self.passed}


def backends_report(check: bool = False) -> Report:
    """Look at this machine; with ``check`` also measure every backend that can run (seconds)."""
    devices = _devices()
    availability = [_availability(backend, device) for backend in BACKENDS.values() for device in devices]
    present = [device for device in devices if device.present]
    environment = os.environ.get(ENVIRONMENT_VARIABLE) or None
    picks = [_pick(device.name, op) for device in present for op in OPERATORS]
    return Report(
        versions={"vmamba": __version__, "torch": torch.__version__},
        threads=torch.get_num_threads(),
        devices=devices,
        availability=availability,
        picks=picks,
        environment=environment,
        environment_problem=_environment_problem(environment, present),
        recommendation=_recommendation(present, availability, picks, environment),
        checks=[one for device in present for one in run_checks(device.name)] if check else [],
    )


def run_backends(check: bool, json_path: Path | None, console: Console) -> int:
    """Print the report and, where asked, write it as JSON.

    Returns:
        0; 1 where a check failed or the environment variable asks for what cannot run here.

    Raises:
        OutputError: ``json_path`` cannot be written; said before anything is measured where that can be known.
    """
    if json_path is not None:
        check_writable_file(json_path)
    report = backends_report(check)
    render(report, console)
    if json_path is not None:
        write_json(json_path, report.to_dict())
    return 0 if report.passed else 1


def render(report: Report, console: Console) -> None:
    """Print ``report``; lines are never cut, so that commands in them can be copied."""
    say = _speaker(console)

    say(", ".join(f"{name} {version}" for name, version in report.versions.items()))
    width = max(len(device.name) for device in report.devices)
    for device in report.devices:
        say(f"  {device.name:<{width}}  {device.description}")

    for name, backend in BACKENDS.items():
        say()
        say(f"{name}: {backend.summary}", "bold")
        for row in (row for row in report.availability if row.backend == name):
            if row.obstacle is None:
                details = ", ".join(f"{key} {value}" for key, value in row.details.items())
                say(f"  {row.device:<{width}}  available{f' ({details})' if details else ''}", "green")
            else:
                say(f"  {row.device:<{width}}  not available: {row.obstacle.reason}", "yellow")
                if row.obstacle.mend:
                    say(f"  {'':<{width}}  -> {row.obstacle.mend}")

    say()
    say("selective_scan_backend=None picks", "bold")
    for device in report.devices:
        picks = "; ".join(str(pick) for pick in report.picks if pick.device == device.name)
        say(f"  {device.name:<{width}}  {picks or 'nothing: there is none'}")

    say()
    say("Who decides, strongest first", "bold")
    say("  1. the call's own backend= argument")
    say('  2. with vmamba.backend("…"): around the call')
    say(f"  3. the environment variable {ENVIRONMENT_VARIABLE}: {report.environment or 'not set'}")
    say("  4. the model's selective_scan_backend")
    if report.environment_problem:
        say(f"  {report.environment_problem}", "red")

    if report.checks:
        say()
        _render_checks(report.checks, report.threads, console)
    say()
    say(f"Recommendation: {report.recommendation}", "bold")


def _speaker(console: Console) -> Callable[..., None]:
    def say(line: str = "", style: str | None = None) -> None:
        console.print(line, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)

    return say


def _render_checks(checks: list[Check], threads: int, console: Console) -> None:
    say = _speaker(console)
    head = ["dtype", "backend", "y err", "grad err", "fwd ms", "bwd ms", "fwd MiB", "f+b MiB", ""]
    rows = [head, *map(_cells, checks)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]

    def line_of(cells: list[str]) -> str:
        words = [cell.ljust(width) for cell, width in zip(cells[:2], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(cells[2:-1], widths[2:], strict=False)]
        return "  ".join([*words, *numbers, cells[-1]]).rstrip()

    for device, op in dict.fromkeys((check.device, check.op) for check in checks):
        say(f"Check of {op} on {device}{f', {threads} threads' if device == 'cpu' else ''}", "bold")
        say(line_of(head))
        for check in (check for check in checks if (check.device, check.op) == (device, op)):
            say(line_of(_cells(check)), None if check.passed else "red")
    for check in (check for check in checks if not check.passed):
        say(f"FAILED: {check.backend} on {check.device}, {check.op}, {check.dtype}: {check.failure}", "red")
    tolerances = {check.dtype: check.tolerance for check in checks}
    allowed = ", ".join(f"{tolerance:.0e} in {dtype}" for dtype, tolerance in tolerances.items())
    say(
        f"err: largest difference from the oracle in float64, as a part of its largest value; allowed: {allowed}", "dim"
    )
    say("ms: median of warm runs, the backends taking turns", "dim")
    say("MiB: most that torch's allocator held at once beyond the inputs, in forward and in both passes (f+b)", "dim")


def _cells(check: Check) -> list[str]:
    """The row of ``check`` in the table of checks."""
    errors = (
        [f"{error:.0e}" for error in (check.errors["y"], check.worst(gradients_only=True)[1])] if check.errors else []
    )
    times = (check.forward_ms, check.backward_ms)
    memory = (check.forward_mib, check.training_mib)
    return [
        check.dtype,
        check.backend,
        *(errors or ["–", "–"]),
        *("–" if value is None else f"{value:.2f}" for value in times),
        *("–" if value is None else f"{value:.1f}" for value in memory),
        "ok" if check.passed else "FAILED",
    ]


# What is here.


def _devices() -> list[Device]:
    devices = [Device("cpu", f"{cpu_name()}, {torch.get_num_threads()} threads")]
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return [*devices, Device("cuda", "no GPU that torch can see", present=False)]
    for index in range(torch.accelerator.device_count()):
        name = f"{accelerator.type}:{index}"
        described = getattr(getattr(torch, accelerator.type, None), "get_device_name", None)
        devices.append(Device(name, str(described(index)) if described else accelerator.type))
    return devices


def _availability(backend: Backend, device: Device) -> Availability:
    obstacle = _machine_obstacle(backend, device)
    module = backend.on(device.type)
    details = getattr(module, "details", None) if obstacle is None else None
    return Availability(backend.name, backend.summary, device.name, obstacle, dict(details()) if details else {})


def _machine_obstacle(backend: Backend, device: Device) -> Obstacle | None:
    try:
        obstacle = backend.machine_obstacle(device.type)
    except BackendError as error:  # another environment variable asks for what is not here
        return Obstacle(str(error), "")
    return obstacle or (None if device.present else _NO_GPU)


def _pick(device: str, op: Operator) -> Pick:
    by_dtype = {}
    for dtype in _DTYPES:
        word = str(dtype).removeprefix("torch.")
        try:
            by_dtype[word] = choose(None, op, torch.device(device).type, dtype)
        except BackendError as error:
            by_dtype[word] = f"nothing ({error})"
    return Pick(device, op, by_dtype)


def _environment_problem(value: str | None, present: list[Device]) -> str:
    """Why every scan that names no backend fails here with this value of the environment variable."""
    if value is None:
        return ""
    try:
        name = check_name(value, ENVIRONMENT_VARIABLE)
        assert name is not None
        reasons = []
        for device in present:
            obstacle = BACKENDS[name].obstacle(ScanCall("selective_scan", device.type, torch.float32))
            if obstacle is None:
                return ""
            reasons.append(f"{device.name}: {obstacle}")
    except BackendError as error:
        return str(error)
    return f"{ENVIRONMENT_VARIABLE}={value} cannot run here; {'; '.join(reasons)}; or unset it"


def _recommendation(
    present: list[Device], availability: list[Availability], picks: list[Pick], environment: str | None
) -> str:
    """One line about the best device here: leave it to None, and what would make that faster."""
    device = present[-1]
    pick = next(pick for pick in picks if pick.device == device.name).by_dtype["float32"]
    advice = f"leave selective_scan_backend at None; it runs {pick} on {device.name}"
    for row in availability:
        if row.backend == pick:
            break
        if row.device == device.name and row.obstacle is not None and BACKENDS[row.backend].on(device.type):
            advice += f". {row.backend} comes before it, once mended: {row.obstacle}"
            break
    if environment is not None:
        advice += f". Now {ENVIRONMENT_VARIABLE}={environment} overrides that: unset it"
    return advice
