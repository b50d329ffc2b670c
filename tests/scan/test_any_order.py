"""Scan orders as data: what they read, what the scan gives in them, on every backend, and what is no order."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from vmamba import ConfigError, InputError
from vmamba.scan import AxisOrder, IndexOrder, RuleOrder, order_scan, order_scan_reference, recorded_runs, ss2d_scan
from vmamba.scan.any_order import ScanOrder, along, cross, diagonal, orders_of, windows
from vmamba.scan.any_order.orders import from_sequence, places_of, to_sequence

CPU = torch.device("cpu")


def snake(h: int, w: int) -> list[int]:
    return [row * w + (column if row % 2 == 0 else w - 1 - column) for row in range(h) for column in range(w)]


CASES: dict[str, tuple[tuple[int, ...], tuple[ScanOrder, ...]]] = {
    "one way": ((13,), cross(1)[:1]),
    "both ways": ((70,), cross(1)),
    "diagonals": ((5, 7), diagonal()),
    "windows": ((9, 8), windows(3)),
    "three directions": ((6, 5), (*cross()[:2], RuleOrder(snake))),
    "listed": ((2, 3), (IndexOrder(torch.tensor([5, 0, 4, 1, 3, 2]), (2, 3)),)),
    "volume": ((3, 4, 5), cross(3)),
    "planes a multiple of 4 KiB apart": ((4, 8, 8), cross(3)),
    "windows of a volume": ((3, 5, 4), windows(2, 3)),
    "four axes": ((2, 3, 2, 3), cross(4)),
}
WIDE = {"planes a multiple of 4 KiB apart"}


def tensors(sizes: Sequence[int], k: int, d: int = 20, n: int = 3, r: int = 2) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    b = 2
    return [
        draw(b, *sizes, d), 0.5 * draw(b, *sizes, k, r + 2 * n), draw(k, d, r), draw(k, d) - 2,
        -draw(k * d, n).abs() - 0.1, draw(k * d),
    ]  # fmt: skip


def run(function, inputs: list[Tensor], *arguments, **options) -> list[Tensor]:
    """The output and every gradient."""
    inputs = [t.clone().requires_grad_() for t in inputs]
    y = function(*inputs, *arguments, **options)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), inputs)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", ["torch", "oflex"])
def test_every_order_on_every_backend(name: str, backend: str) -> None:
    sizes, orders = CASES[name]
    inputs = tensors(sizes, len(orders), d=64 if name in WIDE else 20)
    want = run(order_scan_reference, inputs, orders)
    dtype = torch.float64 if backend == "torch" else torch.float32
    got = run(order_scan, [t.to(dtype) for t in inputs], orders, backend=backend)
    tolerance = 1e-10 if backend == "torch" else 1e-5
    for one, other in zip(got, want, strict=True):
        assert (one.double() - other).abs().max() <= tolerance * other.abs().max()


def test_the_oracle_is_the_recurrence_at_the_places_that_the_order_names() -> None:
    order = IndexOrder([2, 0, 3, 1], (2, 2))
    x, x_dbl, dt_weight, dt_bias, A, D = tensors((2, 2), 1, d=1, n=1, r=1)
    y = order_scan_reference(x, x_dbl, dt_weight, dt_bias, A, D, [order])
    h = torch.zeros(2, dtype=torch.float64)
    for place in (2, 0, 3, 1):
        u, (low_rank, B, C) = x[:, place // 2, place % 2, 0], x_dbl[:, place // 2, place % 2, 0].unbind(-1)
        step = torch.nn.functional.softplus(dt_weight[0, 0, 0] * low_rank + dt_bias[0, 0])
        h = torch.exp(step * A[0, 0]) * h + step * B * u
        torch.testing.assert_close(y[:, place // 2, place % 2, 0], C * h + D[0] * u)


@pytest.mark.parametrize("name", CASES)
def test_sequences_go_back_to_their_places(name: str) -> None:
    sizes, orders = CASES[name]
    x = torch.randn(2, *sizes)
    for order in orders:
        places = places_of(order, sizes, CPU)
        assert torch.equal(places.sort().values, torch.arange(x[0].numel()))
        sequence = to_sequence(x, order, len(sizes))
        assert torch.equal(sequence, x.flatten(1)[:, places])
        assert torch.equal(from_sequence(sequence, order, sizes), x)
        assert torch.equal(places_of(order.backwards(), sizes, CPU), places.flip(0))


def test_ready_made_orders() -> None:
    def read(order: ScanOrder, *sizes: int) -> list[int]:
        return places_of(order, sizes, CPU).tolist()

    assert [read(order, 2, 3) for order in cross()] == [
        [0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0],
    ]  # fmt: skip
    assert [read(order, 3, 3) for order in diagonal()[:2]] == [
        [0, 1, 3, 2, 4, 6, 5, 7, 8], [2, 1, 5, 0, 4, 8, 3, 7, 6],
    ]  # fmt: skip
    assert [read(order, 3, 4) for order in windows(2)[:2]] == [
        [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 10, 11], [0, 4, 1, 5, 8, 9, 2, 6, 3, 7, 10, 11],
    ]  # fmt: skip
    assert [order.axes for order in cross(3)[:3]] == [(0, 1, 2), (2, 0, 1), (1, 2, 0)]
    assert along([1], 3) == cross(3)[1::3]


def test_a_scan_modes_orders_are_left_to_its_kernels_and_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [t.float() for t in tensors((16, 24), 4, d=64, n=1)]
    with recorded_runs() as runs:
        got = run(order_scan, inputs, cross())
    want = run(ss2d_scan, inputs)
    assert [one.op for one in runs] == ["ss2d_scan"]
    monkeypatch.setattr(importlib.import_module("vmamba.scan.any_order.order_scan"), "_MODE_OF", {})
    by_places = run(order_scan, inputs, cross(), backend="oflex")
    for one, other, third in zip(got, want, by_places, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, third)


@pytest.mark.parametrize("name", ["both ways", "diagonals", "volume"])
@pytest.mark.parametrize("backend", ["torch", "oflex"])
def test_compiled(name: str, backend: str) -> None:
    sizes, orders = CASES[name]
    inputs = [t.float() for t in tensors(sizes, len(orders))]
    compiled = torch.compile(order_scan, fullgraph=True, backend="aot_eager")
    want = run(order_scan, inputs, orders, backend=backend)
    for one, other in zip(run(compiled, inputs, orders, backend=backend), want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def test_axes_fit_open_sizes_in_one_graph() -> None:
    compiled = torch.compile(order_scan, fullgraph=True, backend="aot_eager", dynamic=True)
    for sizes in ((3, 4, 5), (4, 6, 5), (5, 3, 7)):
        inputs = [t.float() for t in tensors(sizes, 6)]
        torch.testing.assert_close(compiled(*inputs, cross(3)), order_scan(*inputs, cross(3)))


def test_transforms_go_through_plain_operations() -> None:
    inputs = [t.float() for t in tensors((4, 5), 4)]

    def loss(x: Tensor) -> Tensor:
        return order_scan(x, *inputs[1:], diagonal()).square().sum()

    x = inputs[0].clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(torch.func.grad(loss)(inputs[0]), want, rtol=1e-4, atol=1e-4)


def test_tables_made_in_inference_mode_serve_training() -> None:
    sizes, orders = (6, 3), (RuleOrder(snake),)
    inputs = [t.float() for t in tensors(sizes, 1)]
    for backend in ("oflex", "torch"):
        with torch.inference_mode():
            order_scan(*inputs, orders, backend=backend)
        run(order_scan, inputs, orders, backend=backend)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AxisOrder((0, 2)), r"axes \(0, 2\).*once each"),
        (lambda: AxisOrder(()), r"axes \(\).*once each"),
        (lambda: AxisOrder((1, 0), (2,)), r"flips \(2,\).*out of \(0, 1\)"),
        (lambda: AxisOrder((1, 0), (1, 1)), r"flips \(1, 1\)"),
        (lambda: IndexOrder([0, 1, 2], (2, 2)), "lists 3 places, but a map of 2×2 has 4"),
        (lambda: IndexOrder([0, 1, 2, 2], (2, 2)), "place 2 comes 2 times and place 3 never"),
        (lambda: IndexOrder([0, 1, 2, 4], (2, 2)), r"lists places 0 … 4, but those .* are 0 … 3"),
        (lambda: IndexOrder([0.0, 1.0], (2,)), "whole numbers, given torch.float32"),
        (lambda: IndexOrder(torch.zeros(2, 2, dtype=torch.int64), (2, 2)), r"shape \(2, 2\); flatten"),
        (lambda: windows(0), "side 0"),
        (lambda: along([3], 3), r"axes \(3,\)"),
        (lambda: orders_of("diagonl", 2), "did you mean 'diagonal'"),
        (lambda: orders_of("diagonal", 3), "not of 3 axes"),
        (lambda: orders_of([], 2), "names no direction"),
        (lambda: orders_of(AxisOrder((0, 1)), 2), "put it in a list"),
        (lambda: orders_of([AxisOrder((0,))], 2), "maps with 1 axes, but the layer's have 2"),
        (lambda: orders_of([torch.arange(4)], 2), r"given a Tensor.*IndexOrder\(places, sizes\)"),
        (lambda: orders_of([3], 2), "given a int"),
    ],
)
def test_what_is_no_order(make, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_mistakes_in_a_call() -> None:
    inputs = [t.float() for t in tensors((2, 3), 2)]
    with pytest.raises(InputError, match=r"dt_weight has shape \(2, 20, 2\), want.*\(4, 20, r\).*given 4 orders"):
        order_scan(*inputs, diagonal())
    with pytest.raises(InputError, match="of 3 axes"):
        order_scan(*inputs, cross(3)[:2])
    listed = IndexOrder(range(4), (2, 2))
    with pytest.raises(InputError, match="map of 2×2, given one of 2×3"):
        order_scan(*inputs, [listed, listed])

    def wrong(h: int, w: int) -> list[int]:
        return list(range(5))

    with pytest.raises(ConfigError, match="made by 'wrong' lists 5 places, but a map of 2×3 has 6"):
        order_scan(*inputs, [RuleOrder(wrong), AxisOrder((0, 1))])


def test_the_operator_takes_no_place_outside_the_map() -> None:
    x, x_dbl, *rest = (t.float() for t in tensors((1, 6), 1))
    places = torch.arange(1, 7, dtype=torch.int32)[None]
    with pytest.raises(InputError, match="0 … 5, given 1 … 6"):
        torch.ops.vmamba.order_scan(x, x_dbl, *rest, places, True, False)
    with pytest.raises(InputError, match=r"int32 of shape \(k, l\) = \(1, 6\)"):
        torch.ops.vmamba.order_scan(x, x_dbl, *rest, places.long(), True, False)
