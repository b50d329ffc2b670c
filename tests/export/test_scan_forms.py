"""The scan's form for exports against the oracle: hard values, odd maps, every scan mode, and traced for every size."""

from __future__ import annotations

import math

import pytest
import torch
from map_cases import HARD, map_inputs, map_oracle
from scan_cases import check, inputs
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vmamba.export import block_scan
from vmamba.scan import selective_scan_reference
from vmamba.scan.orders import SCAN_MODES

LENGTHS = [1, 63, 64, 65, pytest.param(3136, marks=pytest.mark.long)]


@pytest.mark.parametrize("mode", SCAN_MODES)
@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 7), (9, 1), (8, 17), (70, 5)])
@pytest.mark.parametrize("n", [1, 3])
def test_it_is_the_map_scan(mode: str, h: int, w: int, n: int) -> None:
    values = map_inputs(2, h, w, 5, n)
    check(block_scan.ss2d_scan(*values, mode, True), map_oracle(values, mode), 2e-6, "y")


def test_without_skip_bias_and_softplus() -> None:
    values = map_inputs(1, 4, 11, 5, 2)
    values[3] = values[5] = None
    values[2] = values[2].abs()
    values[1] = values[1].abs()
    check(block_scan.ss2d_scan(*values, "cross2d", False), map_oracle(values, "cross2d", False), 2e-6, "y")


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize(
    ("h", "w"), [(1, 1), (9, 7), (8, 8), (5, 13), (65, 1), pytest.param(56, 56, marks=pytest.mark.long)]
)
def test_hard_values_on_a_map(name: str, h: int, w: int) -> None:
    step, decay = HARD[name]
    values = map_inputs(1, h, w, 4, 1, step=step, decay=decay)
    check(block_scan.ss2d_scan(*values, "cross2d", True), map_oracle(values, "cross2d"), 4e-6, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("length", LENGTHS)
def test_it_is_the_scan(dtype: torch.dtype, n: int, length: int) -> None:
    values = inputs(2, 2, 3, n, length, dtype=dtype)
    got = block_scan.selective_scan(*values, True)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    want = selective_scan_reference(*(v.double() for v in values), True)
    check(got, want, 1e-12 if dtype == torch.float64 else 2e-6, "y")


@pytest.mark.parametrize("size", [1e3, 1e-6, None])
@pytest.mark.parametrize("length", LENGTHS)
def test_hard_decays(size: float | None, length: int) -> None:
    """``|δA|`` of one size everywhere, or of all sizes from 1e-6 to 1e3 side by side."""
    values = inputs(1, 2, 3, 1, length, bias=False)
    draw = torch.Generator().manual_seed(1)
    exponents = torch.empty_like(values[1]).uniform_(-6, 3, generator=draw)
    values[1] = 10**exponents if size is None else torch.full_like(values[1], size)
    values[2] = -torch.ones_like(values[2])
    want = selective_scan_reference(*(None if v is None else v.double() for v in values), False)
    check(block_scan.selective_scan(*values, False), want, 4e-6, "y")


def test_softplus_keeps_small_values() -> None:
    x = torch.linspace(-80, 80, 1601)
    want = nn.functional.softplus(x.double(), threshold=math.inf)
    assert ((block_scan.softplus(x).double() - want).abs() <= 4e-7 * want).all()


class MapScan(nn.Module):
    def forward(self, x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> Tensor:
        return block_scan.ss2d_scan(x, x_dbl, dt_weight, dt_bias, A, D, "rot2d", True)


@pytest.fixture(scope="module")
def traced() -> ExportedProgram:
    batch = {0: Dim.AUTO}
    shapes = (batch, batch, None, None, None, None)
    return torch.export.export(MapScan(), tuple(map_inputs(2, 9, 17, 3, 1)), dynamic_shapes=shapes, strict=False)


@pytest.mark.long
@pytest.mark.parametrize("name", HARD)
def test_one_graph_serves_every_batch(traced: ExportedProgram, name: str) -> None:
    module = traced.module()
    for b in (1, 3):
        step, decay = HARD[name]
        values = map_inputs(b, 9, 17, 3, 1, step=step, decay=decay)
        check(module(*values), map_oracle(values, "rot2d"), 4e-6, name)


@pytest.mark.long
def test_the_graph_holds_plain_operations(traced: ExportedProgram) -> None:
    names = {str(node.target) for node in traced.graph.nodes if node.op == "call_function"}
    assert all(name.startswith(("aten.", "<built-in function")) for name in names), names
