"""The Triton kernels of layer norm, interpreted: against standard operations in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from triton_tools import DEVICE, DTYPES, assert_near, assert_small, compiled, leaves, random

from vmamba.functional import gpu
from vmamba.functional import norm as choice
from vmamba.functional.norm import layer_norm
from vmamba.layers import SS2D, VSSBlock
from vmamba.layers.norm import LayerNorm, normed

kernels = pytest.importorskip("vmamba.kernels.triton.layers.norm")
jit = pytest.importorskip("vmamba.kernels.triton.jit")
interpreted = pytest.mark.skipif(
    not jit.INTERPRETED and not torch.cuda.is_available(),
    reason="the kernels were imported before the interpreter was asked for",
)
EPS = 1e-5


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the functional layer take its way for GPUs here; which kernels run. Memory not written shows as NaN."""
    names: list[str] = []
    load = choice.kernels

    class Recorded:
        def __getattr__(self, name: str) -> Any:
            names.append(name)
            return getattr(load("norm"), name)

    monkeypatch.setattr(gpu, "_DEVICE", DEVICE)
    monkeypatch.setattr(gpu, "_there", lambda: True)
    monkeypatch.setattr(choice, "kernels", lambda name: Recorded())
    monkeypatch.setattr(choice, "workspace", lambda like: lambda n: like.new_full((n,), torch.nan).float())
    make = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: make(*args, **kwargs).fill_(torch.nan))
    return names


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor | None]:
    c = shape[-1]
    # A mean far from zero: a variance from sums of squares would be off.
    return [(random(*shape) + 3).to(dtype), 1 + random(c, seed=1) / 3, random(c, seed=2)]


def standard(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, EPS)


def compare(tensors: list[Tensor | None], dtype: torch.dtype) -> None:
    given, exact = leaves(tensors), leaves(tensors, torch.float64)
    x = given[0]
    assert x is not None
    y = layer_norm(x, x.shape[-1:], *given[1:], EPS, dtype)
    want = standard(*exact)  # type: ignore[arg-type]
    dy = random(*x.shape, seed=9).to(dtype)
    y.backward(dy)
    want.backward(dy.double())
    assert y.dtype == dtype
    assert_near("the output", y.detach(), want.detach(), 1e-5 if dtype == torch.float32 else 2e-2)
    for i, (g, e) in enumerate(zip(given, exact, strict=True)):
        if g is not None:
            assert g.grad is not None
            assert e is not None
            assert e.grad is not None
            assert g.grad.dtype == g.dtype
            assert_near(f"gradient {i}", g.grad, e.grad, 1e-4 if g.dtype == torch.float32 else 2e-2)


@interpreted
@pytest.mark.parametrize("shape", [(1, 1), (2, 3, 5, 7), (1, 70, 32), (3, 96), (5, 200), (2, 1500)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "out"), [(torch.float32, torch.bfloat16), (torch.float32, torch.float32), (torch.float16, torch.float16)]
)
def test_output_and_every_gradient(
    shape: tuple[int, ...], dtype: torch.dtype, out: torch.dtype, calls: list[str]
) -> None:
    if shape[-1] > 1:  # else dx is zero, and has no scale
        compare(inputs(*shape, dtype=dtype), out)
    with torch.no_grad():
        tensors = inputs(*shape, dtype=dtype)
        y = layer_norm(tensors[0], shape[-1:], *tensors[1:], EPS, out)  # type: ignore[arg-type]
    exact = [None if t is None else t.double() for t in tensors]
    assert_near("the output", y, standard(*exact), 1e-5 if out == torch.float32 else 2e-2)  # type: ignore[arg-type]
    assert calls == (["forward", "backward", "forward"] if shape[-1] > 1 else ["forward"])


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_weight_or_bias_and_other_dtypes_of_them(dtype: torch.dtype, calls: list[str]) -> None:
    x, weight, bias = inputs(3, 20)
    assert weight is not None
    assert bias is not None
    compare([x, None, None], torch.float32)
    compare([x, weight, None], torch.float32)
    compare([x, weight.to(dtype), bias.to(dtype)], dtype)
    assert calls == ["forward", "backward"] * 3


