"""The scans on a GPU against plain operations in float64: outputs, every gradient, and the same bits in every run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from scan_cases import check, fused_inputs, inputs, with_gradients
from state_cases import values_of
from torch import Tensor

import vmamba
from vmamba.kernels import mamba_ssm
from vmamba.kernels.triton import machine_obstacle
from vmamba.scan.dispatch import BACKENDS

if machine_obstacle() is not None:
    pytest.skip(f"needs a GPU: {machine_obstacle()}", allow_module_level=True)

HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *HALF)
MODES = ("cross2d", "unidi", "bidi", "rot2d")
Values = Sequence[Tensor | None]


def map_inputs(b: int, h: int, w: int, d: int, r: int, n: int, dtype: torch.dtype) -> list[Tensor | None]:
    return [v.cuda() for v in fused_inputs(b, h, w, d, r, n, dtype)]


def compare(run: Callable[..., Tensor], values: Values) -> None:
    """``run(*values, backend)``: outputs to 1e-5 of scale, gradients to 1e-4.

    With 16-bit maps their gradients to their own rounding, and the parameters' to that of TF32, in which they are
    products: less than what is lost where the map was rounded.
    """
    assert values[0] is not None
    narrow = values[0].dtype in HALF
    exact = [None if v is None else v.double() for v in values]
    shape = run(*exact, backend="torch").shape
    weight = torch.randn(shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda")
    want, wanted = with_gradients(lambda *v: run(*v, backend="torch"), exact, weight.double())
    with vmamba.recorded_runs() as runs:
        first = with_gradients(lambda *v: run(*v, backend="oflex"), values, weight)
    assert all("triton" in one.detail for one in runs)
    second = with_gradients(lambda *v: run(*v, backend="oflex"), values, weight)
    assert torch.equal(first[0], second[0])
    check(first[0], want, 1e-5, "y")
    for i, (value, got, again, right) in enumerate(zip(values, first[1], second[1], wanted, strict=True)):
        if value is not None:
            assert got.dtype == value.dtype
            assert torch.equal(got, again)
            check(got, right, 2e-2 if value.dtype in HALF else 1e-3 if narrow else 1e-4, f"gradient {i}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "length"), [(1, 196), (1, 3136), (16, 3000)])
def test_gate_and_states(n: int, length: int, dtype: torch.dtype) -> None:
    def run(*values: Tensor, backend: str) -> Tensor:
        *plain, z, initial = values
        options = {"z": z, "initial_state": initial, "return_last_state": True, "backend": backend}
        return torch.cat([t.flatten() for t in vmamba.selective_scan(*plain, True, **options)])

    compare(run, [v.cuda() for v in values_of(2, 1, 96, n, length, dtype=dtype)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode(mode: str, dtype: torch.dtype) -> None:
    compare(lambda *v, backend: vmamba.ss2d_scan(*v, mode, backend=backend), map_inputs(2, 14, 15, 96, 6, 1, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 1, 33, 3, 1),
        (1, 7, 9, 40, 3, 3),
        (2, 28, 28, 192, 12, 1),
        (1, 28, 28, 64, 6, 16),
        (1, 14, 14, 384, 24, 1),
        (1, 9, 9, 33, 2, 19),
        (1, 56, 56, 192, 48, 1),
        (3, 7, 7, 768, 48, 1),
    ],
)
def test_sizes(sizes: tuple[int, int, int, int, int, int], dtype: torch.dtype) -> None:
    compare(lambda *v, backend: vmamba.ss2d_scan(*v, backend=backend), map_inputs(*sizes, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(2, 4, 96, 1, 196), (1, 1, 40, 16, 333), (1, 4, 33, 3, 61)])
def test_selective_scan(sizes: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    values = [None if v is None else v.cuda() for v in inputs(*sizes, dtype=dtype)]
    compare(lambda *v, backend: vmamba.selective_scan(*v, delta_softplus=True, backend=backend), values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_wild_steps_stay_finite(dtype: torch.dtype) -> None:
    values = map_inputs(2, 28, 28, 96, 6, 1, dtype)
    values[1] = 30 * values[1]  # type: ignore[operator]
    weight = torch.randn(2, 28, 28, 96, device="cuda")
    y, gradients = with_gradients(lambda *v: vmamba.ss2d_scan(*v, backend="oflex"), values, weight)
    assert all(t is None or bool(t.isfinite().all()) for t in (y, *gradients))


def test_more_than_two_to_the_31_numbers() -> None:
    h, d, r = 56, 96, 6
    b = 2**31 // (h * h * d) + 2
    x = torch.empty(b, h, h, d, device="cuda", dtype=torch.bfloat16).normal_()
    x_dbl = torch.empty(b, h, h, 4, r + 2, device="cuda", dtype=torch.bfloat16).normal_()
    parameters = map_inputs(1, 2, 2, d, r, 1, torch.float32)[2:]
    with torch.no_grad():
        y = vmamba.ss2d_scan(x, x_dbl, *parameters, backend="oflex")
        for image in (0, b - 1):
            some = slice(image, image + 1)
            check(y[some], vmamba.ss2d_scan(x[some], x_dbl[some], *parameters, backend="oflex").double(), 1e-5, "y")


@pytest.mark.skipif(mamba_ssm.machine_obstacle() is not None, reason="needs a GPU with mamba-ssm's CUDA scan")
@pytest.mark.parametrize("sizes", [(2, 14, 14, 96, 6, 1), (1, 28, 28, 64, 6, 16)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_mamba_ssm_gives_the_same(sizes: tuple[int, int, int, int, int, int], dtype: torch.dtype) -> None:
    values = map_inputs(*sizes, dtype)
    weight = torch.randn(values[0].shape, device="cuda")  # type: ignore[union-attr]
    ours, theirs = (
        with_gradients(lambda *v, name=name: vmamba.ss2d_scan(*v, backend=name), values, weight)
        for name in ("oflex", "mamba")
    )
    check(theirs[0], ours[0].double(), 1e-4, "y")
    for value, got, want in zip(values, theirs[1], ours[1], strict=True):
        assert value is not None
        check(got, want.double(), 2e-2 if value.dtype in HALF else 1e-3, "gradient")


def test_none_picks_ours() -> None:
    assert BACKENDS["oflex"].machine_obstacle("cuda") is None
    with vmamba.recorded_runs() as runs:
        vmamba.ss2d_scan(*map_inputs(1, 5, 5, 32, 2, 1, torch.float32))
    assert [run.backend for run in runs] == ["oflex"]
