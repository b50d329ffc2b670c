"""The table of backends: names, reasons, who decides, and the proof of what ran."""

import pytest
import torch

import vmamba
from vmamba import BackendError
from vmamba.scan import dispatch, selective_scan, ss2d_scan
from vmamba.scan.dispatch import BACKENDS, ambient, check_name, choose

VARIABLE = "VMAMBA_SELECTIVE_SCAN_BACKEND"


def tensors(dtype=torch.float32):
    torch.manual_seed(0)
    b, k, d, n, length = 1, 2, 3, 2, 9
    u, delta = torch.randn(2, b, k * d, length).to(dtype)
    B, C = torch.randn(2, b, k, n, length).to(dtype)
    return u, delta, -torch.rand(k * d, n), B, C


def ran(**options):
    with vmamba.recorded_runs() as runs:
        selective_scan(*tensors(), **options)
    assert len(runs) == 1
    return runs[0].backend


def test_the_order_is_best_first():
    assert list(BACKENDS) == ["oflex", "mamba", "torch"]


def test_core_names_both_ways_out():
    with pytest.raises(BackendError) as caught:
        check_name("core")
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, AssertionError)
    assert '[None, "oflex", "mamba", "torch"]' in message
    assert '"oflex"' in message
    assert '"mamba"' in message
    assert "mamba-ssm" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["oflx", "", 3, "OFLEX"])
def test_unknown_names(name):
    with pytest.raises(BackendError, match="legal values"):
        selective_scan(*tensors(), backend=name)


def test_a_named_backend_that_cannot_run_is_an_error_not_another():
    with vmamba.recorded_runs() as runs, pytest.raises(BackendError) as caught:
        selective_scan(*tensors(), backend="mamba")
    assert not runs
    assert "cpu" in str(caught.value)
    assert "cuda" in str(caught.value)
    with pytest.raises(BackendError, match=r"float64.*float32"):
        choose("oflex", "selective_scan", "cpu", torch.float64)


def test_none_falls_through_by_call():
    assert choose(None, "selective_scan", "cpu", torch.float64) == "torch"
    assert choose(None, "selective_scan", "meta", torch.float32) == "torch"


def test_who_decides(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    automatic = choose(None, "selective_scan", "cpu", torch.float32)
    other = "torch"
    assert ambient() is None
    assert ambient("mamba") == "mamba"
    assert ran() == automatic
    monkeypatch.setenv(VARIABLE, other)
    assert ambient("mamba") == other
    assert ran() == other
    with vmamba.backend(automatic):
        assert ran() == automatic
        assert ran(backend=other) == other
        with vmamba.backend(None):
            assert ran() == other
    monkeypatch.setenv(VARIABLE, "cuda")
    with pytest.raises(BackendError, match=f"{VARIABLE}='cuda'"):
        ran()


def test_context_manager_checks_the_name_and_restores():
    with pytest.raises(BackendError, match="tourch"), vmamba.backend("tourch"):
        pass
    with pytest.raises(RuntimeError, match="inside"), vmamba.backend("torch"):
        raise RuntimeError("inside")
    assert ambient() is None


def test_a_compiled_function_follows_the_with_block():
    compiled = torch.compile(lambda *given: selective_scan(*given), backend="eager", fullgraph=True)
    given = tensors()
    with vmamba.recorded_runs() as runs:
        automatic = compiled(*given)
    kernel = [run.backend for run in runs]
    with vmamba.recorded_runs() as runs, vmamba.backend("torch"):
        plain = compiled(*given)
    assert not any(run.backend == "oflex" for run in runs)
    assert kernel in ([], ["oflex"])
    torch.testing.assert_close(automatic, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", ["selective_scan", "ss2d_scan"])
def test_backends_are_told_the_sizes_of_the_scan(op, monkeypatch):
    seen = []
    monkeypatch.setattr(dispatch, "choose_for", lambda name, call: seen.append(call) or "torch")
    if op == "selective_scan":
        selective_scan(*tensors())
    else:
        x, x_dbl = torch.ones(1, 3, 3, 2), torch.ones(1, 3, 3, 4, 1 + 2 * 2)
        ss2d_scan(x, x_dbl, torch.ones(4, 2, 1), None, -torch.ones(8, 2), None)
    (call,) = seen
    channels = 6 if op == "selective_scan" else 8  # of all directions
    assert (call.op, call.states, call.channels, call.length, call.elements) == (op, 2, channels, 9, 9 * channels)
