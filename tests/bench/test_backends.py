"""`vmamba backends`: what it says about this machine, and that its check catches what is wrong."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from vmamba.bench.backends import check as backends_check
from vmamba.bench.backends import report as backends_report
from vmamba.bench.backends.check import OPERATORS, Check, run_checks
from vmamba.bench.backends.report import Device, Report, render, run_backends
from vmamba.errors import OutputError
from vmamba.kernels.interface import Obstacle, ScanRun, record
from vmamba.scan import selective_scan_reference
from vmamba.scan.dispatch import BACKENDS, ENVIRONMENT_VARIABLE, Backend, choose

HERE = [name for name, backend in BACKENDS.items() if backend.machine_obstacle("cpu") is None]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


#: A size that takes no time, with odd lengths.
SMALL = {"BATCH": 2, "CHANNELS": 6, "STATES": 3, "SIDE": 5, "RANK": 2, "_MAX_ROUNDS": 3}


@pytest.fixture(scope="module")
def small_checks() -> list[Check]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(backends_check, name, value)
        return run_checks("cpu")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks of the small size, without the profiler, which takes most of their time."""
    for name, value in SMALL.items():
        monkeypatch.setattr(backends_check, name, value)
    monkeypatch.setattr(backends_check, "_peak_mib", lambda device, run: None)


def rendered(report: Report, width: int = 60) -> str:
    out = io.StringIO()
    render(report, Console(file=out, width=width))
    return out.getvalue()


def register(
    monkeypatch: pytest.MonkeyPatch,
    scan: Callable[..., Tensor],
    details: dict[str, str] | None = None,
    ran: str = "fake",
) -> None:
    """Put a backend named "fake" at the table's end."""
    module = ModuleType("fake")

    def selective_scan(*args: Any) -> Tensor:
        record(ScanRun(ran, "selective_scan", "quick"))
        return scan(*args)

    module.machine_obstacle = lambda: None  # type: ignore[attr-defined]
    module.call_obstacle = lambda call: None  # type: ignore[attr-defined]
    module.selective_scan = selective_scan  # type: ignore[attr-defined]
    if details is not None:
        module.details = lambda: details  # type: ignore[attr-defined]
    monkeypatch.setitem(BACKENDS, "fake", Backend("fake", "a backend for this test", {"cpu": module}, module))  # type: ignore[index]


def fake_checks() -> list[Check]:
    return [check for check in run_checks("cpu") if check.backend == "fake"]


# Without measuring


def test_every_backend_and_device_has_its_row() -> None:
    report = backends_report.backends_report()
    assert report.devices[0].name == "cpu"
    assert {(row.backend, row.device) for row in report.availability} == {
        (name, device.name) for name in BACKENDS for device in report.devices
    }
    for row in report.availability:
        if row.device == "cpu":
            assert row.obstacle == BACKENDS[row.backend].machine_obstacle("cpu")
    assert report.checks == []
    assert report.passed


def test_the_picks_are_those_of_the_registry() -> None:
    report = backends_report.backends_report()
    picks = {(pick.device, pick.op): pick.by_dtype for pick in report.picks}
    for op in OPERATORS:
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            assert picks["cpu", op][str(dtype).removeprefix("torch.")] == choose(None, op, "cpu", dtype)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_runs_on_one_and_mamba_says_what_it_needs() -> None:
    report = backends_report.backends_report()
    rows = {row.backend: row for row in report.availability if row.device == "cuda"}
    assert all(row.obstacle is not None for row in rows.values())
    assert rows["mamba"].obstacle == BACKENDS["mamba"].machine_obstacle("cuda")
    assert not [pick for pick in report.picks if pick.device == "cuda"]
    assert "no GPU" in rendered(report)


def test_rendering_never_cuts_a_name_a_reason_or_a_mend() -> None:
    report = backends_report.backends_report()
    said = rendered(report, width=30)
    for row in report.availability:
        assert f"{row.backend}: {row.summary}\n" in said
        if row.obstacle is not None:
            assert f"{row.obstacle.reason}\n" in said
            assert f"{row.obstacle.mend}\n" in said
    for pick in report.picks:
        assert str(pick) in said
    assert f"Recommendation: {report.recommendation}\n" in said


def test_a_pick_names_the_dtypes_that_differ() -> None:
    pick = backends_report.Pick("cpu", "ss2d_scan", {"float32": "oflex", "bfloat16": "oflex", "float64": "torch"})
    assert str(pick) == "ss2d_scan: oflex, torch for float64"


def test_details_of_a_backend_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, selective_scan_reference, {"isa": "avx9", "library": "/lib/fake.so"})
    report = backends_report.backends_report()
    assert "cpu   available (isa avx9, library /lib/fake.so)\n" in rendered(report)


