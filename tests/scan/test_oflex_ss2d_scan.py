"""The fused CPU kernels against the oracle: every instruction set of this machine, scan mode, odd size and gradient."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from vmamba.errors import BackendError
from vmamba.kernels.interface import recorded_runs
from vmamba.kernels.native import library as native
from vmamba.scan.orders import SCAN_MODES, cross_merge, cross_scan, directions_of, to_sequence
from vmamba.scan.reference import selective_scan_reference

if native.obstacle() is not None:
    pytest.skip(f"no compiled kernels: {native.obstacle()}", allow_module_level=True)

from vmamba.scan.orders import readings_of
from vmamba.scan.schema import ss2d_scan

ISAS = native.isas()[1]
NAMES = ("x", "x_dbl", "dt_weight", "dt_bias", "A", "D")


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with native.forced_isa(request.param):
        yield request.param


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def reference(
    x: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    scan_mode: str,
    delta_softplus: bool = True,
) -> Tensor:
    """The operator as the oracle's recurrence between plain cross-scan and cross-merge, in float64."""
    _, h, w, d = x.shape
    n, r = A.shape[1], dt_weight.shape[2]
    x, x_dbl, dt_weight, A = x.double(), x_dbl.double(), dt_weight.double(), A.double()
    maps = x_dbl.permute(0, 3, 4, 1, 2)
    rows = torch.stack([to_sequence(maps[:, i], direction) for i, direction in enumerate(directions_of(scan_mode))], 1)
    low_rank, B, C = rows.split([r, n, n], dim=2)
    y = selective_scan_reference(
        cross_scan(x.permute(0, 3, 1, 2), scan_mode).flatten(1, 2),
        (dt_weight @ low_rank).flatten(1, 2),
        A,
        B,
        C,
        None if D is None else D.double(),
        None if dt_bias is None else dt_bias.double().flatten(),
        delta_softplus,
    )
    return cross_merge(y.unflatten(1, (4, d)), h, w, scan_mode).permute(0, 2, 3, 1)


def make_inputs(
    b: int, h: int, w: int, d: int, n: int, r: int, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "x": normal(b, h, w, d).to(dtype),
        "x_dbl": normal(b, h, w, 4, r + 2 * n).to(dtype),
        "dt_weight": normal(4, d, r) / r**0.5,
        "dt_bias": normal(4, d) - 2,
        "A": -torch.exp(normal(4 * d, n)),
        "D": normal(4 * d),
    }


def relative_error(got: Tensor, want: Tensor) -> float:
    """Largest error over the largest value."""
    if want.numel() == 0:
        return 0.0
    return float((got.double() - want).abs().max() / want.abs().max().clamp_min(1e-30))


def compare(inputs: dict[str, Tensor | None], scan_mode: str, *, delta_softplus: bool = True) -> None:
    """Check the output and every gradient against the oracle.

    The kernels compute in float32; sums over up to a few thousand terms stay within 2e-5 of the largest value.
    Gradients in a 16-bit dtype are rounded to it once, so they may be off by half its epsilon more.
    """
    given = {k: None if t is None else t.detach().requires_grad_() for k, t in inputs.items()}
    exact = {k: None if t is None else t.detach().double().requires_grad_() for k, t in inputs.items()}
    with recorded_runs() as runs:
        y = ss2d_scan(*given.values(), scan_mode, delta_softplus)
    assert [(run.backend, run.op, run.detail) for run in runs] == [("oflex", "ss2d_scan", native.isa())]
    want = reference(*exact.values(), scan_mode, delta_softplus)
    assert y.dtype == torch.float32
    assert y.shape == want.shape
    assert relative_error(y.detach(), want.detach()) < 2e-5

    weight = torch.randn(want.shape, generator=torch.Generator().manual_seed(1))
    y.backward(weight)
    want.backward(weight.double())
    for name in NAMES:
        t = given[name]
        if t is None:
            continue
        assert t.grad is not None
        assert t.grad.dtype == t.dtype
        tolerance = 2e-5 + (0.0 if t.dtype == torch.float32 else torch.finfo(t.dtype).eps)
        assert relative_error(t.grad, exact[name].grad) < tolerance, name


