"""Mamba-2's scan of maps in orders of all kinds: its oracle, both ways of reading out, graphs, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch._dynamo.testing
from scan_cases import check
from torch import Tensor

from vmamba import InputError
from vmamba.kernels.ssd import chunks, maps
from vmamba.scan import AxisOrder, IndexOrder, recorded_runs, ssd_order_scan, ssd_order_scan_reference
from vmamba.scan.any_order import MODE_ORDERS, ScanOrder, cross, diagonal

CASES: dict[str, tuple[tuple[int, ...], tuple[ScanOrder, ...]]] = {
    **{mode: ((5, 7), orders) for mode, orders in MODE_ORDERS.items()},
    "a line forth and back": ((75,), cross(1)),
    "diagonals": ((9, 10), diagonal()),
    "of both kinds": ((2, 3), (AxisOrder((1, 0)), IndexOrder([5, 0, 4, 1, 3, 2], (2, 3)))),
    "volume": ((3, 4, 5), (*cross(3), AxisOrder((1, 0, 2), (1,)))),
}
NAMES = ("x", "x_dbl", "dt_bias", "A", "D")


def tensors(sizes: Sequence[int], k: int, b: int = 2, r: int = 2, p: int = 3, n: int = 4) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    return [
        normal(b, *sizes, r * p),
        normal(b, *sizes, k, r + 2 * n),
        normal(k, r),
        -torch.exp(normal(k, r)),
        normal(k, r, p),
    ]


def run(function, values: list[Tensor], orders: Sequence[ScanOrder]) -> list[Tensor]:
    """The output and every gradient."""
    leaves = [t.clone().requires_grad_() for t in values]
    y = function(*leaves, orders)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
    return [y.detach(), *torch.autograd.grad((y.double() * weights).sum(), leaves)]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_every_order(name: str, together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, orders = CASES[name]
    if not together:
        monkeypatch.setattr(maps, "_TOGETHER", 0)
    values = tensors(sizes, len(orders))
    want = run(ssd_order_scan_reference, values, orders)
    for what, got, exact in zip(("y", *NAMES), run(ssd_order_scan, values, orders), want, strict=True):
        check(got, exact, 1e-10, what)
    narrow = run(ssd_order_scan, [t.float() for t in values], orders)
    for what, got, exact in zip(("y", *NAMES), narrow, want, strict=True):
        check(got, exact, 1e-5 if what == "y" else 1e-4, what)


@pytest.mark.parametrize("orders", [MODE_ORDERS["cross2d"], diagonal()], ids=["cross", "diagonal"])
def test_compiled_it_is_one_operator(orders: Sequence[ScanOrder]) -> None:
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ssd_order_scan, fullgraph=True, backend=graphs)
    values = [t.float() for t in tensors((5, 7), 4)]
    with recorded_runs() as runs:
        got = run(compiled, values, orders)
    assert [one.op for one in runs] == ["ssd_scan"]
    for what, ours, theirs in zip(("y", *NAMES), got, run(ssd_order_scan, values, orders), strict=True):
        check(ours, theirs, 1e-5 if what == "y" else 1e-4, what)
    assert graphs.frame_count == 1


def test_both_ways_of_reading_out_agree_on_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    values, orders = tensors((6, 20), 4, b=5), MODE_ORDERS["rot2d"]
    want = run(ssd_order_scan, values, orders)
    monkeypatch.setattr(maps, "_TOGETHER", 0)
    monkeypatch.setitem(chunks._PART, "cpu", 1500)
    for what, got, other in zip(("y", *NAMES), run(ssd_order_scan, values, orders), want, strict=True):
        check(got, other, 1e-12, what)


@pytest.mark.parametrize(
    ("i", "shape", "words"),
    [
        (0, (2, 5, 6), "of 2 axes, as the orders have"),
        (1, (2, 5, 7, 4, 9), r"x_dbl has shape .* and 2 \+ 2n"),
        (2, (4, 3), "dt_bias has shape"),
        (3, (3, 2), r"A has shape .*\(4, r\), one row for each order"),
        (4, (4, 2), r"D has shape .*\(4, 2, 3\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(i: int, shape: tuple[int, ...], words: str) -> None:
    values = tensors((5, 7), 4)
    values[i] = torch.ones(shape, dtype=torch.float64)
    with pytest.raises(InputError, match=words):
        ssd_order_scan(*values, MODE_ORDERS["cross2d"])