def test_a_gpu_gets_rows_picks_and_a_recommendation(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Device("cuda:0", "Fake GPU")
    monkeypatch.setattr(backends_report, "_devices", lambda: [Device("cpu", "a CPU"), gpu])
    report = backends_report.backends_report()
    rows = {row.backend: row.obstacle for row in report.availability if row.device == "cuda:0"}
    picks = {pick.by_dtype["float32"] for pick in report.picks if pick.device == "cuda:0"}
    assert picks == {choose(None, "ss2d_scan", "cuda", torch.float32)}
    assert rows["torch"] is None
    assert rows["mamba"] is not None
    assert f"it runs {picks.pop()} on cuda:0" in report.recommendation
    better = next(name for name in BACKENDS if BACKENDS[name].on("cuda"))
    if rows[better] is not None:
        assert f"{better} comes before it, once mended: {rows[better]}" in report.recommendation
    assert "Fake GPU" in rendered(report)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("core", "was removed"),
        ("oflx", "did you mean 'oflex'"),
        ("mamba", "VMAMBA_SELECTIVE_SCAN_BACKEND=mamba cannot run here; cpu: 'mamba' has no kernel for cpu tensors"),
    ],
)
@pytest.mark.skipif(torch.accelerator.is_available(), reason="mamba may run on the GPU")
def test_an_environment_that_makes_scans_fail_is_said_and_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, value: str, words: str
) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, value)
    report = backends_report.backends_report()
    assert words in report.environment_problem
    assert f"{ENVIRONMENT_VARIABLE}: {value}\n" in rendered(report)
    assert words in rendered(report)
    assert run_backends(False, None, Console(file=io.StringIO())) == 1


def test_an_environment_that_works_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{ENVIRONMENT_VARIABLE}: not set\n" in rendered(backends_report.backends_report())
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "torch")
    report = backends_report.backends_report()
    assert report.environment == "torch"
    assert report.environment_problem == ""
    assert f"{ENVIRONMENT_VARIABLE}=torch overrides that" in report.recommendation
    assert run_backends(False, None, Console(file=io.StringIO())) == 0


# Measuring


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("name", HERE)
def test_every_backend_here_passes_its_check(small_checks: list[Check], name: str, op: str, dtype: str) -> None:
    (check,) = [c for c in small_checks if (c.backend, c.op, c.dtype) == (name, op, dtype)]
    assert check.failure == ""
    assert check.passed
    inputs = ["u", "delta", "A", "B", "C", "D", "delta_bias"]
    if op == "ss2d_scan":
        inputs = ["x", "x_dbl", "dt_weight", "dt_bias", "A", "D"]
    elif op == "ssd_scan":
        inputs = ["x", "dt", "A", "B", "C", "D", "dt_bias"]
    assert list(check.errors) == ["y", *(f"d{name}" for name in inputs)]
    assert all(0 <= error <= check.tolerance for error in check.errors.values())
    # An error of exactly nothing everywhere would mean that the oracle was compared with itself.
    assert max(check.errors.values()) > 0
    assert check.forward_ms is not None
    assert check.forward_ms > 0
    assert check.backward_ms is not None
    assert check.backward_ms > 0
    assert check.forward_mib is not None
    assert check.training_mib is not None
    output = 2 * 25 * 6 * (1 if op == "ss2d_scan" else 4) * 4 / 2**20
    assert output <= check.forward_mib < check.training_mib


@pytest.mark.long
def test_the_full_size_passes_and_leaves_through_the_command(tmp_path: Path) -> None:
    out = io.StringIO()
    assert run_backends(True, tmp_path / "report.json", Console(file=out, width=40)) == 0
    said = out.getvalue()
    for op in OPERATORS:
        assert f"Check of {op} on cpu, {torch.get_num_threads()} threads" in said
    assert len(re.findall(r"  ok\n", said)) == 2 * len(OPERATORS) * len(HERE)
    assert "…" not in said.partition("Check of")[2].partition("error:")[0]
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["passed"] is True
    assert len(values["checks"]) == 2 * len(OPERATORS) * len(HERE)
    assert all(check["passed"] and check["forward_ms"] > 0 for check in values["checks"])


def scaled_gradient(*args: Any) -> Tensor:
    u, *others = args
    return selective_scan_reference(u.detach() + (u - u.detach()) * 1.001, *others)


def not_a_number(*args: Any) -> Tensor:
    y = selective_scan_reference(*args)
    return y.index_fill(2, torch.tensor([3]), float("nan"))


