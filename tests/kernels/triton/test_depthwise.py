"""The Triton kernels of the depthwise convolution, interpreted: against standard operations in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.library import opcheck
from triton_tools import CASES, DEVICE, DTYPES, assert_near, assert_small, compiled, leaves, random

from vmamba.errors import BackendError
from vmamba.functional import depthwise as choice
from vmamba.functional import gpu, operators
from vmamba.functional.depthwise import depthwise3x3
from vmamba.layers.basic import Conv2d
from vmamba.layers.chain import chain

kernels = pytest.importorskip("vmamba.kernels.triton.layers.depthwise")
sums = pytest.importorskip("vmamba.kernels.triton.layers.sums")
jit = pytest.importorskip("vmamba.kernels.triton.jit")
interpreted = pytest.mark.skipif(
    not jit.INTERPRETED and not torch.cuda.is_available(),
    reason="the kernels were imported before the interpreter was asked for",
)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is not written shows as NaN."""

    def filled(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: make(*args, **kwargs).fill_(torch.nan)

    monkeypatch.setattr(operators, "workspace", lambda like: lambda n: like.new_full((n,), torch.nan).float())
    monkeypatch.setattr(torch, "empty_like", filled(torch.empty_like))


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let the functional layer take its way for GPUs here; what runs."""
    monkeypatch.setattr(gpu, "_DEVICE", DEVICE)
    monkeypatch.setattr(gpu, "_there", lambda: True)
    names: list[str] = []
    for name in ("depthwise_forward", "depthwise_gradients"):
        function = getattr(operators, name)

        def recorded(*args: Any, function: Callable[..., Any] = function, name: str = name) -> Any:
            names.append(name)
            return function(*args)

        monkeypatch.setattr(operators, name, recorded)
    return names


def inputs(
    b: int, h: int, w: int, c: int, bias: bool = True, dtype: torch.dtype = torch.float32
) -> list[Tensor | None]:
    x = random(b, h, w, c).to(dtype)
    return [x, random(c, 1, 3, 3, seed=1) / 3, random(c, seed=2) if bias else None]


def standard(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=weight.shape[0]).permute(0, 2, 3, 1)
    return F.silu(y) if silu else y


def both_ways(
    tensors: list[Tensor | None], silu: bool, dy: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, weight, bias = tensors
    assert x is not None
    assert weight is not None
    y = operators.depthwise_forward(x, weight, bias, silu)
    dy = random(*x.shape, seed=9).to(x.dtype) if dy is None else dy
    return y, *operators.depthwise_gradients(dy, x, weight, bias, silu, True, True)


def compare(tensors: list[Tensor | None], silu: bool, dy: Tensor | None = None) -> None:
    got = both_ways(tensors, silu, dy)
    exact = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    want = standard(*exact, silu=silu)  # type: ignore[arg-type]
    dtype = tensors[0].dtype  # type: ignore[union-attr]
    want.backward((random(*want.shape, seed=9).to(dtype) if dy is None else dy).double())
    assert got[0].dtype == got[1].dtype == dtype
    assert_near("the output", got[0], want.detach(), 1e-5 if dtype == torch.float32 else 2e-2)
    for name, g, t in zip(("x", "weight", "bias"), got[1:], exact, strict=True):
        if t is not None:
            assert t.grad is not None
            assert_near(f"the gradient of {name}", g, t.grad, 1e-4 if dtype == torch.float32 else 2e-2)


@interpreted
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", CASES, ids=str)
def test_output_and_every_gradient(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    compare(inputs(*shape, dtype=dtype), silu=True)


@interpreted
@pytest.mark.parametrize(("bias", "silu"), [(False, True), (True, False), (False, False)])
def test_without_bias_or_silu(bias: bool, silu: bool) -> None:
    compare(inputs(2, 4, 5, 12, bias), silu)


@interpreted
@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_strides(dtype: torch.dtype) -> None:
    _, weight, bias = inputs(1, 1, 1, 6)
    wide = random(2, 5, 6, 12).to(dtype)
    around = torch.full((2, 6, 8, 14), torch.nan, device=DEVICE).to(dtype)  # nothing of it may be read
    inner = around[:, 1:4, 2:7, 3:9]
    inner.copy_(random(*inner.shape))
    for x in (wide.chunk(2, -1)[1], wide[..., ::2], random(2, 6, 4, 5).to(dtype).permute(0, 2, 3, 1), inner,
              wide.transpose(1, 2)[..., :6]):  # fmt: skip
        compare([x, weight, bias], silu=True)
    x = wide[..., :6]
    compare([x, weight.flip(3), bias], silu=True, dy=torch.ones((), dtype=dtype, device=DEVICE).expand(x.shape))  # type: ignore[union-attr]


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_parameters_in_16_bits(dtype: torch.dtype) -> None:
    tensors = [None if t is None else t.to(dtype) for t in inputs(2, 4, 3, 8)]
    compare(tensors, silu=True)
    assert {t.dtype for t in both_ways(tensors, True)} == {dtype}


@interpreted
@pytest.mark.long
@pytest.mark.parametrize("together", [1, 2, 4, 7])
def test_strips_of_rows_and_several_columns_of_a_lane(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of one group of columns and of several, whole ones and not; strips, and several tiles of a program."""
    for least_rows, per_processor in ((3, 9), (9, 1)):
        ways = (kernels.Way(together, 4, 0, per_processor, least_rows),)
        monkeypatch.setattr(kernels, "FORWARD", ways)
        monkeypatch.setattr(kernels, "BACKWARD", ways)
        for width in (together, 2 * together, 3 * together - 1):
            compare(inputs(2, 7, width, 8), silu=True)


@interpreted
def test_the_parts_of_many_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BACKWARD", (kernels.Way(1, 1, 0, 10**6, 1),))
    monkeypatch.setattr(sums, "_PARTS", 4)
    compare(inputs(2, 3, 2, 5), silu=True)


@interpreted
def test_the_same_bits_again() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        tensors = inputs(2, 6, 7, 20, dtype=dtype)
        for first, second in zip(both_ways(tensors, True), both_ways(tensors, True), strict=True):
            assert torch.equal(first, second)


@interpreted
@pytest.mark.skipif(DEVICE == "cuda", reason="a file stands for the map")
def test_offsets_beyond_32_bits(tmp_path: Path) -> None:
    # A file that is nearly all hole stands for a large map; an offset that wraps would point before its start.
    image, row = 2**31, 2**30
    memory = torch.from_file(str(tmp_path / "map"), shared=True, size=2 * image + row, dtype=torch.bfloat16)
    x = memory.as_strided((2, 2, 2, 8), (image, row, 8, 1))
    x.copy_(random(2, 2, 2, 8))
    compare([x, *inputs(1, 1, 1, 8)[1:]], silu=True)


@interpreted
def test_silu_of_large_values() -> None:
    values = torch.tensor([-3e38, -1e4, -104.0, -88.0, -20.0, -1e-30, 0.0, 1e-30, 20.0, 88.0, 3e38], device=DEVICE)
    weight = torch.zeros(len(values), 1, 3, 3, device=DEVICE)
    weight[:, :, 1, 1] = 1  # the identity
    y = operators.depthwise_forward(values.view(1, 1, 1, -1), weight, None, True)
    torch.testing.assert_close(y.flatten().double(), F.silu(values.double()), rtol=1e-5, atol=1e-30)


@interpreted
@pytest.mark.long
def test_operators_are_registered_as_pytorch_wants_them() -> None:
    x, weight, bias = inputs(2, 2, 3, 6)
    assert x is not None
    assert weight is not None
    for one in (x, random(2, 6, 2, 3).permute(0, 2, 3, 1), random(2, 2, 3, 12)[..., :6]):
        tensors = [t.detach().requires_grad_() for t in (one, weight, bias) if t is not None]
        opcheck(torch.ops.vmamba.depthwise3x3.default, (*tensors, True))
        dy = random(*x.shape, seed=3)
        opcheck(torch.ops.vmamba.depthwise3x3_backward.default, (dy, *(t.detach() for t in tensors), True, True, True))


@interpreted
def test_operator_refuses_what_the_kernel_cannot_run() -> None:
    x, weight, bias = inputs(1, 2, 3, 4)
    assert x is not None
    assert weight is not None
    run = torch.ops.vmamba.depthwise3x3
    with pytest.raises(BackendError, match="float64"):
        run(x.double(), weight, bias, True)
    with pytest.raises(ValueError, match=r"\(1, 2, 3, 4\)"):
        run(x, weight[:3], bias, True)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(run(leaf, weight, bias, True).square().sum(), leaf, create_graph=True)
    with pytest.raises(BackendError, match="second derivatives"):
        slope.sum().backward()


# ---- the choice ----------------------------------------------------------------------------------------------------


@interpreted
def test_ordinary_calls_take_the_kernels(on_gpu: list[str]) -> None:
    tensors = leaves(inputs(2, 3, 4, 6))
    y = depthwise3x3(*tensors, silu=True)  # type: ignore[arg-type]
    y.sum().backward()
    assert on_gpu == ["depthwise_forward", "depthwise_gradients"]
    exact = leaves(inputs(2, 3, 4, 6), torch.float64)
    standard(*exact, silu=True).sum().backward()  # type: ignore[arg-type]
    for g, w in zip(tensors, exact, strict=True):
        assert_near("a gradient", g.grad, w.grad, 1e-5)  # type: ignore[union-attr,arg-type]


@interpreted
@pytest.mark.parametrize("frozen", [(0,), (1, 2), (0, 1), (0, 2)], ids=str)
def test_frozen_inputs_get_no_gradient(frozen: tuple[int, ...], on_gpu: list[str]) -> None:
    tensors = leaves(inputs(1, 3, 4, 6))
    for i, t in enumerate(tensors):
        t.requires_grad_(i not in frozen)  # type: ignore[union-attr]
    for silu in (True, False):
        depthwise3x3(*tensors, silu=silu).sum().backward()  # type: ignore[arg-type]
    assert [t.grad is None for t in tensors] == [i in frozen for i in range(3)]  # type: ignore[union-attr]


@interpreted
def test_gradients_of_gradients_and_batches_of_gradients_go_the_standard_way(on_gpu: list[str]) -> None:
    def penalty(run: Callable[..., Tensor], tensors: list[Tensor | None]) -> Tensor:
        given = [t for t in tensors if t is not None]
        slopes = torch.autograd.grad(run(*tensors, silu=True).square().sum(), given, create_graph=True)
        return torch.stack([s.square().sum() for s in slopes]).sum()

    tensors, exact = leaves(inputs(1, 3, 2, 4)), leaves(inputs(1, 3, 2, 4), torch.float64)
    penalty(depthwise3x3, tensors).backward()
    penalty(standard, exact).backward()
    for g, w in zip(tensors, exact, strict=True):
        assert_near("a second gradient", g.grad, w.grad, 1e-5)  # type: ignore[union-attr,arg-type]
    x, weight, bias = inputs(1, 2, 2, 3)
    got = torch.autograd.functional.jacobian(lambda t: depthwise3x3(t, weight, bias, True), x, vectorize=True)  # type: ignore[arg-type]
    want = torch.autograd.functional.jacobian(lambda t: standard(t, weight, bias, True), x)  # type: ignore[arg-type]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@interpreted
def test_transforms_and_other_dtypes_get_standard_operations(on_gpu: list[str]) -> None:
    x, weight, bias = inputs(2, 3, 4, 6)
    assert x is not None
    assert weight is not None
    torch.func.vmap(lambda t: depthwise3x3(t[None], weight, bias, True))(x)
    torch.func.jvp(lambda t: depthwise3x3(t, weight, bias, True), (x,), (x,))
    torch.func.grad(lambda t: depthwise3x3(t, weight, bias, True).sum())(x)
    depthwise3x3(x[:0], weight, bias, True)
    assert depthwise3x3(x.double(), weight.double(), bias.double(), True).dtype == torch.float64  # type: ignore[union-attr]
    with pytest.raises(RuntimeError):
        depthwise3x3(x.bfloat16(), weight, bias, True)
    assert on_gpu == []


@interpreted
def test_autocast_computes_in_its_dtype(on_gpu: list[str]) -> None:
    x, weight, bias = leaves(inputs(2, 3, 4, 6))
    with torch.autocast(DEVICE, torch.bfloat16):
        y = depthwise3x3(x, weight, bias, True)  # type: ignore[arg-type]
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert {t.grad.dtype for t in (x, weight, bias)} == {torch.float32}  # type: ignore[union-attr]
    assert on_gpu == ["depthwise_forward", "depthwise_gradients"]


@interpreted
def test_a_convolution_and_its_silu_are_one_call(on_gpu: list[str]) -> None:
    conv, act, x = Conv2d(6, 6, 3, padding=1, groups=6).to(DEVICE), nn.SiLU(), random(1, 3, 4, 6)
    want = standard(x, conv.weight, conv.bias, True)
    silus: list[bool] = []
    run = operators.depthwise_forward
    operators.depthwise_forward = lambda *args: (silus.append(args[3]), run(*args))[1]  # type: ignore[assignment]
    with torch.no_grad():
        torch.testing.assert_close(chain(x, conv, act), want, rtol=1e-5, atol=1e-6)
        seen: list[int] = []
        act.register_forward_hook(lambda *_: seen.append(1))
        torch.testing.assert_close(chain(x, conv, act), want, rtol=1e-5, atol=1e-6)
    operators.depthwise_forward = run
    assert silus == [True, False]
    assert seen == [1]


@interpreted
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_graph_holds_one_operator(dynamic: bool, on_gpu: list[str]) -> None:
    conv, act = Conv2d(6, 6, 3, padding=1, groups=6).to(DEVICE), nn.SiLU()
    graphs: list[list[str]] = []

    def look(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., Any]:
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    torch._dynamo.reset()
    run = torch.compile(lambda t: chain(t, conv, act), backend=look, fullgraph=True, dynamic=dynamic)
    x = random(2, 3, 4, 6)
    torch.testing.assert_close(run(x), standard(x, conv.weight, conv.bias, True), rtol=1e-5, atol=1e-6)
    assert len(graphs) == 1
    assert [name for name in graphs[0] if "sym_size" not in name] == ["vmamba.depthwise3x3.default"]


@interpreted
def test_a_compiled_training_step_is_whole(on_gpu: list[str]) -> None:
    torch._dynamo.reset()
    conv, act = Conv2d(6, 6, 3, padding=1, groups=6).to(DEVICE), nn.SiLU()
    x = random(2, 3, 4, 6).requires_grad_()
    run = torch.compile(lambda t: chain(t, conv, act).square().sum(), backend="aot_eager", fullgraph=True)
    run(x).backward()
    got = [x.grad, conv.weight.grad, conv.bias.grad]  # type: ignore[union-attr]
    exact = leaves([x, conv.weight, conv.bias], torch.float64)
    standard(*exact, silu=True).square().sum().backward()  # type: ignore[arg-type]
    for g, w in zip(got, exact, strict=True):
        assert_near("a gradient", g, w.grad, 1e-5)  # type: ignore[union-attr,arg-type]


@interpreted
def test_transforms_in_a_compiled_graph_get_standard_operations(on_gpu: list[str]) -> None:
    x, weight, bias = inputs(1, 3, 2, 4)
    assert x is not None
    assert weight is not None
    torch._dynamo.reset()

    def slope(t: Tensor) -> Tensor:
        return torch.func.grad(lambda u: depthwise3x3(u, weight, bias, True).square().sum())(t)

    got = torch.compile(slope, backend="aot_eager", fullgraph=True)(x)
    assert_near("the gradient", got, slope(x).double(), 1e-5)
    assert on_gpu == []


def test_exports_get_standard_operations(on_gpu: list[str]) -> None:
    conv, x = Conv2d(6, 6, 3, padding=1, groups=6).to(DEVICE), random(1, 3, 4, 6)
    names = {str(n.target) for n in torch.export.export(conv, (x,)).graph.nodes if n.op == "call_function"}
    assert not any("vmamba" in name for name in names)
    assert on_gpu == []


def test_without_a_gpu_nothing_of_triton_is_asked_for() -> None:
    assert gpu._DEVICE == "cuda"
    assert not gpu.takes_kernels(torch.ones(1))
    assert choice.gpu is gpu


# ---- what the compiler makes of them -------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(
    ("capability", "dtype", "columns"),
    [pytest.param(80, "bf16", 4, marks=pytest.mark.endless), (90, "fp32", 4), (90, "bf16", 7)],
)
def test_forward_in_registers(capability: int, dtype: str, columns: int) -> None:
    lanes = 4 if columns == 4 else 2
    found = compiled(
        "depthwise_kernels", "convolve", capability,
        [f"*{dtype}", "*fp32", "*fp32", f"*{dtype}", *["i32"] * 10],
        {"X_PIXEL": 96, "Y_PIXEL": 96, "BIAS": True, "SILU": True, "BP": lanes, "P": columns, "BC": 32, "V": lanes,
         "EDGE": False, "EVEN": True, "BESIDE": 1}, warps=1,
    )  # fmt: skip
    assert_small(found, registers=168, spilled=0)
    if columns == 4:
        assert found.wide_loads >= 6  # a row's columns and one on each side, a lane's channels at once


@pytest.mark.long
@pytest.mark.parametrize(
    ("capability", "dtype", "edge", "columns", "beside"),
    [
        (90, "bf16", False, 4, 1),
        pytest.param(80, "fp32", True, 4, 1, marks=pytest.mark.endless),
        (90, "bf16", False, 7, 0),
    ],
)
def test_backward_in_registers(capability: int, dtype: str, edge: bool, columns: int, beside: int) -> None:
    found = compiled(
        "depthwise_kernels", "gradients", capability,
        [f"*{dtype}", "*fp32", "*fp32", f"*{dtype}", f"*{dtype}", "*fp32", *["i32"] * 13],
        {"X_PIXEL": 96, "DY_PIXEL": 96, "DX_PIXEL": 96, "BIAS": True, "SILU": True, "SUMS": True, "DX": True,
         "BP": 2, "P": columns, "BC": 32, "V": 2, "EDGE": edge, "EVEN": not edge, "BESIDE": beside}, warps=1,
    )  # fmt: skip
    assert_small(found, registers=255, spilled=0)
