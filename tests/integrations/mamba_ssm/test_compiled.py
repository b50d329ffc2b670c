"""The compiled scans' stand-ins against a plain float64 loop, called as the packages above them call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vmamba import InputError
from vmamba.integrations.mamba_ssm import selective_scan as early
from vmamba.integrations.mamba_ssm.compiled import (
    selective_scan_cuda,
    selective_scan_cuda_core,
    selective_scan_cuda_oflex,
)

B, D, N, L, G = 2, 4, 3, 7, 2
#: Of sums in another order; 16-bit results are rounded once.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-9}
SHAPES = {"(b, g, n, l)": (B, G, N, L), "(b, n, l)": (B, N, L), "(d, n)": (D, N)}
Tensors = dict[str, Tensor | None]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def inputs(dtype: torch.dtype = torch.float32, B_shape: tuple[int, ...] = (B, G, N, L), **more: Any) -> Tensors:
    draw = torch.Generator().manual_seed(0)
    full = torch.float64 if dtype == torch.float64 else torch.float32
    C_shape = more.get("C_shape", B_shape)

    def normal(*shape: int, to: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(to)

    return {
        "u": normal(B, D, L),
        "delta": normal(B, D, L),
        "A": -torch.exp(normal(D, N, to=full)),
        "B": normal(*B_shape, to=dtype if len(B_shape) > 2 else full),
        "C": normal(*C_shape, to=dtype if len(C_shape) > 2 else full),
        "D": normal(D, to=full) if more.get("D", True) else None,
        "z": normal(B, D, L) if more.get("z", False) else None,
        "delta_bias": normal(D, to=full) if more.get("bias", True) else None,
    }


def loop(t: Tensors, softplus: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Output before the gate, behind it, and last state, place by place in float64."""
    u, delta, A, B_, C, D_, z, bias = (None if v is None else v.double() for v in t.values())
    assert u is not None
    assert delta is not None
    assert A is not None
    length = u.shape[2]

    def at(m: Any, place: int) -> Tensor:  # (b, d, n)
        if m.dim() == 2:
            return m.expand(u.shape[0], *m.shape)
        m = m[:, None] if m.dim() == 3 else m
        return m[..., place].repeat_interleave(u.shape[1] // m.shape[1], 1)

    if delta.shape[1] < u.shape[1]:
        bias = None if bias is None else bias.repeat_interleave(u.shape[1] // delta.shape[1])
        delta = delta.repeat_interleave(u.shape[1] // delta.shape[1], 1)
    delta = delta if bias is None else delta + bias[:, None]
    delta = torch.log1p(delta.exp()) if softplus else delta
    h = torch.zeros(*u.shape[:2], A.shape[1], dtype=torch.float64)
    ys = []
    for place in range(length):
        step, value = delta[..., place, None], u[..., place, None]
        h = torch.exp(step * A) * h + step * at(B_, place) * value
        ys.append((h * at(C, place)).sum(-1))
    y = torch.stack(ys, -1)
    y = y if D_ is None else y + D_[:, None] * u
    return y, y if z is None else y * z * torch.sigmoid(z), h


def loop_gradients(t: Tensors, dout: Tensor, softplus: bool = True) -> list[Tensor | None]:
    leaves = {name: None if v is None else v.detach().double().requires_grad_() for name, v in t.items()}
    found = iter(
        torch.autograd.grad(loop(leaves, softplus)[1], [v for v in leaves.values() if v is not None], dout.double())
    )
    gradients = {name: None if v is None else next(found) for name, v in leaves.items()}
    return [gradients[name] for name in ("u", "delta", "A", "B", "C", "D", "delta_bias", "z")]


def check(got: Tensor | None, want: Tensor | None, tolerance: float) -> None:
    if want is None:
        assert got is None
        return
    assert got is not None
    assert got.shape == want.shape
    assert (got.double() - want).abs().max() <= tolerance * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("z", [False, True])
def test_mamba_ssms(z: bool, dtype: torch.dtype) -> None:
    t = inputs(dtype, z=z)
    y, gated, last = loop(t)
    out, x, *rest = selective_scan_cuda.fwd(*t.values(), True)
    check(out, y, TOLERANCES[dtype])
    assert out.dtype == dtype
    assert x.shape == (B, D, 1, 2 * N)
    check(x[:, :, -1, 1::2], last, TOLERANCES[dtype])
    assert len(rest) == z
    dout = torch.randn(B, D, L).to(dtype)
    *before, bias = t.values()
    found = selective_scan_cuda.bwd(*before, bias, dout, x, out if z else None, None, True, False)
    for got, want, value in zip(found, loop_gradients(t, dout), [*t.values()], strict=False):
        check(got, want, 2 * TOLERANCES[dtype])
        assert value is None or got is not None
    assert [None if g is None else g.dtype for g in found[:7]] == [
        None if t[name] is None else t[name].dtype for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")
    ]
    assert len(found) == 7 + z
    if z:
        check(rest[0], gated, TOLERANCES[dtype])
        place = torch.empty_like(t["u"])
        again = selective_scan_cuda.bwd(*before, bias, dout, x, out, place, True, True)
        assert again[7] is place
        assert len(again) == 9
        check(place, loop_gradients(t, dout)[7], 2 * TOLERANCES[dtype])
        check(again[8], gated, TOLERANCES[dtype])


@pytest.mark.parametrize("C_shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("B_shape", SHAPES.values(), ids=SHAPES)
def test_three_shapes_of_b_and_c(B_shape: tuple[int, ...], C_shape: tuple[int, ...]) -> None:
    t = inputs(torch.float64, B_shape, C_shape=C_shape, D=False, bias=False)
    out, x = selective_scan_cuda.fwd(*t.values(), False)
    y, _, last = loop(t, softplus=False)
    check(out, y, 1e-10)
    check(x[:, :, -1, 1::2], last, 1e-10)
    dout = torch.randn(B, D, L, dtype=torch.float64)
    found = selective_scan_cuda.bwd(*t.values(), dout, x, None, None, False, False)
    for got, want in zip(found, loop_gradients(t, dout, softplus=False)[:7], strict=True):
        check(got, want, 1e-10)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_vmambas(dtype: torch.dtype) -> None:
    t = inputs(dtype)
    scan = [v for name, v in t.items() if name != "z"]
    y, _, last = loop(t)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for module, more, to in (
        (selective_scan_cuda_oflex, (1, True), wide),
        (selective_scan_cuda_oflex, (1, False), dtype),
        (selective_scan_cuda_core, (1,), dtype),
        (selective_scan_cuda_core, (), dtype),
    ):
        out, x = module.fwd(*scan, True, *more)
        assert out.dtype == to
        check(out, y, TOLERANCES[to])
        check(x[:, :, -1, 1::2], last, TOLERANCES[dtype])
        dout = torch.randn(B, D, L).to(to)
        found = module.bwd(*scan, dout, x, True, *more[:1])
        for got, want, value in zip(found, loop_gradients(t, dout)[:7], scan, strict=True):
            assert got.dtype == value.dtype
            check(got, want, 2 * TOLERANCES[dtype])


def test_steps_shared_by_channels() -> None:
    t = inputs(torch.float64)
    t["delta"], t["delta_bias"] = t["delta"][:, :2], t["delta_bias"][:2]
    scan = [v for name, v in t.items() if name != "z"]
    out, x = selective_scan_cuda_oflex.fwd(*scan, True, 1, True)
    check(out, loop(t)[0], 1e-10)
    dout = torch.randn(B, D, L, dtype=torch.float64)
    for got, want in zip(
        selective_scan_cuda_oflex.bwd(*scan, dout, x, True, 1), loop_gradients(t, dout)[:7], strict=True
    ):
        check(got, want, 1e-10)


class Function(torch.autograd.Function):
    """As the packages above the compiled module write it."""

    @staticmethod
    def forward(ctx: Any, *t: Any) -> Any:
        out, x, *rest = selective_scan_cuda.fwd(*t, True)
        ctx.save_for_backward(*t, x, out)
        return rest[0]

    @staticmethod
    def backward(ctx: Any, dout: Any) -> Any:
        u, delta, A, B_, C, D_, z, bias, x, out = ctx.saved_tensors
        found = selective_scan_cuda.bwd(u, delta, A, B_, C, D_, z, bias, dout, x, out, None, True, False)
        du, ddelta, dA, dB, dC, dD, dbias, dz = found
        return du, ddelta, dA, dB, dC, dD, dz, dbias


@pytest.mark.parametrize("autocast", [False, True])
def test_inside_an_autograd_function(autocast: bool) -> None:
    t = inputs(z=True)
    leaves = {name: v.requires_grad_() for name, v in t.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = Function.apply(*leaves.values())
        out.sum().backward()
    want = loop_gradients(t, torch.ones(B, D, L))
    for name, gradient in zip(("u", "delta", "A", "B", "C", "D", "delta_bias", "z"), want, strict=True):
        check(leaves[name].grad, gradient, 1e-5)


def test_a_long_input_has_a_state_each_2048_places() -> None:
    t = {
        "u": torch.randn(1, 1, 2049), "delta": torch.rand(1, 1, 2049), "A": -torch.rand(1, 1),
        "B": torch.randn(1, 1, 1, 2049), "C": torch.randn(1, 1, 1, 2049), "D": None, "z": None, "delta_bias": None,
    }  # fmt: skip
    _, x = selective_scan_cuda.fwd(*t.values(), False)
    assert x.shape == (1, 1, 2, 2)
    check(x[:, :, -1, 1::2], loop(t, softplus=False)[2], 1e-5)


def test_the_early_package() -> None:
    t = inputs(torch.bfloat16)
    u, delta, A, B_, C, D_, _, bias = t.values()
    for function in (early.selective_scan_fn, early.selective_scan_ref):
        y = function(u, delta, A, B_, C, D_, bias, True)
        assert y.dtype == torch.bfloat16
        check(y, loop(t)[0], TOLERANCES[torch.bfloat16])
    early.selective_scan_fn(u, delta, A, B_, C, D_, delta_bias=bias, delta_softplus=True, nrows=2)
    t = inputs(B_shape=(B, N, L), bias=False)
    u, delta, A, B_, C, D_, *_ = t.values()
    for function in (early.selective_scan_fn, early.selective_scan_ref):
        check(function(u, delta, A, B_, C, D_), loop(t, softplus=False)[0], 1e-5)


def test_mistakes() -> None:
    t = inputs()
    u, delta, A, B_, C, D_, z, bias = t.values()
    fwd = selective_scan_cuda.fwd
    with pytest.raises(InputError, match=r"A is torch.complex64: vmamba's kernels have real states only"):
        fwd(u, delta, A.to(torch.complex64), B_, C, D_, z, bias, True)
    with pytest.raises(InputError, match=r"A is torch\.complex64"):
        early.selective_scan_fn(u, delta, A.to(torch.complex64), B_, C)
    with pytest.raises(InputError, match=r"want u \(b, d, l\) and A \(d, n\), given u \(2, 4, 7\), A \(3, 3\)"):
        fwd(u, delta, A[:3], B_, C, D_, z, bias, True)
    with pytest.raises(InputError, match=r"B has shape \(4, 2\), want \(d, n\) = \(4, 3\)"):
        fwd(u, delta, A, A[:, :2], C, D_, z, bias, True)
    with pytest.raises(InputError, match="delta has shape"):
        fwd(u, delta[..., 1:], A, B_, C, D_, z, bias, True)
    with pytest.raises(InputError, match="C has shape"):
        fwd(u, delta, A, B_, C[..., 1:], D_, z, bias, True)
    with pytest.raises(InputError, match="dout has shape"):
        selective_scan_cuda.bwd(u, delta, A, B_, C, D_, z, bias, u[..., 1:], None, None, None, True, False)
    with torch.inference_mode(), pytest.raises(InputError, match=r"in torch\.inference_mode"):
        selective_scan_cuda.bwd(u, delta, A, B_, C, D_, z, bias, u, None, None, None, True, False)