@pytest.mark.parametrize("scan_mode", SCAN_MODES)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (5, 7), (13, 11)])
def test_every_scan_mode(isa: str, scan_mode: str, size: tuple[int, int]) -> None:
    compare(make_inputs(2, *size, d=17, n=1, r=6), scan_mode)


@pytest.mark.parametrize("d", [1, 5, 16, 17, 96])
@pytest.mark.parametrize("n", [1, 2, 3, 16])
@pytest.mark.parametrize("r", [1, 6, 13])
def test_every_size(isa: str, d: int, n: int, r: int) -> None:
    compare(make_inputs(1, 5, 7, d, n, r), "cross2d")


@pytest.mark.parametrize("n", [4, 5, 6, 7])
def test_every_remainder_of_states_and_ranks(isa: str, n: int) -> None:
    compare(make_inputs(1, 4, 5, d=9, n=n, r=n + 5), "rot2d")


def test_many_chunks_and_groups_of_images(isa: str) -> None:
    compare(make_inputs(3, 15, 19, d=40, n=2, r=7), "cross2d")
    compare(make_inputs(35, 3, 3, d=5, n=1, r=2), "cross2d")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("d", [17, 32])
def test_16_bit_inputs(isa: str, dtype: torch.dtype, d: int) -> None:
    inputs = make_inputs(2, 6, 9, d, n=1, r=6, dtype=dtype)
    compare(inputs, "cross2d")
    compare({**inputs, "x_dbl": inputs["x_dbl"].float()}, "cross2d")
    compare({**inputs, "x": inputs["x"].float()}, "cross2d")


def test_parameters_of_other_dtypes_get_their_gradients_in_them(isa: str) -> None:
    inputs = make_inputs(1, 4, 4, d=8, n=2, r=3)
    parameters = {k: inputs[k].bfloat16() for k in ("dt_weight", "dt_bias", "D")} | {"A": inputs["A"].double()}
    compare({**inputs, **parameters}, "cross2d")


def test_float64_columns_beside_float32_x(isa: str) -> None:
    inputs = make_inputs(1, 4, 4, d=8, n=2, r=3)
    compare({**inputs, "x_dbl": inputs["x_dbl"].double()}, "cross2d")


@pytest.mark.parametrize("absent", [("dt_bias",), ("D",), ("dt_bias", "D")])
def test_absent_bias_and_skip(isa: str, absent: tuple[str, ...]) -> None:
    compare({**make_inputs(2, 5, 6, d=20, n=1, r=4), **dict.fromkeys(absent)}, "cross2d")


def test_without_softplus(isa: str) -> None:
    inputs = make_inputs(2, 5, 6, d=20, n=3, r=4)
    inputs["dt_weight"], inputs["dt_bias"] = inputs["dt_weight"] * 0.1, inputs["dt_bias"].abs() * 0.1
    compare(inputs, "cross2d", delta_softplus=False)


def test_steps_of_every_magnitude(isa: str) -> None:
    """Softplus and the decay from their tails to where softplus is linear and the decay vanishes."""
    inputs = make_inputs(1, 8, 8, d=32, n=2, r=1)
    inputs["dt_weight"] = torch.linspace(-60, 60, 4 * 32).reshape(4, 32, 1)
    inputs["dt_bias"] = torch.linspace(40, -40, 4 * 32).reshape(4, 32)
    inputs["x_dbl"][..., 0] = torch.linspace(-1, 1, 64).reshape(1, 8, 8, 1)
    compare(inputs, "cross2d")