@interpreted
def test_any_strides(calls: list[str]) -> None:
    for x in (random(4, 3, 10).transpose(0, 1), random(5, 20)[:, ::2], random(10, 6).t(), random(3, 11)[:, 1:]):
        compare([x, *inputs(1, 10)[1:]], torch.bfloat16)
    leaf = random(2, 3, 10).requires_grad_()
    layer_norm(leaf, (10,), None, None, EPS).sum().backward()  # a gradient of stride 0
    assert leaf.grad is not None
    assert leaf.grad.abs().max() < 1e-5


@interpreted
def test_several_programs_and_groups(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    compare(inputs(200, 5), torch.float32)
    monkeypatch.setattr(kernels, "processors", lambda device: 1)
    for ways in (kernels.Way(1024, 2, 4), kernels.Way(1, 1, 1), kernels.Way(512, 1000, 1)):
        monkeypatch.setattr(kernels, "FORWARD", ways)
        monkeypatch.setattr(kernels, "BACKWARD", ways)
        compare(inputs(200, 5), torch.float32)


@interpreted
def test_the_same_bits_again(calls: list[str]) -> None:
    def run() -> list[Tensor]:
        given = leaves(inputs(70, 24))
        y = layer_norm(given[0], (24,), *given[1:], EPS, torch.bfloat16)  # type: ignore[arg-type]
        y.backward(random(70, 24, seed=3).to(torch.bfloat16))
        return [y, *(t.grad for t in given)]  # type: ignore[union-attr,misc]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@interpreted
def test_what_the_kernel_does_not_take(calls: list[str]) -> None:
    x, weight, bias = inputs(2, 3, 6)
    assert x is not None
    layer_norm(x.double(), (6,), weight, bias, EPS)
    layer_norm(x[:0], (6,), weight, bias, EPS)
    layer_norm(x, (3, 6), None, None, EPS)
    layer_norm(random(1, 4097), (4097,), None, None, EPS)
    layer_norm(x, (6,), weight, bias, EPS, torch.float64)
    torch.func.vmap(lambda t: layer_norm(t, (6,), weight, bias, EPS))(x)
    torch.func.jvp(lambda t: layer_norm(t, (6,), weight, bias, EPS), (x,), (x,))
    torch._dynamo.reset()
    run = torch.compile(
        lambda t: layer_norm(t, (6,), weight, bias, EPS, torch.bfloat16), backend="eager", fullgraph=True
    )
    assert run(x).dtype == torch.bfloat16  # inductor joins the two
    with pytest.raises(RuntimeError, match="normalized_shape"):
        layer_norm(x, (5,), None, None, EPS)
    assert calls == []


@interpreted
def test_gradients_of_gradients_go_the_standard_way(calls: list[str]) -> None:
    def penalty(run: Callable[..., Tensor], tensors: list[Tensor | None]) -> Tensor:
        slopes = torch.autograd.grad(run(*tensors).square().sum(), tensors, create_graph=True)  # type: ignore[arg-type]
        return torch.stack([s.square().sum() for s in slopes]).sum()

    given, exact = leaves(inputs(3, 6)), leaves(inputs(3, 6), torch.float64)
    penalty(lambda x, *rest: layer_norm(x, (6,), *rest, EPS), given).backward()
    penalty(standard, exact).backward()
    for g, w in zip(given, exact, strict=True):
        assert_near("a second gradient", g.grad, w.grad, 1e-4)  # type: ignore[union-attr,arg-type]
    assert calls == ["forward", "backward"]  # the kernel's backward is of the loss's own gradient, behind the slopes'


@interpreted
def test_autocast_gives_float32_or_what_is_asked_for(calls: list[str]) -> None:
    x, weight, bias = inputs(2, 6)
    assert x is not None
    with torch.autocast(DEVICE, torch.bfloat16):
        assert layer_norm(x.bfloat16(), (6,), weight, bias, EPS).dtype == torch.float32
        assert layer_norm(x, (6,), weight, bias, EPS, torch.float16).dtype == torch.float16
    assert calls == ["forward"] * 2


def test_layers_are_as_they_were_on_a_cpu() -> None:
    norm, x = LayerNorm(6), random(2, 3, 6).cpu()
    nn.init.normal_(norm.weight)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        norm.to(dtype)
        want = F.layer_norm(x, (6,), norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)
        assert torch.equal(norm(x), want)
        assert torch.equal(normed(norm, x, torch.bfloat16), want.to(torch.bfloat16))


def test_hooks_see_the_norm_as_it_was() -> None:
    seen: list[torch.dtype] = []
    norm = LayerNorm(6)
    norm.register_forward_hook(lambda _, __, y: seen.append(y.dtype))
    assert normed(norm, random(2, 6).cpu(), torch.bfloat16).dtype == torch.bfloat16
    assert seen == [torch.float32]


@interpreted
def test_ss2d_takes_one_kernel_for_norm_and_conversion(calls: list[str]) -> None:
    torch.manual_seed(0)
    layer = SS2D(d_model=6, d_state=1, dt_rank=1, d_conv=1, forward_type="v05_noz", selective_scan_backend="torch")
    layer.to(DEVICE)
    x = random(1, 3, 4, 6)
    with torch.no_grad():
        got = layer(x)
        assert calls == ["forward"]
        layer.out_norm.register_forward_hook(lambda *_: None)
        torch.testing.assert_close(layer(x), got, rtol=1e-5, atol=1e-6)


@interpreted
@pytest.mark.parametrize("gmlp", [False, True])
def test_a_block_under_autocast_norms_into_the_dtype_of_its_products(gmlp: bool, calls: list[str]) -> None:
    torch.manual_seed(0)
    block = VSSBlock(6, ssm_d_state=1, ssm_conv=1, forward_type="v05_noz", gmlp=gmlp, selective_scan_backend="torch")
    block.to(DEVICE)
    x, made = random(1, 3, 4, 6), []
    run = choice._forward

    def recorded(*args: Any) -> Tensor:
        made.append(args[4])
        return run(*args)

    choice._forward = recorded  # type: ignore[assignment]
    try:
        with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
            got = block(x)
            assert made == [torch.bfloat16] * 3
            made.clear()
            for module in (block.op, block.mlp):
                module.register_forward_hook(lambda *_: None)
            want = block(x)
    finally:
        choice._forward = run
    assert made == [torch.float32, torch.bfloat16, torch.float32]  # the one between is SS2D's own
    assert_near("the output", got, want.double(), 2e-2)  # the interpreter cuts bits off where the GPU rounds


# ---- what the compiler makes of them -------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(("channels", "capability"), [(96, 90), pytest.param(4096, 80, marks=pytest.mark.endless)])
def test_both_ways_in_registers(channels: int, capability: int) -> None:
    block = 1 << (channels - 1).bit_length()
    constants = {"WEIGHT": True, "ROWS": max(1, 512 // block), "BC": block, "V": 4}
    forward = compiled(
        "norm", "normalize", capability, ["*fp32"] * 3 + ["*bf16", "*fp32", "*fp32", "i32", "i32", "i32", "fp32"],
        {**constants, "BIAS": True, "SAVE": True}, max(1, block // 1024),
    )  # fmt: skip
    assert_small(forward, registers=168, spilled=0)
    assert forward.wide_loads >= 4
    backward = compiled(
        "norm",
        "gradients",
        capability,
        ["*bf16", *["*fp32"] * 6, "i32", "i32", "i32"],
        {**constants, "SUMS": True},
        max(1, block // 512),
    )
    assert_small(backward, registers=192, spilled=0)
