"""``"oflex"`` on CPU: against the float64 oracle with every instruction set here, and as a torch operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from vmamba.errors import BackendError
from vmamba.kernels.interface import recorded_runs
from vmamba.kernels.native import library as native
from vmamba.scan import schema, selective_scan
from vmamba.scan.reference import selective_scan_reference

pytestmark = pytest.mark.skipif(native.library_path() is None, reason="the native kernels are not built")

ISAS = native.isas()[1] if native.library_path() else ()
NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# b, k, d, n, l: one of everything; channels and lengths below, at and above every lane count and chunk length; state
# counts on both sides of the groups of four that the kernels work in; many images, so that backward sums over several
# blocks of channels in one task.
SHAPES = (
    (1, 1, 1, 1, 1),
    (2, 4, 5, 1, 49),
    (1, 2, 16, 16, 32),
    (1, 2, 33, 3, 33),
    (2, 1, 24, 7, 65),
    (1, 4, 20, 1, 130),
    (1, 1, 3, 21, 97),
    (33, 2, 40, 2, 5),
)


def make_inputs(
    b: int,
    k: int,
    d: int,
    n: int,
    length: int,
    dtype: torch.dtype = torch.float32,
    optional: bool = True,
    seed: int = 0,
) -> list[Tensor | None]:
    """Inputs whose states neither die at once nor grow."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    u, delta = normal(b, k * d, length).to(dtype), (normal(b, k * d, length).abs() * 0.3).to(dtype)
    A = -torch.rand(k * d, n, generator=g) * 2 - 0.05
    B, C = normal(b, k, n, length).to(dtype), normal(b, k, n, length).to(dtype)
    return [u, delta, A, B, C, normal(k * d) if optional else None, normal(k * d).abs() * 0.1 if optional else None]


def gradients(
    run: Callable[..., Tensor], inputs: Sequence[Tensor | None], weights: Tensor, *args: object
) -> tuple[Tensor, list[Tensor]]:
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    y = run(*leaves, *args)
    (y * weights).sum().backward()
    return y.detach(), [t.grad for t in leaves if t is not None]


def compare(inputs: Sequence[Tensor | None], softplus: bool, tolerance: float, weights: Tensor | None = None) -> None:
    """Compare output and gradients with the oracle in float64 on the same (rounded) inputs.

    Tolerances are relative to each tensor's largest element: single elements cancel, so their own size says nothing.
    """
    b, channels, length = inputs[0].shape
    if weights is None:
        weights = torch.randn(b, channels, length, generator=torch.Generator().manual_seed(1))
    y, got = gradients(schema.selective_scan, inputs, weights, softplus)
    exact = [None if t is None else t.double() for t in inputs]
    y_exact, want = gradients(selective_scan_reference, exact, weights.double(), softplus)
    names = [name for name, t in zip(NAMES, inputs, strict=True) if t is not None]

    assert y.dtype == torch.float32
    assert_near("y", y, y_exact, tolerance=2e-6)  # computed in float32 whatever the inputs' dtype
    for name, g, w, t in zip(names, got, want, (t for t in inputs if t is not None), strict=True):
        assert g.dtype == t.dtype
        assert_near(f"d{name}", g, w, tolerance if t.dtype != torch.float32 else 3e-6)


