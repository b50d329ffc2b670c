"""The compiled kernels around the scan: against standard operations in float64, and where they must not run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import vmamba
from vmamba.functional.depthwise import depthwise3x3
from vmamba.functional.mlp import mlp_gelu
from vmamba.kernels.native import gelu as gelu_kernels
from vmamba.kernels.native import library as native
from vmamba.layers import SS2D, Mlp, VSSBlock
from vmamba.layers.basic import Conv2d

pytestmark = pytest.mark.skipif(native.library_path() is None, reason="the native kernels are not built")

ISAS = native.isas()[1] if native.library_path() else ()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_near(name: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    """Relative to the largest element: single ones cancel, so that their own size says nothing."""
    assert got.shape == want.shape, name
    error = ((got.double() - want).abs().max() / want.abs().max().clamp_min(1e-30)).item()
    assert error <= tolerance, f"{name} is off by {error:.1e} of its scale, more than {tolerance:.1e}"


def output_and_gradients(run: Callable[..., Tensor], inputs: list[Tensor | None], dtype: torch.dtype) -> list[Tensor]:
    leaves = [None if t is None else t.detach().to(dtype).requires_grad_() for t in inputs]
    y = run(*leaves)
    y.backward(random(*y.shape, seed=99).to(dtype))
    return [y.detach(), *(t.grad for t in leaves if t is not None and t.grad is not None)]


def compare(run: Callable[..., Tensor], standard: Callable[..., Tensor], inputs: list[Tensor | None]) -> None:
    got = output_and_gradients(run, inputs, torch.float32)
    want = output_and_gradients(standard, inputs, torch.float64)
    assert len(got) == len(want) == 1 + sum(t is not None for t in inputs)
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        assert_near("the output" if i == 0 else f"gradient {i - 1}", g, w, tolerance=3e-6)  # some float32 roundings


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that run."""
    names: list[str] = []
    call = native.call

    def recorded(name: str, args: Any, isa_name: str | None = None) -> str:
        names.append(name)
        return call(name, args, isa_name)

    monkeypatch.setattr(native, "call", recorded)
    return names


# ---- GELU ----------------------------------------------------------------------------------------------------------


def gelu(x: Tensor, out: Tensor | None = None) -> Tensor:
    y = torch.empty_like(x) if out is None else out
    gelu_kernels.forward(x, y)
    return y


def gelu_backward(x: Tensor, dy: Tensor) -> Tensor:
    y = torch.empty_like(x)
    gelu_kernels.backward(x, dy, y)
    return y


def exact_gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    """GELU and its derivative in float64, without the cancellation of 1 + erf."""
    x = x.double()
    distribution = torch.special.erfc(-x * 0.5**0.5) / 2
    density = torch.exp(-x * x / 2) * (0.5 / torch.pi) ** 0.5
    return x * distribution, distribution + x * density


def many_floats() -> Tensor:
    """Floats of every sign and exponent, zeros and subnormals among them, and a dense middle."""
    mantissas = torch.randint(0, 1 << 23, (64,), generator=torch.Generator().manual_seed(0))
    mantissas = torch.cat([torch.tensor([0, 1, (1 << 23) - 1]), mantissas])
    magnitude = (torch.arange(255)[:, None] << 23 | mantissas).flatten().int().view(torch.float32)
    return torch.cat([magnitude, -magnitude, torch.linspace(-16, 16, 200_001)])


@pytest.mark.parametrize("isa", ISAS)
def test_gelu_is_accurate_over_all_floats(isa: str) -> None:
    x = many_floats()
    dx = torch.ones_like(x)
    with native.forced_isa(isa):
        y, again = gelu(x), gelu_backward(x, dx)
    exact, slope = exact_gelu(x)
    assert torch.equal(y, again)
    assert ((y.double() - exact).abs() <= 2.5e-7 * x.double().abs() + 1e-45).all()  # four units in x's last place
    left = (x < 0) & (exact.abs() > 1e-37)  # the tail keeps digits that 1 + erf loses
    relative = ((y.double() - exact).abs() / exact.abs())[left]
    assert (relative <= 5e-7 * (1 + x[left].double() ** 2)).all()
    assert (dx.double() - slope).abs().max() <= 4e-7


