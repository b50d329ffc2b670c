"""The scans' GPU kernels on the interpreter, forward and backward, against the oracles in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scan_cases import check, fused_inputs, inputs, oracle, with_gradients
from torch import Tensor
from torch.nn import functional as F

import vmamba
from vmamba.errors import BackendError
from vmamba.kernels.triton.scans import plan
from vmamba.scan.reference import ss2d_scan_reference

pytestmark = pytest.mark.usefixtures("interpreted", "unwritten_is_nan")

NAMES = ("x", "x_dbl", "dt_weight", "dt_bias", "A", "D")
HALF = (torch.bfloat16, torch.float16)


def compare(
    run: Callable[..., Tensor], exact: Callable[..., Tensor], values: list[Tensor | None], names: tuple[str, ...]
) -> None:
    """Outputs to 1e-5, gradients to 1e-4 of scale; a gradient in 16 bits to its own rounding."""
    shape = exact(*[None if v is None else v.double() for v in values]).shape
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    y, gradients = with_gradients(run, values, weight)
    want, wanted = with_gradients(exact, [None if v is None else v.double() for v in values], weight.double())
    assert y.dtype == torch.float32
    check(y, want, 1e-5, "y")
    for name, value, got, right in zip(names, values, gradients, wanted, strict=True):
        if value is not None:
            assert got.dtype == value.dtype
            check(got, right, 2e-2 if value.dtype in HALF else 1e-4, f"d{name}")


def compare_maps(values: list[Tensor | None], mode: str = "cross2d", softplus: bool = True) -> None:
    with vmamba.recorded_runs() as runs:
        compare(
            lambda *v: vmamba.ss2d_scan(*v, mode, softplus, backend="oflex"),
            lambda *v: ss2d_scan_reference(*v, mode, softplus),
            values,
            NAMES,
        )
    assert all("triton" in run.detail for run in runs)


@pytest.mark.parametrize("mode", ["cross2d", "unidi", "bidi", "rot2d"])
def test_every_mode(mode: str) -> None:
    compare_maps(fused_inputs(1, 5, 6, 4, 3, 1), mode)  # two chunks, of which the second is short


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        ((1, 3, 4, 3, 2, 3), torch.float32),
        pytest.param(
            (2, 1, 4, 8, 1, 16), torch.float32, marks=pytest.mark.long
        ),  # more states than one pass of backward computes
        pytest.param((1, 2, 3, 5, 2, 19), torch.float32, marks=pytest.mark.long),  # or of forward
        pytest.param((1, 5, 5, 64, 3, 1), torch.float16, marks=pytest.mark.long),  # two channels a lane
        ((1, 3, 3, 8, 17, 1), torch.bfloat16),
        ((1, 3, 3, 96, 6, 1), torch.bfloat16),  # three blocks of channels a program
    ],
)
def test_states_and_dtypes(sizes: tuple[int, int, int, int, int, int], dtype: torch.dtype) -> None:
    compare_maps(fused_inputs(*sizes, dtype))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_small_maps(size: tuple[int, int]) -> None:
    compare_maps(fused_inputs(1, *size, 33, 3, 1))


def test_without_the_optional_parts() -> None:
    compare_maps(fused_inputs(1, 3, 3, 8, 3, 1, optional=False, scale=0.2), softplus=False)


def test_a_map_in_another_layout() -> None:
    x, x_dbl, *parameters = fused_inputs(2, 2, 5, 8, 3, 1)
    assert x is not None
    assert x_dbl is not None
    turned = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    wide = torch.cat([x_dbl, x_dbl], -1)[..., : x_dbl.shape[-1]]
    compare_maps([turned, wide, *parameters])


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_wild_steps_stay_finite(dtype: torch.dtype) -> None:
    values = fused_inputs(1, 3, 4, 8, 3, 1, dtype)
    assert values[1] is not None
    values[1][..., :3] *= 30
    _, gradients = with_gradients(
        lambda *v: vmamba.ss2d_scan(*v, backend="oflex"), values, torch.ones(1, 3, 4, 8, dtype=torch.float64)
    )
    assert all(g is None or g.isfinite().all() for g in gradients)


@pytest.mark.long
def test_two_runs_are_the_same_bits() -> None:
    values = fused_inputs(1, 5, 6, 8, 3, 1)
    weight = torch.randn(1, 5, 6, 8)
    runs = [with_gradients(lambda *v: vmamba.ss2d_scan(*v, backend="oflex"), values, weight) for _ in range(2)]
    for one, other in zip([runs[0][0], *runs[0][1]], [runs[1][0], *runs[1][1]], strict=True):
        assert torch.equal(one, other)


def test_offsets_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels that lie 2³⁰ numbers apart: the pages between are never touched, so they take no memory."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    apart = 2**30 + 8
    far = torch.empty(5 * apart + 8)  # in pages that the system gives when they are touched
    x = torch.as_strided(far, (2, 1, 3, 8), (3 * apart, 3 * apart, apart, 1))
    values = fused_inputs(2, 1, 3, 8, 3, 1)
    assert values[0] is not None
    x.copy_(values[0])
    with torch.no_grad():
        got = vmamba.ss2d_scan(x, *values[1:], backend="oflex")
        assert torch.equal(got, vmamba.ss2d_scan(*values, backend="oflex"))


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        ((1, 2, 8, 1, 37), torch.float32),
        pytest.param((1, 2, 3, 5, 9), torch.bfloat16, marks=pytest.mark.long),
        ((2, 1, 64, 1, 5), torch.float16),
    ],
)
def test_selective_scan(sizes: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    b, k, d, n, length = sizes
    values = inputs(b, k, d, n, length, dtype=dtype)
    weight = torch.randn(b, k * d, length, dtype=torch.float64)
    y, gradients = with_gradients(
        lambda *v: vmamba.selective_scan(*v, delta_softplus=True, backend="oflex"), values, weight
    )
    want, wanted = oracle(values, True, weight)
    check(y, want, 1e-5, "y")
    for value, got, right in zip(values, gradients, wanted, strict=True):
        check(got, right, 2e-2 if value.dtype in HALF else 1e-4, "gradient")


@pytest.mark.long
def test_the_operators_keep_their_contract() -> None:
    x, x_dbl, *parameters = fused_inputs(1, 2, 3, 8, 3, 1)
    assert x is not None
    assert x_dbl is not None
    for values in ((x.transpose(1, 2), x_dbl.transpose(1, 2)), (x[..., ::2], x_dbl)):
        given = [v.detach().requires_grad_() for v in values]
        d = given[0].shape[-1]
        weight, bias, A, D = (None if p is None else p.view(4, 8, -1)[:, :d] for p in parameters)
        assert weight is not None
        assert bias is not None
        assert A is not None
        assert D is not None
        arguments = (*given, weight, bias[..., 0], A.reshape(4 * d, 1), D.reshape(-1), [0, 1, 6, 7], True, True)
        torch.library.opcheck(torch.ops.vmamba.ss2d_scan.default, arguments)


def test_second_derivatives_are_refused() -> None:
    values = [None if v is None else v.requires_grad_() for v in fused_inputs(1, 2, 3, 4, 2, 1)]
    y = vmamba.ss2d_scan(*values, backend="oflex")
    (first,) = torch.autograd.grad(y.sum(), values[:1], create_graph=True)
    with pytest.raises(BackendError, match="second derivatives"):
        first.sum().backward()


def test_unpaired_directions_are_refused() -> None:
    with pytest.raises(BackendError, match="pair direction 2 with 0"):
        plan.pairs((0, 1, 2, 7), 4, 5)


@pytest.mark.long
def test_nano_trains_a_step_with_the_numbers_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_nano", num_classes=5, drop_path_rate=0.0)
    images, labels = torch.randn(1, 3, 16, 16), torch.tensor([3])

    def step(backend: str) -> tuple[Tensor, list[Tensor]]:
        with vmamba.backend(backend):
            loss = F.cross_entropy(model(images), labels)
            return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters())))

    loss, gradients = step("oflex")
    want, wanted = step("torch")
    check(loss, want.double(), 1e-4, "loss")
    scale = max(float(g.abs().max()) for g in wanted)
    for got, right in zip(gradients, wanted, strict=True):
        assert (got - right).abs().max() <= 1e-4 * max(scale, float(right.abs().max()))
