"""The causal convolution against a plain float64 loop: outputs, gradients, steps, packed sequences, all generations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vmamba import ConfigError, InputError
from vmamba.integrations.mamba_ssm import causal_conv1d as package
from vmamba.integrations.mamba_ssm.compiled import causal_conv1d_cuda as compiled
from vmamba.integrations.mamba_ssm.conv1d import causal_conv1d, causal_conv1d_backward, final_states, step

#: b, d, l, k: wider than long, and as wide as the real kernels go
SHAPES = [(2, 3, 7, 4), (1, 2, 1, 3), (2, 1, 2, 4), (1, 5, 9, 2), (1, 2, 6, 7)]
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}


def loop(
    x: Tensor, w: Tensor, bias: Tensor | None, number: Tensor | None, initial: Tensor | None, silu: bool
) -> Tensor:
    """The definition, place by place, in float64."""
    (b, d, length), k = x.shape, w.shape[1]
    rows = []
    for i in range(b):
        places = []
        for t in range(length):
            y = torch.zeros(d, dtype=torch.float64) if bias is None else bias.double()
            for j in range(k):
                s = t - (k - 1) + j
                if s >= 0 and (number is None or number[i, s] == number[i, t]):
                    y = y + w[:, j].double() * x[i, :, s].double()
                elif s < 0 and initial is not None:
                    y = y + w[:, j].double() * initial[i, :, s].double()
            if number is not None and number[i, t] < 0:
                y = y * 0
            places.append(y * torch.sigmoid(y) if silu else y)
        rows.append(torch.stack(places, -1))
    return torch.stack(rows)


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    b, d, length, k = shape
    draw = torch.Generator().manual_seed(length)
    sizes = [(b, d, length), (d, k), (d,), (b, d, k - 1)]
    return tuple(torch.randn(size, generator=draw, dtype=torch.float64).to(dtype) for size in sizes)


def gradients(function: Any, values: Any, weight: Tensor) -> tuple[Tensor, list[Tensor]]:
    leaves = [v.detach().clone().requires_grad_() for v in values]
    y = function(*leaves)
    return y.detach(), list(torch.autograd.grad((y.double() * weight).sum(), leaves))


def check(got: Tensor | None, want: Tensor, tolerance: float) -> None:
    assert got is not None
    assert got.shape == want.shape
    assert (got.double() - want.double()).abs().max() <= tolerance * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_convolution_and_its_gradients(shape: tuple[int, ...], silu: bool, dtype: torch.dtype) -> None:
    values = inputs(shape, dtype)
    # In the dtype already, since the gradient that comes back through the output is rounded to it.
    weight = torch.randn(shape[:3], generator=torch.Generator().manual_seed(1)).to(dtype).double()
    y, found = gradients(lambda x, w, b, i: causal_conv1d(x, w, b, None, i, silu), values, weight)
    y_loop, wanted = gradients(lambda x, w, b, i: loop(x, w, b, None, i, silu), [v.double() for v in values], weight)
    assert y.dtype == dtype
    check(y, y_loop, DTYPES[dtype])
    by_hand = causal_conv1d_backward(*values[:3], weight, None, values[3], None, silu)
    for got, hand, want, value in zip(found, by_hand, wanted, values, strict=True):
        assert hand is not None
        assert hand.dtype == value.dtype
        check(got, want, 2 * DTYPES[dtype])
        check(hand, want, 2 * DTYPES[dtype])


@pytest.mark.parametrize("silu", [False, True])
def test_sequences_in_one_row_do_not_mix(silu: bool) -> None:
    x, w, bias, _ = inputs((2, 3, 9, 4))
    number = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, -1], [3, 3, 3, 3, 3, 3, 3, 5, 5]], dtype=torch.int32)
    weight = torch.randn(2, 3, 9, dtype=torch.float64)
    y, found = gradients(lambda *v: causal_conv1d(*v, number, None, silu), (x, w, bias), weight)
    y_loop, wanted = gradients(lambda *v: loop(*v, number, None, silu), (x, w, bias), weight)
    by_hand = causal_conv1d_backward(x, w, bias, weight, number, None, None, silu)
    check(y, y_loop, 1e-12)
    for got, hand, want in zip(found, by_hand, wanted, strict=False):
        check(got, want, 1e-12)
        check(hand, want, 1e-12)


@pytest.mark.parametrize("cut", [1, 2, 5, 8])
def test_pieces_equal_the_whole(cut: int) -> None:
    x, w, bias, initial = inputs((2, 3, 9, 4))
    whole = causal_conv1d(x, w, bias, None, initial)
    last = final_states(x[..., :cut], 4, initial)
    pieces = causal_conv1d(x[..., :cut], w, bias, None, initial), causal_conv1d(x[..., cut:], w, bias, None, last)
    check(torch.cat(pieces, -1), whole, 1e-12)


@pytest.mark.parametrize("size", [3, 4, 6])
@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("places", [1, 2])
def test_steps_equal_the_whole(places: int, ring: bool, size: int) -> None:
    x, w, bias, _ = inputs((2, 3, 8, 4))
    whole = causal_conv1d(x, w, bias, None, None, "silu")
    state = torch.zeros(2, 3, size, dtype=x.dtype)
    for t in range(0, 8, places):
        at = torch.full((2,), t, dtype=torch.int32) if ring else None
        piece = x[..., t] if places == 1 else x[..., t : t + places]
        y = package.causal_conv1d_update(piece, state, w, bias, "silu", at)
        check(y, whole[..., t] if places == 1 else whole[..., t : t + places], 1e-12)
    if not ring:
        assert torch.equal(state, x[..., 8 - size :])


def test_rows_of_a_larger_state() -> None:
    x, w, bias, initial = inputs((2, 3, 1, 4))
    states = torch.zeros(5, 3, 3, dtype=x.dtype)
    states[[4, 1]] = initial
    rows = torch.tensor([4, 1], dtype=torch.int32)
    check(step(x, states, w, bias, None, None, rows), causal_conv1d(x, w, bias, None, initial), 1e-12)
    check(states[[4, 1]], final_states(x, 4, initial), 1e-12)
    assert not states[[0, 2, 3]].any()


def test_the_package() -> None:
    x, w, bias, initial = inputs((2, 3, 7, 4))
    want = causal_conv1d(x, w, bias, None, None, "silu")
    assert torch.equal(package.causal_conv1d_fn(x, w, bias, activation="swish"), want)
    assert torch.equal(package.causal_conv1d_fn(x, w, bias, "silu"), want)  # release 1.0
    assert torch.equal(package.causal_conv1d_fn(x, w, bias, None, "silu"), want)  # release 1.2
    assert torch.equal(package.causal_conv1d_ref(x, w, bias, "silu"), want)
    out = torch.empty(2, 3, 3, dtype=x.dtype)
    y, last = package.causal_conv1d_fn(x, w, bias, None, initial, True, out)
    assert torch.equal(y, causal_conv1d(x, w, bias, None, initial))
    assert last is out
    assert torch.equal(last, x[..., -3:])
    x = x.clone().requires_grad_()
    package.causal_conv1d_fn(x, w, return_final_states=True)[1].sum().backward()
    assert x.grad is not None
    assert x.grad.sum() == 2 * 3 * 3


def test_states_of_packed_sequences() -> None:
    x = torch.arange(1.0, 13).view(6, 2)
    states = package.causal_conv1d_varlen_states(x, torch.tensor([0, 1, 6]), 3)
    assert torch.equal(states[0].T, torch.tensor([[0.0, 0], [0, 0], [1, 2]]))
    assert torch.equal(states[1].T, x[3:])


def test_four_generations_forward() -> None:
    x, w, bias, initial = inputs((2, 3, 7, 4))
    number = torch.tensor([[0, 0, 1, 1, 1, 1, 2]] * 2, dtype=torch.int32)
    plain = causal_conv1d(x, w, bias, None, None, True)
    assert torch.equal(compiled.causal_conv1d_fwd(x, w, bias, True), plain)
    assert torch.equal(
        compiled.causal_conv1d_fwd(x, w, bias, number, True), causal_conv1d(x, w, bias, number, None, True)
    )
    begun = causal_conv1d(x, w, bias, None, initial, False)
    last = torch.empty(2, 3, 3, dtype=x.dtype)
    assert torch.equal(compiled.causal_conv1d_fwd(x, w, bias, None, initial, last, False), begun)
    assert torch.equal(last, x[..., -3:])
    out = torch.empty_like(x)
    assert compiled.causal_conv1d_fwd(x, w, bias, None, initial, out, None, False) is None
    assert torch.equal(out, begun)


def test_four_generations_backward() -> None:
    x, w, bias, initial = inputs((2, 3, 7, 4))
    dout, dlast = torch.randn_like(x), torch.randn_like(initial)
    dx, dw, db, _ = causal_conv1d_backward(x, w, bias, dout, None, None, None, True)
    place = torch.empty_like(x)
    found = compiled.causal_conv1d_bwd(x, w, bias, dout, place, True)
    assert found[0] is place
    for got in (found, compiled.causal_conv1d_bwd(x, w, bias, dout, None, None, True)):
        assert len(got) == 3
        assert all(map(torch.equal, got, (dx, dw, db)))
    assert compiled.causal_conv1d_bwd(x, w, None, dout, None, True)[2] is None
    want = causal_conv1d_backward(x, w, bias, dout, None, initial, dlast, False)
    leaves = [t.clone().requires_grad_() for t in (x, w, bias, initial)]
    y, last = package.causal_conv1d_fn(*leaves[:3], None, leaves[3], True)
    for got, other in zip(torch.autograd.grad((y, last), leaves, (dout, dlast)), want, strict=True):
        check(other, got, 1e-12)
    got = compiled.causal_conv1d_bwd(x, w, bias, dout, None, initial, dlast, None, True, False)
    assert all(map(torch.equal, got, want))
    assert compiled.causal_conv1d_bwd(x, w, bias, dout, None, None, None, None, False, True)[3] is None
    places = [torch.zeros_like(t) for t in want]
    assert compiled.causal_conv1d_bwd(x, w, bias, dout, None, initial, dlast, *places, False) is None
    assert all(map(torch.equal, places, want))


def test_four_generations_of_the_step() -> None:
    x, w, bias, initial = inputs((2, 3, 1, 4))
    want = causal_conv1d(x, w, bias, None, initial, True)[..., 0]
    for more in ((), (None,), (None, None)):
        assert torch.equal(compiled.causal_conv1d_update(x[..., 0], initial.clone(), w, bias, True, *more), want)
    out = torch.empty_like(x)
    assert compiled.causal_conv1d_update(x, initial.clone(), w, bias, out, True, None, None) is None
    assert torch.equal(out[..., 0], want)


@pytest.mark.parametrize("silu", [False, True])
def test_the_gradients_pass_gradcheck(silu: bool) -> None:
    values = [v.requires_grad_() for v in inputs((1, 2, 4, 3))]
    assert torch.autograd.gradcheck(lambda x, w, b, i: causal_conv1d(x, w, b, None, i, silu), values)


def test_as_torch_computes_it() -> None:
    x, w, bias, _ = inputs((2, 3, 7, 4))
    check(causal_conv1d(x, w, bias), F.conv1d(F.pad(x, (3, 0)), w[:, None], bias, groups=3), 1e-12)


def test_mistakes() -> None:
    x, w, bias, initial = inputs((2, 3, 7, 4))
    number = torch.zeros(2, 7, dtype=torch.int32)
    for given, message in [
        ((x[0], w), r"x is torch.float64 of shape \(3, 7\), want floating point \(b, d, l\)"),
        ((x, w[:2]), r"weight is .* want floating point \(d, k\) = \(3, k\)"),
        ((x, w, bias[:2]), r"bias is .* want \(d,\) = \(3,\)"),
        ((x, w, bias, number[:, 1:]), r"seq_idx is .* want integers \(b, l\) = \(2, 7\)"),
        ((x, w, bias, None, initial[..., 1:]), r"initial_states is .* want \(b, d, k-1\) = \(2, 3, 3\)"),
        ((x, w, bias, number, initial), "exclude each other"),
    ]:
        with pytest.raises(InputError, match=message):
            causal_conv1d(*given)
    with pytest.raises(ConfigError, match="activation='relu' is unknown; legal: None, 'silu', 'swish'"):
        package.causal_conv1d_fn(x, w, activation="relu")
    with pytest.raises(InputError, match="m ≥ k - 1 = 3"):
        step(x[..., 0], initial[..., 1:], w)
    with pytest.raises(InputError, match="exclude each other"):
        package.causal_conv1d_fn(x, w, bias, number, return_final_states=True)
    for function in (compiled.causal_conv1d_fwd, compiled.causal_conv1d_bwd, compiled.causal_conv1d_update):
        with pytest.raises(InputError, match="was given 3 arguments; the releases of causal-conv1d take"):
            function(x, w, bias)
    with pytest.raises(InputError, match="dout has shape"):
        compiled.causal_conv1d_bwd(x, w, bias, x[..., 1:], None, True)