@pytest.mark.parametrize("isa", ISAS)
def test_gelu_of_infinities_and_nan(isa: str) -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan])
    dx = torch.ones(3)
    with native.forced_isa(isa):
        y = gelu_backward(x, dx)
    torch.testing.assert_close(y, torch.tensor([torch.inf, 0.0, torch.nan]), equal_nan=True)
    torch.testing.assert_close(dx, torch.tensor([1.0, 0.0, torch.nan]), equal_nan=True)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("count", [1, 3, 31, 32, 33, 16383, 16384, 16385, 50_000])
def test_gelu_stays_inside_its_tensors(isa: str, count: int) -> None:
    guarded = torch.full((count + 128,), 7.0)
    inside = guarded[64 : 64 + count]
    inside.copy_(random(count))
    want = F.gelu(inside.double())
    with native.forced_isa(isa):
        gelu(inside, out=inside)
        assert_near("GELU", inside, want, tolerance=2.5e-7)
        gelu_backward(random(count), inside)
    assert (guarded[:64] == 7).all()
    assert (guarded[64 + count :] == 7).all()


# ---- the feed-forward part -----------------------------------------------------------------------------------------


def mlp_inputs(shape: tuple[int, ...], hidden: int, c_out: int, biases: bool = True) -> list[Tensor | None]:
    c = shape[-1]
    weight1, weight2 = random(hidden, c, seed=1) / c**0.5, random(c_out, hidden, seed=2) / hidden**0.5
    bias1, bias2 = (random(hidden, seed=3), random(c_out, seed=4)) if biases else (None, None)
    return [random(*shape), weight1, bias1, weight2, bias2]


def standard_mlp(x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None) -> Tensor:
    return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)


def is_fused(y: Tensor) -> bool:
    return type(y.grad_fn).__name__ == "_MlpGeluBackward"


@pytest.mark.parametrize("isa", ISAS)
@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    hidden=st.sampled_from([1, 7, 33, 100, 200]),
    c_out=st.integers(1, 120),
    biases=st.booleans(),
)
def test_mlp_output_and_every_gradient(isa: str, shape: list[int], hidden: int, c_out: int, biases: bool) -> None:
    with native.forced_isa(isa):
        compare(mlp_gelu, standard_mlp, mlp_inputs(tuple(shape), hidden, c_out, biases))


def test_mlp_takes_any_strides() -> None:
    x, *weights = mlp_inputs((2, 6, 4, 5), 100, 9)
    assert x is not None
    for view in (x.permute(0, 2, 1, 3), x[:, ::2], x.transpose(1, 3)[..., :5].transpose(1, 2)):
        inputs = [view if view.shape[-1] == 5 else x, *weights]
        compare(mlp_gelu, standard_mlp, inputs)
        expanded = [t.detach().requires_grad_() for t in inputs if t is not None]
        mlp_gelu(*expanded).sum().backward()  # a gradient of stride 0


def test_mlp_keeps_one_hidden_map_for_backward() -> None:
    inputs = [t.requires_grad_() for t in mlp_inputs((2, 3, 10), 40, 10) if t is not None]
    kept: list[int] = []

    def keep(t: Tensor) -> Tensor:
        kept.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        assert is_fused(mlp_gelu(*inputs))
    parameters = sum(t.numel() for t in inputs[1:])
    assert sum(kept) - parameters == 2 * 3 * (10 + 40)


