"""The product over channels: the same as `torch.nn.functional.linear` wherever it runs, and who runs it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vmamba.functional.linear import linear
from vmamba.layers import Pointwise


def tensors(*shape: int, c_out: int = 100, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(dtype).requires_grad_()

    return draw(*shape), draw(c_out, shape[-1]), draw(c_out)


def is_ours(y: Tensor) -> bool:
    return type(y.grad_fn).__name__ == "_LinearBackward"


def assert_same(got: Tensor, exact: Tensor) -> None:
    assert got.shape == exact.shape
    assert (got.double() - exact).abs().max() <= 1e-5 * exact.abs().max().clamp(min=1)


@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 3, 4, 5), (1, 1, 1, 1), (2, 9, 9, 96)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients(shape: tuple[int, ...], with_bias: bool) -> None:
    x, weight, bias = tensors(*shape)
    inputs = (x, weight, bias) if with_bias else (x, weight)
    exact_inputs = [t.detach().double().requires_grad_() for t in inputs]
    y, exact = linear(*inputs), F.linear(*exact_inputs)
    assert is_ours(y)
    assert_same(y, exact)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    for got, wanted in zip(
        torch.autograd.grad(y, inputs, dy), torch.autograd.grad(exact, exact_inputs, dy.double()), strict=True
    ):
        assert_same(got, wanted)


def test_any_strides() -> None:
    x, weight, _ = tensors(2, 6, 4, 5)
    for view in (x.permute(0, 2, 1, 3), x[:, ::2], x.transpose(1, 3)[..., :5]):
        for w in (weight, weight.t().contiguous().t()):
            y = linear(view, w)
            assert is_ours(y)
            assert_same(y, F.linear(view.double(), w.double()))
            y.sum().backward()


def test_gradients_of_gradients() -> None:
    x, weight, bias = tensors(3, 5)

    def penalty(product: object) -> list[Tensor]:
        y = product(x, weight, bias).square()  # type: ignore[operator]
        slopes = torch.autograd.grad(y.sum(), (x, weight, bias), create_graph=True)
        return list(torch.autograd.grad(sum(s.square().sum() for s in slopes), (x, weight, bias)))

    for got, wanted in zip(penalty(linear), penalty(F.linear), strict=True):
        assert_same(got, wanted.double())


def test_frozen_inputs_get_no_gradient() -> None:
    x, weight, bias = tensors(3, 5)
    weight.requires_grad_(False)
    linear(x, weight, bias).sum().backward()
    assert weight.grad is None
    assert x.grad is not None
    assert bias.grad is not None


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_who_looks_on_sees_standard_operations() -> None:
    x, weight, bias = tensors(3, 5)
    with FlopCounterMode(display=False) as counter:
        assert not is_ours(linear(x, weight, bias))
    assert counter.get_total_flops() == 2 * 3 * 5 * 100
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
    assert linear(*tensors(3, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert linear(*tensors(3, 5, dtype=torch.float64)).dtype == torch.float64
    rows = torch.func.vmap(lambda row: linear(row, weight, bias))(x)
    assert_same(rows, F.linear(x, weight, bias).double())
    _, tangent = torch.func.jvp(lambda t: linear(t, weight, bias), (x,), (torch.ones_like(x),))
    assert_same(tangent, F.linear(torch.ones_like(x), weight).double())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        found = torch.autograd.forward_ad.unpack_dual(linear(dual, weight, bias)).tangent
        assert found is not None
    layer = Pointwise(5, 100)
    exported = torch.export.export(layer, (x,))
    assert {str(node.target) for node in exported.graph.nodes if node.op == "call_function"} == {"aten.linear.default"}
    traced = torch.jit.trace(copy.deepcopy(layer), x.detach())
    assert "aten::linear" in str(traced.inlined_graph)


def test_no_rows() -> None:
    x, weight, bias = tensors(0, 5)
    assert linear(x, weight, bias).shape == (0, 100)


def test_mistakes_are_told_as_torch_tells_them() -> None:
    x, weight, bias = tensors(3, 5)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(x[:, :4], weight, bias)
    with pytest.raises(RuntimeError, match="same dtype"):
        linear(x.double(), weight, bias)