def test_accuracy_of_step_and_decay(isa: str) -> None:
    """One direction, one state, two pixels: y = (δ, exp(δ A) δ), read off directly.

    The projected step is multiplied by log2(e) first, which is one more rounding: 6e-8 of it, absolutely. Where the
    step is below 5e-5, AVX-512 takes one function for its whole tail, 1.1e-5 off at most.
    """
    p = torch.linspace(-60, 40, 4000)
    d = len(p)
    inputs = make_inputs(1, 1, 2, d, n=1, r=1)
    inputs["x"] = torch.tensor([1.0, 0.0]).view(1, 1, 2, 1).expand(1, 1, 2, d)
    inputs["x_dbl"] = torch.zeros(1, 1, 2, 4, 3)
    inputs["x_dbl"][:, :, :, 0, 1:] = 1
    inputs["dt_weight"] = torch.zeros(4, d, 1)
    inputs["dt_bias"] = p.repeat(4, 1)
    inputs["A"] = -torch.linspace(0.01, 20, 4 * d).view(-1, 1)
    bias = inputs["dt_bias"].requires_grad_()
    y = ss2d_scan(*{**inputs, "D": None}.values(), "unidi", True)[0, 0]

    exact = p.double()
    step = torch.nn.functional.softplus(exact, threshold=100)
    decay = torch.exp(step * inputs["A"][:d, 0].double())
    tail = torch.where(step < 5e-5, 1.1e-5, 0.0)
    rounding = 3e-7 + 1.2e-7 * exact.abs()
    assert ((y[0] - step).abs() <= (rounding + tail) * step).all()
    exponent = (step * inputs["A"][:d, 0].double()).abs()
    error = (y[1] - decay * step).abs() / step
    assert (error <= (2 * rounding + tail + (3e-7 + rounding + tail) * exponent) * decay + 1e-37).all()

    y[0].sum().backward()
    slope = torch.sigmoid(exact)
    assert ((bias.grad[0] - slope).abs() <= (2 * rounding + 2 * tail) * slope + 1e-37).all()


def test_steps_beyond_all_measure(isa: str) -> None:
    inputs = make_inputs(1, 1, 1, 4, n=1, r=1)
    inputs["dt_weight"], inputs["D"] = torch.zeros(4, 4, 1), torch.zeros(16)
    inputs["dt_bias"] = torch.tensor([-1e30, -300.0, 1e6, float("nan")]).repeat(4, 1)
    inputs["x"], inputs["x_dbl"] = torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4, 3)
    y = ss2d_scan(*inputs.values(), "cross2d", True).flatten()
    assert y[:2].tolist() == [0, 0]
    assert y[2].item() == pytest.approx(4e6, rel=1e-6)
    assert y[3].isnan()


@pytest.mark.parametrize("name", ["x", "x_dbl"])
def test_any_strides(isa: str, name: str) -> None:
    inputs = make_inputs(2, 5, 6, d=20, n=2, r=4)
    t = inputs[name]
    channels_first = t.movedim(-1, 1).contiguous().movedim(1, -1)
    wider = torch.cat([t, t + 1], dim=-1)[..., : t.shape[-1]]
    transposed = t.transpose(1, 2).contiguous().transpose(1, 2)
    for view in (channels_first, wider, transposed):
        assert not view.is_contiguous()
        compare({**inputs, name: view}, "cross2d")


def test_strided_parameters_and_output_gradient(isa: str) -> None:
    inputs = make_inputs(2, 4, 5, d=20, n=3, r=4)
    strided = {k: inputs[k].transpose(0, -1).contiguous().transpose(0, -1) for k in ("dt_weight", "dt_bias", "A")}
    given = [t.detach().requires_grad_() for t in inputs.values()]
    also = [t.detach().requires_grad_() for t in {**inputs, **strided}.values()]
    weight = torch.randn(2, 20, 4, 5, generator=torch.Generator().manual_seed(2)).permute(0, 2, 3, 1)
    ss2d_scan(*given, "cross2d", True).backward(weight.contiguous())
    ss2d_scan(*also, "cross2d", True).backward(weight)
    for a, b in zip(given, also, strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("shape", [(0, 4, 5, 6), (2, 4, 5, 0)])
def test_nothing_to_do(isa: str, shape: tuple[int, int, int, int]) -> None:
    b, h, w, d = shape
    given = [t.requires_grad_() for t in make_inputs(b, h, w, d, n=2, r=3).values()]
    y = ss2d_scan(*given, "cross2d", True)
    assert y.shape == shape
    y.sum().backward()
    assert all(t.grad is not None and not t.grad.any() for t in given)


def run(inputs: dict[str, Tensor]) -> list[Tensor]:
    given = [t.detach().requires_grad_() for t in inputs.values()]
    y = ss2d_scan(*given, "cross2d", True)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(3)))
    return [y.detach(), *(t.grad for t in given)]


