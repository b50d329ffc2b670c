"""The feed-forward part as it runs on a GPU, of standard operations, on the CPU: numbers, and what is kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vmamba.functional import gpu
from vmamba.functional.mlp import mlp_gelu


@pytest.fixture(autouse=True)
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors are taken for a GPU's."""
    monkeypatch.setattr(gpu, "_DEVICE", "cpu")
    monkeypatch.setattr(gpu, "_there", lambda: True)


def inputs(*, biases: bool = True) -> list[Tensor | None]:
    torch.manual_seed(0)
    shapes = (2, 5, 7, 8), (32, 8), (32,) if biases else None, (6, 32), (6,) if biases else None
    return [None if shape is None else torch.randn(shape).requires_grad_() for shape in shapes]


def plain(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> Tensor:
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


def gradients(y: Tensor, values: list[Tensor | None]) -> tuple[Tensor, ...]:
    return torch.autograd.grad((y.float() ** 2).sum(), [v for v in values if v is not None])


@pytest.mark.parametrize("biases", [True, False])
def test_numbers_are_those_of_plain_operations(biases: bool) -> None:
    values = inputs(biases=biases)
    found, wanted = mlp_gelu(*values), plain(*values)  # type: ignore[arg-type]
    assert type(found.grad_fn).__name__ == "_GeluLinearBackward"
    torch.testing.assert_close(found, wanted)
    for got, want in zip(gradients(found, values), gradients(wanted, values), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_under_autocast_everything_is_in_its_dtype() -> None:
    values = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = mlp_gelu(*values), plain(*values)  # type: ignore[arg-type]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted)
    for got, want, value in zip(gradients(found, values), gradients(wanted, values), values, strict=True):
        assert value is not None
        assert got.dtype == value.dtype
        assert (got - want).abs().max() <= 2e-2 * want.abs().max()


def test_the_hidden_map_is_kept_once() -> None:
    values = inputs()
    hidden = 2 * 5 * 7 * 32

    def kept(run: object) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
            run(*values)  # type: ignore[operator]
        return sizes.count(hidden)

    assert kept(mlp_gelu) == 1
    assert kept(plain) == 2


def test_only_what_is_wanted_and_twice() -> None:
    values = [None if v is None else v.detach() for v in inputs()]
    weight2 = values[3]
    assert weight2 is not None
    weight2.requires_grad_()
    (found,) = torch.autograd.grad(mlp_gelu(*values).sum(), weight2)  # type: ignore[arg-type]
    (wanted,) = torch.autograd.grad(plain(*values).sum(), weight2)  # type: ignore[arg-type]
    torch.testing.assert_close(found, wanted)
    every = inputs()

    def penalty(run: object) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(run(*every).pow(2).sum(), every, create_graph=True)  # type: ignore[operator,arg-type]
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), every)  # type: ignore[arg-type]

    for got, want in zip(penalty(mlp_gelu), penalty(plain), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-2 * float(want.abs().max()))
