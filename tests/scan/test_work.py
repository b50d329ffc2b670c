"""What torch's counters are told: one figure for a scan, whichever backend runs it, forward and backward."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import vmamba
from vmamba.flops import FORMULAS
from vmamba.scan import cross_scan, selective_scan, ss2d_scan, ssd_scan
from vmamba.scan.dispatch import BACKENDS, choose
from vmamba.scan.work import scan_operations

B, K, D, N, R, H, W = 2, 4, 6, 3, 2, 5, 7
ELEMENTS = B * K * D * H * W


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).requires_grad_(True)

    return {
        "u": drawn(B, K * D, H * W),
        "delta": drawn(B, K * D, H * W),
        "A": (-drawn(K * D, N).exp()).detach().requires_grad_(True),
        "B": drawn(B, K, N, H * W),
        "C": drawn(B, K, N, H * W),
        "D": drawn(K * D),
        "delta_bias": drawn(K * D),
    }


def here() -> list[str]:
    return [name for name, backend in BACKENDS.items() if backend.machine_obstacle("cpu") is None]


@pytest.mark.parametrize("backend", here())
@pytest.mark.parametrize("states", [False, True])
def test_a_scan_counts_the_same_on_every_backend(backend: str, states: bool) -> None:
    given = tensors()
    options = {"z": given["u"].detach().clone(), "return_last_state": True} if states else {}
    with FlopCounterMode(display=False) as forward:
        y = selective_scan(**given, delta_softplus=True, backend=backend, **options)  # type: ignore[arg-type]
    assert forward.get_total_flops() == scan_operations(ELEMENTS, N) == ELEMENTS * (9 * N + 1)
    with FlopCounterMode(display=False) as backward:
        (y[0] if states else y).sum().backward()
    assert backward.get_total_flops() == 2 * scan_operations(ELEMENTS, N)
    assert all(t.grad is not None for t in given.values())


@pytest.mark.parametrize("backend", here())
def test_the_2d_scan_counts_its_step_projection_too(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, x_dbl, dt_weight = (
        torch.randn(shape, generator=generator).requires_grad_(True)
        for shape in ((B, H, W, D), (B, H, W, K, R + 2 * N), (K, D, R))
    )
    A = -torch.ones(K * D, N)
    with FlopCounterMode(display=False) as forward:
        y = ss2d_scan(x, x_dbl, dt_weight, None, A, None, backend=backend)
    once = 2 * R * ELEMENTS + scan_operations(ELEMENTS, N)
    assert forward.get_total_flops() == once
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert backward.get_total_flops() == 2 * once


def test_mamba2s_scan_counts_as_the_recurrence_that_it_is() -> None:
    x = torch.randn(B, 70, 4, D, requires_grad=True)
    dt, A, C = torch.rand(B, 70, 4), -torch.ones(4), torch.randn(B, 70, 2, N)
    once = B * 70 * 4 * D * N * 5
    with FlopCounterMode(display=False) as forward:
        y = ssd_scan(x, dt, A, C, C)
    assert forward.get_total_flops() == once
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert backward.get_total_flops() == 2 * once


def test_counting_changes_no_number() -> None:
    found = []
    for counted in (False, True):
        given = tensors()
        with FlopCounterMode(display=False) if counted else torch.enable_grad():
            y = selective_scan(**given, delta_softplus=True, backend="torch")
            y.square().sum().backward()
        found.append([y.detach(), *(t.grad for t in given.values())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_second_derivatives_go_through_a_counted_scan() -> None:
    u = tensors()["u"].detach().requires_grad_(True)
    rest = {name: t.detach() for name, t in tensors().items() if name != "u"}
    with FlopCounterMode(display=False):
        y = selective_scan(u, **rest, delta_softplus=True, backend="torch")
        (first,) = torch.autograd.grad(y.square().sum(), u, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), u)
    assert second.abs().sum() > 0


def test_every_operator_has_a_formula() -> None:
    cross_scan(torch.zeros(1, 1, 1, 1), "cross2d")
    ours = {name for name in dir(torch.ops.vmamba) if hasattr(getattr(torch.ops.vmamba, name), "overloads")}
    told = {operator._qualified_op_name.removeprefix("vmamba::") for operator in FORMULAS}
    assert ours - told <= {"scan_pieces"}  # a piece of an exported graph, which nobody runs in Python
    assert choose(None, "ss2d_scan", "cpu", torch.float32) in here()


@pytest.mark.parametrize("first", ["vmamba", "torch.utils.flop_counter"])
def test_the_order_of_imports_does_not_matter(first: str) -> None:
    second = "vmamba" if first != "vmamba" else "torch.utils.flop_counter"
    script = f"""
import sys, torch
before = list(sys.meta_path)
import {first}
import {second}
from torch.utils.flop_counter import flop_registry
assert torch.ops.vmamba.ss2d_scan in flop_registry
assert torch.ops.vmamba.depthwise3x3_backward in flop_registry
assert [finder for finder in sys.meta_path if "Watch" in type(finder).__name__] == []
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_optimized_model_hides_nothing_in_silence() -> None:
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_nano", dims=[8, 16], depths=[1, 1], num_classes=3).eval()
    x = torch.randn(1, 3, 16, 16)
    fast = vmamba.optimize(model, example=x, compile=False)
    if fast.engine == "eager":
        pytest.skip("the eager engine was the fastest; needs a machine on which the packed one is")
    with FlopCounterMode(display=False), pytest.raises(vmamba.ConfigError, match=r"hidden from FlopCounterMode"):
        fast(x)