def test_mlp_gradients_of_gradients() -> None:
    def penalty(run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        slopes = torch.autograd.grad(run(*inputs).square().sum(), inputs, create_graph=True)
        return torch.stack([s.square().sum() for s in slopes]).sum()

    inputs = mlp_inputs((3, 5), 100, 6)
    compare(lambda *t: penalty(mlp_gelu, *t), lambda *t: penalty(standard_mlp, *t), inputs)


def test_mlp_gradients_of_inputs_that_depend_on_each_other() -> None:
    x = random(4, 4).requires_grad_()
    for run, dtype in ((mlp_gelu, torch.float32), (standard_mlp, torch.float64)):
        leaf = x.detach().to(dtype).requires_grad_()
        (slope,) = torch.autograd.grad(run(leaf, leaf.sin(), None, leaf.cos(), None).sum(), leaf, create_graph=True)
        slope.square().sum().backward()
        assert leaf.grad is not None
        if dtype == torch.float32:
            got = leaf.grad
    assert_near("the second gradient", got, leaf.grad, tolerance=3e-6)


def test_mlp_batched_gradients() -> None:
    _, *weights = mlp_inputs((2, 5), 100, 6)
    x = random(2, 5)
    rows = torch.autograd.functional.jacobian(lambda t: mlp_gelu(t, *weights), x, vectorize=True)
    want = torch.autograd.functional.jacobian(lambda t: standard_mlp(t, *weights), x)
    torch.testing.assert_close(rows, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frozen", [(0,), (0, 1, 2), (1, 2), (3, 4), (0, 1, 2, 3), (0, 1, 2, 4)], ids=str)
def test_mlp_frozen_inputs_get_no_gradient(frozen: tuple[int, ...]) -> None:
    inputs = [t for t in mlp_inputs((3, 5), 100, 6) if t is not None]
    for i, t in enumerate(inputs):
        t.requires_grad_(i not in frozen)
    mlp_gelu(*inputs).sum().backward()
    exact = [t.detach().double().requires_grad_() for t in inputs]
    standard_mlp(*exact).sum().backward()
    for i, (t, e) in enumerate(zip(inputs, exact, strict=True)):
        if i in frozen:
            assert t.grad is None
        else:
            assert_near(f"gradient {i}", t.grad, e.grad, tolerance=3e-6)


def test_mlp_does_not_depend_on_threads() -> None:
    inputs = mlp_inputs((5, 40, 24), 96, 24)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            h = random(70_001)
            dh = random(70_001, seed=5)
            results.append([gelu(h), gelu_backward(h, dh), dh])
            output_and_gradients(mlp_gelu, inputs, torch.float32)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_mlp_under_checkpointing() -> None:
    layer = Mlp(8, 32)
    x = random(2, 3, 8).requires_grad_()
    y = checkpoint(layer, x, use_reentrant=False)
    y.sum().backward()
    got = x.grad
    x.grad = None
    layer(x).sum().backward()
    torch.testing.assert_close(got, x.grad, rtol=0, atol=0)


def test_mlp_inference_leaves_its_inputs_alone(calls: list[str]) -> None:
    inputs = mlp_inputs((3, 5), 100, 6)
    copies = [None if t is None else t.clone() for t in inputs]
    with torch.inference_mode():
        y = mlp_gelu(*inputs)  # type: ignore[arg-type]
    assert calls == ["gelu_forward"]
    torch.testing.assert_close(y, standard_mlp(*inputs), rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))  # type: ignore[arg-type]


def test_mlp_who_looks_on_sees_standard_operations(calls: list[str]) -> None:
    layer, x = Mlp(8, 32), random(2, 3, 8)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 2 * 6 * 8 * 32
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    for dtype in (torch.float64, torch.bfloat16):
        assert copy.deepcopy(layer).to(dtype)(x.to(dtype)).dtype == dtype
    weights = (layer.fc1.weight, layer.fc1.bias, layer.fc2.weight, layer.fc2.bias)
    torch.func.vmap(lambda row: mlp_gelu(row, *weights))(x)
    torch.func.jvp(lambda t: mlp_gelu(t, *weights), (x,), (torch.ones_like(x),))
    torch.func.grad(lambda t: mlp_gelu(t, *weights).sum())(x)
    mlp_gelu(x[:0], *weights)
    exported = torch.export.export(layer, (x,))
    names = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert {"aten.linear.default", "aten.gelu.default"} <= names <= {
        "aten.linear.default", "aten.gelu.default", "aten.dropout.default",
    }  # fmt: skip
    assert calls == []
    layer(x)
    assert calls == ["gelu_forward"]


def test_mlp_in_pieces_where_one_of_them_is_special(calls: list[str]) -> None:
    x = random(2, 3, 8)
    seen: list[str] = []

    def changed(change: Callable[[Mlp], object]) -> Mlp:
        layer = Mlp(8, 32, drop=0.5).eval()
        change(layer)
        return layer

    def hook(name: str) -> Callable[..., None]:
        return lambda *_: seen.append(name)

    changed(lambda m: m.fc1.register_forward_hook(hook("fc1")))(x)
    changed(lambda m: m.act.register_forward_hook(hook("act")))(x)
    changed(lambda m: m.fc2.register_forward_pre_hook(hook("fc2")))(x)
    handle = nn.modules.module.register_module_forward_hook(hook("global"))
    changed(lambda m: None)(x)
    handle.remove()
    assert seen == ["fc1", "act", "fc2", *["global"] * 6]  # drop runs twice, and the layer itself
    changed(lambda m: setattr(m, "fc1", nn.Linear(8, 32)))(x)
    changed(lambda m: setattr(m, "act", nn.GELU("tanh")))(x)
    changed(lambda m: nn.utils.parametrizations.weight_norm(m.fc2))(x)
    changed(lambda m: m.train())(x)
    Mlp(8, 32, act_layer="relu")(x)
    assert calls == []
    changed(lambda m: None)(x)
    assert calls == ["gelu_forward"]


def test_mlp_without_the_kernels_runs_standard_operations(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    monkeypatch.setattr(native, "obstacle", lambda: object())
    compare(mlp_gelu, standard_mlp, mlp_inputs((3, 5), 100, 6))
    assert calls == []


# ---- the depthwise convolution -------------------------------------------------------------------------------------


def depthwise_inputs(b: int, h: int, w: int, c: int, bias: bool = True) -> list[Tensor | None]:
    return [random(b, h, w, c), random(c, 1, 3, 3, seed=1) / 3, random(c, seed=2) if bias else None]


def standard_depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=weight.shape[0]).permute(0, 2, 3, 1)
    return F.silu(y) if silu else y


def compare_depthwise(inputs: list[Tensor | None], silu: bool) -> None:
    compare(lambda *t: depthwise3x3(*t, silu=silu), lambda *t: standard_depthwise(*t, silu=silu), inputs)


SMALL_SIZES = st.integers(1, 9)


@pytest.mark.parametrize("isa", ISAS)
@settings(deadline=None, max_examples=25, derandomize=True)
@given(b=st.integers(1, 3), h=SMALL_SIZES, w=SMALL_SIZES, c=st.integers(1, 70), bias=st.booleans(), silu=st.booleans())
def test_depthwise_output_and_every_gradient(isa: str, b: int, h: int, w: int, c: int, bias: bool, silu: bool) -> None:
    with native.forced_isa(isa):
        compare_depthwise(depthwise_inputs(b, h, w, c, bias), silu)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 40, 16), (2, 40, 1, 33), (9, 5, 6, 130)], ids=str)