def raises(*args: Any) -> Tensor:
    raise RuntimeError("kernel exploded")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("scan", "words"),
    [
        (lambda *args: selective_scan_reference(*args) * 1.0001, "more than 7.6e-06"),
        (scaled_gradient, "the error of d"),
        (not_a_number, "is nan"),
        (raises, "RuntimeError: kernel exploded"),
    ],
)
def test_a_wrong_backend_fails_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scan: Callable[..., Tensor], words: str
) -> None:
    register(monkeypatch, scan)
    wrong = [check for check in fake_checks() if check.dtype == "float32"]
    assert len(wrong) == 2
    assert not any(check.passed for check in wrong)
    assert all(words in check.failure for check in wrong)

    out = io.StringIO()
    assert run_backends(True, tmp_path / "report.json", Console(file=out, width=80)) == 1
    assert "FAILED: fake on cpu, ss2d_scan, float32: " in out.getvalue()
    assert words in out.getvalue()
    values = json.loads((tmp_path / "report.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert {check["backend"] for check in values["checks"] if check["passed"]} >= set(HERE)
    assert values["passed"] is False


def test_an_error_that_is_not_a_number_fails_and_is_the_worst() -> None:
    nan = float("nan")
    check = Check("fake", "ss2d_scan", "cpu", "float32", 1e-5, {"y": 0.0, "dx": 1e-6, "dA": nan, "dD": 9e-6})
    assert not check.passed
    assert check.worst()[0] == check.worst(gradients_only=True)[0] == "dA"
    assert "dA is nan" in check.failure


@pytest.mark.usefixtures("small")
def test_a_right_backend_passes_with_its_detail(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, selective_scan_reference)
    checks = fake_checks()
    assert len(checks) == 4
    assert all(check.passed and check.detail == "quick" for check in checks)


@pytest.mark.usefixtures("small")
def test_a_backend_that_hands_its_call_to_another_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, selective_scan_reference, ran="torch")
    assert all("what ran was ['torch']" in check.failure for check in fake_checks())


@pytest.mark.usefixtures("small")
def test_a_call_that_a_backend_refuses_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, selective_scan_reference)
    module = BACKENDS["fake"].on("cpu")
    refuse = lambda call: Obstacle("no", "none") if call.dtype == torch.bfloat16 else None  # noqa: E731
    monkeypatch.setattr(module, "call_obstacle", refuse)
    assert {check.dtype for check in fake_checks()} == {"float32"}


def test_the_checks_do_not_heed_the_environment(monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "nonsense")
    checks = run_checks("cpu")
    assert {check.backend for check in checks} == set(HERE)
    assert all(check.passed for check in checks)


# Memory

MIB = 1 << 20


@torch.library.custom_op("vmamba_test::scratch", mutates_args=())
def scratch_op(x: Tensor) -> Tensor:
    """Three times its input is live inside."""
    first = torch.empty_like(x)
    second = torch.empty_like(x)
    del first, second
    return torch.empty_like(x)


def test_peak_memory_counts_what_is_live_at_once() -> None:
    def chain() -> Tensor:
        x = torch.empty(MIB, dtype=torch.uint8)
        y = torch.empty(2 * MIB, dtype=torch.uint8)
        del x
        z = torch.empty(MIB, dtype=torch.uint8)
        del y
        return z

    assert backends_check._peak_mib("cpu", chain) == pytest.approx(3, abs=0.01)
    assert backends_check._peak_mib("cpu", lambda: None) == 0


def test_peak_memory_sees_inside_custom_operators_but_not_the_inputs() -> None:
    x = torch.empty(MIB, dtype=torch.uint8)
    assert backends_check._peak_mib("cpu", lambda: scratch_op(x)) == pytest.approx(2, abs=0.01)


def test_the_profiler_is_quiet_and_leaves_the_environment(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
    backends_check._peak_mib("cpu", lambda: torch.ones(3))
    assert capfd.readouterr() == ("", "")
    assert "KINETO_LOG_LEVEL" not in os.environ


# JSON


def test_json_is_the_report(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert run_backends(False, path, Console(file=io.StringIO())) == 0
    values = json.loads(path.read_text())
    assert values == backends_report.backends_report().to_dict()
    assert {row["backend"] for row in values["availability"]} == set(BACKENDS)
    refused = [row["obstacle"] for row in values["availability"] if row["obstacle"]]
    assert all(obstacle["reason"] and obstacle["mend"] for obstacle in refused)


def test_a_place_that_cannot_be_written_is_said_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends_report, "backends_report", lambda check: pytest.fail("measured"))
    (tmp_path / "file").touch()
    for path, words in [(tmp_path, "is a folder"), (tmp_path / "file" / "report.json", "is a file")]:
        with pytest.raises(OutputError, match=words):
            run_backends(True, path, Console(file=io.StringIO()))