def assert_near(name: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    error = ((got.double() - want).abs().max() / want.abs().max().clamp_min(1e-30)).item()
    assert error <= tolerance, f"{name} is off by {error:.1e} of its scale, more than {tolerance:.1e}"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("optional", [True, False], ids=["D+bias", "bare"])
def test_output_and_every_gradient(isa: str, shape: tuple[int, ...], softplus: bool, optional: bool) -> None:
    with native.forced_isa(isa):
        compare(make_inputs(*shape, optional=optional), softplus, tolerance=3e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("shape", [(2, 2, 18, 5, 67), (1, 4, 16, 1, 64)], ids=str)
def test_16_bit_inputs_round_gradients_once(isa: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    with native.forced_isa(isa):  # half a unit in the last place of the largest element, plus float32's own error
        compare(make_inputs(*shape, dtype=dtype), True, tolerance=torch.finfo(dtype).eps / 2 + 3e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_dtypes_may_differ(isa: str) -> None:
    u, delta, A, B, C, D, bias = make_inputs(2, 2, 18, 5, 67)
    mixed = [u.bfloat16(), delta, A, B.half(), C.bfloat16(), D, bias]
    with native.forced_isa(isa):
        compare(mixed, True, tolerance=torch.finfo(torch.bfloat16).eps / 2 + 3e-6)


def test_parameters_in_other_dtypes_get_gradients_in_theirs() -> None:
    inputs = make_inputs(1, 2, 6, 3, 20)
    inputs[2], inputs[5], inputs[6] = inputs[2].double(), inputs[5].bfloat16(), inputs[6].half()
    _, grads = gradients(schema.selective_scan, inputs, torch.ones(1, 12, 20), True)
    assert [g.dtype for g in grads] == [t.dtype for t in inputs]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides(isa: str, dtype: torch.dtype) -> None:
    plain = make_inputs(2, 2, 18, 5, 67, dtype=dtype)
    u, delta, A, B, C, D, bias = plain
    channels_last = u.transpose(1, 2).contiguous().transpose(1, 2)
    spread = torch.stack([delta, delta], dim=-1)[..., 0]
    halves = torch.cat([C, C], dim=-1)[..., : C.shape[-1]]
    every_second = torch.stack([D, D], dim=-1)[:, 0]
    strided = [
        channels_last,
        spread,
        A.t().contiguous().t(),
        B.transpose(2, 3).contiguous().transpose(2, 3),
        halves,
        every_second,
        bias,
    ]
    weights = torch.ones(()).expand(u.shape)  # stride 0, as `y.sum().backward()` makes it
    with native.forced_isa(isa):
        want = gradients(schema.selective_scan, plain, weights.contiguous(), True)
        got = gradients(schema.selective_scan, strided, weights, True)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_stays_inside_its_tensors() -> None:
    """Neighbours in the same memory are NaN; reading or writing them would show."""
    u, delta, A, B, C, D, bias = make_inputs(1, 2, 5, 3, 21)

    def island(t: Tensor) -> Tensor:
        sea = torch.full([s + 8 for s in t.shape], torch.nan)
        inner = sea[tuple(slice(4, 4 + s) for s in t.shape)]
        inner.copy_(t)
        return inner

    weights = torch.randn(u.shape, generator=torch.Generator().manual_seed(2))
    for isa in ISAS:
        with native.forced_isa(isa):
            want = gradients(schema.selective_scan, [u, delta, A, B, C, D, bias], weights, True)
            got = gradients(
                schema.selective_scan, [island(t) for t in (u, delta, A, B, C, D, bias)], island(weights), True
            )
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("isa", ISAS)
def test_softplus_is_torchs_far_out(isa: str) -> None:
    x = torch.tensor([-200.0, -104, -88, -20, -1, 0, 1, 16, 19.99, 20, 20.01, 88, 200, 3e38])
    one = torch.ones(1, 1, len(x))
    A = torch.zeros(1, 1)
    with native.forced_isa(isa):  # h_t - h_{t-1} = δ_t where A = 0 and B = u = 1; one step at a time
        y = torch.stack(
            [
                schema.selective_scan(one[..., :1], v.view(1, 1, 1), A, *[torch.ones(1, 1, 1, 1)] * 2, None, None, True)
                for v in x
            ]
        )
    torch.testing.assert_close(y.flatten(), torch.nn.functional.softplus(x.double()).float(), rtol=3e-7, atol=0)


@pytest.mark.parametrize("isa", ISAS)
def test_a_nan_stays_in_its_channel_and_after_its_step(isa: str) -> None:
    inputs = make_inputs(1, 1, 20, 2, 40)
    inputs[0][0, 7, 30] = torch.nan
    with native.forced_isa(isa):
        bad = schema.selective_scan(*inputs, True).isnan()
    assert bad[0, 7, 30:].all()
    assert bad.sum() == 10


# ---- determinism ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(2, 2, 70, 1, 100), (1, 2, 40, 5, 70)], ids=str)
def test_bitwise_equal_for_any_number_of_threads_and_run_to_run(isa: str, shape: tuple[int, ...]) -> None:
    inputs = make_inputs(*shape)
    weights = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(2))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            with native.forced_isa(isa):
                results.append(gradients(schema.selective_scan, inputs, weights, True))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)


# ---- as a torch operator -------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("optional", [True, False])
def test_opcheck(optional: bool) -> None:
    inputs = make_inputs(2, 2, 5, 3, 70, optional=optional)
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    torch.library.opcheck(torch.ops.vmamba.selective_scan.default, (*leaves, True, True))
    torch.library.opcheck(torch.ops.vmamba.selective_scan.default, (*inputs, True, False))
    y, saved = torch.ops.vmamba.selective_scan(*inputs, True, True)
    torch.library.opcheck(torch.ops.vmamba.selective_scan_backward.default, (torch.ones_like(y), saved, *inputs, True))


def scan(*inputs: Tensor) -> Tensor:
    return selective_scan(*inputs, True, backend="oflex")


def test_compiles_in_one_graph_and_records_what_ran() -> None:
    inputs = make_inputs(2, 2, 5, 3, 70)
    weights = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(2))
    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    with recorded_runs() as runs:
        got = gradients(compiled, inputs, weights)
    assert [(run.backend, run.op, run.detail) for run in runs] == [("oflex", "selective_scan", ISAS[0])]
    torch.testing.assert_close(got, gradients(scan, inputs, weights), rtol=0, atol=0)


def test_exports() -> None:
    class Scan(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return scan(*inputs)

    inputs = tuple(make_inputs(2, 2, 5, 3, 70))
    program = torch.export.export(Scan(), inputs)
    assert "vmamba.selective_scan" in str(program.graph)
    torch.testing.assert_close(program.module()(*inputs), scan(*inputs), rtol=0, atol=0)


def test_no_states_are_saved_without_grad() -> None:
    inputs = make_inputs(1, 2, 5, 3, 70)
    assert torch.ops.vmamba.selective_scan(*inputs, True, False)[1].numel() == 0
    assert torch.ops.vmamba.selective_scan(*inputs, True, True)[1].shape == (4, 1, 3, 10)
    inputs[0].requires_grad_()
    with pytest.raises(BackendError, match="pass save=True"):
        torch.ops.vmamba.selective_scan(*inputs, True, False)


def test_autocast_leaves_dtypes_alone() -> None:
    inputs = make_inputs(1, 2, 5, 3, 20)
    with torch.autocast("cpu", torch.bfloat16):
        y = scan(*inputs)
    torch.testing.assert_close(y, scan(*inputs), rtol=0, atol=0)


def test_float64_is_refused_with_the_reason() -> None:
    inputs = [t.double() for t in make_inputs(1, 2, 5, 3, 20)]
    with pytest.raises(BackendError, match=r"no torch\.float64") as caught:
        scan(*inputs)
    assert "onvert to float32" in str(caught.value)
    with recorded_runs() as runs:
        selective_scan(*inputs)
    assert [run.backend for run in runs] == ["torch"]


def test_second_derivatives_are_refused() -> None:
    leaves = [t.requires_grad_() for t in make_inputs(1, 2, 5, 3, 20)]
    (first,) = torch.autograd.grad(scan(*leaves).sum(), leaves[0], create_graph=True)
    with pytest.raises(BackendError, match=r'no second derivatives; use backend="torch"'):
        first.sum().backward()


def test_forward_mode_is_refused_and_not_silently_zero() -> None:
    u, *rest = make_inputs(1, 2, 5, 3, 20)
    with pytest.raises(BackendError, match="forward-mode differentiation"):
        torch.func.jvp(lambda u: scan(u, *rest), (u,), (torch.ones_like(u),))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(BackendError, match="forward-mode differentiation"):
        scan(torch.autograd.forward_ad.make_dual(u, torch.ones_like(u)), *rest)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_func_grad_and_vmap_go_to_a_backend_that_can() -> None:
    u, *rest = make_inputs(2, 2, 5, 3, 20)
    many = torch.stack([u, 2 * u, -u])
    with pytest.raises(BackendError, match=r"torch.func's transforms"):
        torch.func.vmap(lambda u: selective_scan(u, *rest, True, backend="oflex"))(many)

    def scan(*inputs: Tensor) -> Tensor:
        return selective_scan(*inputs, True)

    torch.testing.assert_close(
        torch.func.vmap(lambda u: scan(u, *rest))(many), torch.stack([scan(u, *rest) for u in many])
    )

    def loss(u: Tensor) -> Tensor:
        return scan(u, *rest).square().sum()

    leaves = [u.clone().requires_grad_() for u in many]
    want = torch.stack([torch.autograd.grad(loss(u), u)[0] for u in leaves])
    torch.testing.assert_close(torch.func.grad(loss)(u), want[0])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(many), want)