def test_depthwise_thin_maps_and_many_channels(isa: str, shape: tuple[int, int, int, int]) -> None:
    with native.forced_isa(isa):
        compare_depthwise(depthwise_inputs(*shape), silu=True)


@pytest.mark.parametrize("isa", ISAS)
def test_silu_of_large_values(isa: str) -> None:
    values = torch.tensor([-3e38, -1e4, -104.0, -88.0, -87.0, -20.0, -1e-30, 0.0, 1e-30, 20.0, 88.0, 104.0, 3e38])
    weight = torch.zeros(len(values), 1, 3, 3)
    weight[:, :, 1, 1] = 1  # the identity
    with native.forced_isa(isa):
        x = values.view(1, 1, 1, -1).clone().requires_grad_()
        y = depthwise3x3(x, weight, None, silu=True)
        y.sum().backward()
    exact = values.double().view(1, 1, 1, -1).requires_grad_()
    want = F.silu(exact)
    want.sum().backward()
    torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-30)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)
    with native.forced_isa(isa):
        assert depthwise3x3(torch.full((1, 1, 1, 5), torch.nan), weight[:5], None, silu=True).isnan().all()


def test_depthwise_takes_any_strides() -> None:
    _, weight, bias = depthwise_inputs(2, 5, 6, 20)
    assert bias is not None
    wide = random(2, 5, 6, 40)
    for x in (
        wide.chunk(2, dim=-1)[1],
        wide[..., ::2],
        random(2, 20, 5, 6).permute(0, 2, 3, 1),
        wide[:, ::2, ::3, :20],
    ):
        for w in (weight, weight.flip(3), weight.expand(20, 1, 3, 3).transpose(2, 3)):
            compare_depthwise([x, w, torch.stack([bias, bias], dim=1)[:, 0]], silu=True)
    leaf = wide[..., :20].detach().requires_grad_()
    depthwise3x3(leaf, weight, bias, silu=True).sum().backward()  # a gradient of stride 0
    exact = leaf.detach().double().requires_grad_()
    standard_depthwise(exact, weight.double(), bias.double(), silu=True).sum().backward()
    assert_near("the gradient", leaf.grad, exact.grad, tolerance=3e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [5, 16, 37])