@pytest.mark.parametrize("b", [1, 3, 33])
def test_same_bits_for_any_number_of_threads(isa: str, threads: None, b: int) -> None:
    inputs = make_inputs(b, 9, 10, d=72, n=2, r=5)
    torch.set_num_threads(1)
    want = run(inputs)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        for a, b_ in zip(run(inputs), want, strict=True):
            assert torch.equal(a, b_)


def test_forward_is_the_same_whether_or_not_states_are_saved(isa: str) -> None:
    inputs = make_inputs(1, 15, 16, d=24, n=2, r=5)
    with torch.no_grad():
        plain = ss2d_scan(*inputs.values(), "cross2d", True)
    assert torch.equal(plain, run(inputs)[0])


def test_saved_states_are_a_sixteenth_of_the_map() -> None:
    inputs = make_inputs(1, 32, 32, d=16, n=1, r=1)
    _, saved = torch.ops.vmamba.ss2d_scan(*inputs.values(), readings_of("cross2d"), True, True)
    two_chunks = 2 * 4 * 16  # of room, whatever the size
    assert saved.numel() - two_chunks <= inputs["x"].numel() / 16


def test_nothing_is_written_or_read_outside(isa: str) -> None:
    """Inputs lie between NaN; NaN read would reach the output and NaN overwritten would show."""
    inputs = make_inputs(1, 7, 5, d=11, n=3, r=5)
    arena = torch.full((sum(t.numel() + 64 for t in inputs.values()),), float("nan"))
    given, at = [], 32
    for t in inputs.values():
        arena[at : at + t.numel()] = t.flatten()
        given.append(arena[at : at + t.numel()].view(t.shape))
        at += t.numel() + 64
    before = arena.clone()
    views = [t.detach().requires_grad_() for t in given]
    y = ss2d_scan(*views, "cross2d", True)
    y.sum().backward()
    assert torch.equal(arena.nan_to_num(nan=7.0), before.nan_to_num(nan=7.0))
    assert torch.equal(y.detach(), run(inputs)[0])
    assert all(torch.isfinite(t.grad).all() for t in views)


def test_opcheck() -> None:
    for save in (True, False):
        given = [t.requires_grad_(save) for t in make_inputs(2, 5, 7, d=5, n=2, r=3).values()]
        torch.library.opcheck(torch.ops.vmamba.ss2d_scan, (*given, readings_of("cross2d"), True, save))
    given[3] = given[5] = None
    torch.library.opcheck(torch.ops.vmamba.ss2d_scan, (*given, readings_of("bidi"), True, False))


@pytest.mark.long
def test_compiles_and_exports() -> None:
    inputs = make_inputs(2, 5, 7, d=8, n=1, r=3)

    class Scan(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # Each by its name: torch 2.11 cannot unpack a ParameterList while it compiles.
            for name in ("dt_weight", "dt_bias", "A", "D"):
                setattr(self, name, torch.nn.Parameter(inputs[name]))

        def forward(self, x: Tensor, x_dbl: Tensor) -> Tensor:
            return ss2d_scan(x, x_dbl, self.dt_weight, self.dt_bias, self.A, self.D, "cross2d", True)

    model = Scan()
    given = (inputs["x"], inputs["x_dbl"])
    want = run(inputs)
    compiled = torch.compile(model, fullgraph=True)
    y = compiled(*given)
    assert torch.equal(y.detach(), want[0])
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(3)))
    for parameter, gradient in zip(model.parameters(), want[3:], strict=True):
        assert torch.equal(parameter.grad, gradient)
    exported = torch.export.export(model, given)
    assert torch.equal(exported.module()(*given).detach(), want[0])


def test_save_false_refuses_gradients() -> None:
    given = [t.requires_grad_() for t in make_inputs(1, 3, 3, d=4, n=1, r=2).values()]
    with pytest.raises(BackendError, match="save=True"):
        torch.ops.vmamba.ss2d_scan(*given, readings_of("cross2d"), True, False)


def test_double_backward_is_refused() -> None:
    given = [t.requires_grad_() for t in make_inputs(1, 3, 3, d=4, n=1, r=2).values()]
    (dx,) = torch.autograd.grad(ss2d_scan(*given, "cross2d", True).sum(), given[0], create_graph=True)
    with pytest.raises(BackendError, match="no second derivatives"):
        dx.sum().backward()