def test_depthwise_stays_inside_its_tensors(isa: str, channels: int) -> None:
    # What lies around the input is NaN: one element read from there and used shows in the results.
    around = torch.full((2, 6, 9, channels + 8), torch.nan)
    x = around[:, 1:5, 2:7, 4 : 4 + channels]
    x.copy_(random(*x.shape))
    _, weight, bias = depthwise_inputs(2, 4, 5, channels)
    with native.forced_isa(isa):
        compare_depthwise([x, weight, bias], silu=True)


def test_depthwise_does_not_depend_on_threads() -> None:
    inputs = depthwise_inputs(5, 9, 11, 70)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(
                output_and_gradients(lambda *t: depthwise3x3(*t, silu=True), inputs, torch.float32)  # type: ignore[misc]
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_depthwise_keeps_its_input_only() -> None:
    inputs = [t.requires_grad_() for t in depthwise_inputs(2, 3, 4, 10) if t is not None]
    kept: list[int] = []

    def keep(t: Tensor) -> Tensor:
        kept.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        depthwise3x3(*inputs, silu=True)
    assert sorted(kept) == sorted(t.numel() for t in inputs)


@pytest.mark.parametrize("frozen", [(0,), (1, 2), (0, 1), (0, 2)], ids=str)
def test_depthwise_frozen_inputs_get_no_gradient(frozen: tuple[int, ...]) -> None:
    inputs = [t for t in depthwise_inputs(2, 3, 4, 10) if t is not None]
    for i, t in enumerate(inputs):
        t.requires_grad_(i not in frozen)
    depthwise3x3(*inputs, silu=True).sum().backward()
    assert [t.grad is None for t in inputs] == [i in frozen for i in range(3)]


def test_depthwise_gradients_of_gradients() -> None:
    def penalty(run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        slopes = torch.autograd.grad(run(*inputs, silu=True).square().sum(), inputs, create_graph=True)
        return torch.stack([s.square().sum() for s in slopes]).sum()

    inputs = depthwise_inputs(2, 3, 4, 5)
    compare(lambda *t: penalty(depthwise3x3, *t), lambda *t: penalty(standard_depthwise, *t), inputs)


def test_depthwise_batched_gradients() -> None:
    x, weight, bias = depthwise_inputs(1, 2, 3, 4)
    assert x is not None
    got = torch.autograd.functional.jacobian(lambda t: depthwise3x3(t, weight, bias, True), x, vectorize=True)
    want = torch.autograd.functional.jacobian(lambda t: standard_depthwise(t, weight, bias, True), x)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_depthwise_mistakes_are_told_as_torch_tells_them() -> None:
    x, weight, bias = depthwise_inputs(1, 2, 3, 4)
    assert x is not None
    with pytest.raises(RuntimeError, match="groups"):
        depthwise3x3(x[..., :3], weight, bias, silu=True)


def ss2d(**options: Any) -> SS2D:
    torch.manual_seed(0)
    return SS2D(d_model=6, d_state=1, dt_rank=1, forward_type="v05_noz", **options)


def test_ss2d_who_looks_on_sees_standard_operations(calls: list[str]) -> None:
    layer, x = ss2d(), random(1, 4, 5, 6)
    with FlopCounterMode(display=False), torch.no_grad():
        layer(x)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        layer(x)
    weight, bias = layer.conv2d.weight, layer.conv2d.bias  # type: ignore[union-attr]
    u = random(1, 4, 5, 12)
    for dtype in (torch.float64, torch.bfloat16):
        assert depthwise3x3(u.to(dtype), weight.to(dtype), bias.to(dtype), silu=True).dtype == dtype  # type: ignore[union-attr]
    torch.func.vmap(lambda t: depthwise3x3(t, weight, bias, silu=True))(u[None])
    torch.func.jvp(lambda t: depthwise3x3(t, weight, bias, silu=True), (u,), (u,))
    with vmamba.backend("torch"):
        torch.export.export(layer, (x,))
    depthwise3x3(u[:0], weight, bias, silu=True)
    assert [name for name in calls if "depthwise" in name] == []
    layer(x)
    assert [name for name in calls if "depthwise" in name] == ["depthwise_forward"]


def test_ss2d_in_pieces_where_one_of_them_is_special(calls: list[str]) -> None:
    x = random(1, 4, 5, 6)
    seen: list[str] = []

    def depthwise_calls(layer: nn.Module) -> list[str]:
        calls.clear()
        layer(x)
        return [name for name in calls if "depthwise" in name]

    layer = ss2d()
    layer.act.register_forward_hook(lambda *_: seen.append("act"))
    assert depthwise_calls(layer) == ["depthwise_forward"]  # the convolution alone
    layer = ss2d()
    layer.conv2d.register_forward_hook(lambda *_: seen.append("conv"))  # type: ignore[union-attr]
    depthwise_calls(layer)
    assert seen == ["act", "conv"]
    for options in ({"d_conv": 5}, {"d_conv": 1}):
        assert depthwise_calls(ss2d(**options)) == []
    assert depthwise_calls(ss2d(act_layer="gelu")) == ["depthwise_forward"]


@pytest.mark.parametrize(
    "options",
    [{"stride": 2}, {"padding": 0}, {"dilation": 2}, {"groups": 2}, {"padding_mode": "circular"}, {"kernel_size": 5}],
    ids=str,
)
def test_other_convolutions_are_torchs(options: dict[str, Any], calls: list[str]) -> None:
    conv = Conv2d(4, 4, **{"kernel_size": 3, "padding": 1, "groups": 4, **options})
    x = random(2, 6, 7, 4)
    want = nn.Conv2d.forward(conv, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(conv(x), want, rtol=0, atol=0)
    assert calls == []


@pytest.mark.parametrize("forward_type", ["v05_noz", "v2", "v0", "v052dc_noz"])
@pytest.mark.parametrize("training", [True, False])
def test_block_is_the_same_with_and_without_the_kernels(
    forward_type: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    block = VSSBlock(hidden_dim=10, ssm_d_state=2, forward_type=forward_type).train(training)
    x = random(2, 5, 6, 10)

    def run() -> list[Tensor]:
        block.zero_grad()
        leaf = x.clone().requires_grad_()
        block(leaf).square().sum().backward()
        return [leaf.grad, *(p.grad for p in block.parameters())]  # type: ignore[list-item]

    got = run()
    for module in ("mlp", "depthwise"):
        monkeypatch.setattr(f"vmamba.functional.{module}.takes_kernels", lambda *_: False)
    for g, w in zip(got, run(), strict=True):
        assert_near("a gradient", g, w.double(), tolerance=1e-5)


# ---- residuals without gradients -----------------------------------------------------------------------------------


def block(**options: Any) -> VSSBlock:
    torch.manual_seed(0)
    return VSSBlock(hidden_dim=96, ssm_ratio=1.0, ssm_d_state=1, forward_type="v05_noz", **options).eval()


@pytest.mark.parametrize(
    "options", [{}, {"post_norm": True}, {"gmlp": True}, {"drop_path": 0.5}, {"channel_first": True}]
)
def test_blocks_give_the_same_with_and_without_gradients(options: dict[str, Any]) -> None:
    module = block(**options)
    x = torch.randn(2, 96, 7, 5) if "channel_first" in options else torch.randn(2, 7, 5, 96)
    before, exact = x.clone(), module(x).detach()
    with torch.no_grad():
        assert torch.allclose(module(x), exact, rtol=1e-6, atol=1e-6)
    assert torch.equal(x, before)
