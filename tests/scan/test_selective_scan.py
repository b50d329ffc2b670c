"""Every backend's selective scan against the float64 oracle: outputs and every gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import NAMES, check, inputs, oracle, runnable, with_gradients

from vmamba import InputError
from vmamba.scan import selective_scan

BACKENDS = runnable("selective_scan")
#: Output and gradient tolerances. float32: sums of some thousand terms lose a few dozen ulp. The 16-bit types are read
#: exactly and summed in float32, so outputs are as exact; their gradients are rounded once to 8 or 11 bits.
TOLERANCES = {
    torch.float64: (1e-10, 1e-10),
    torch.float32: (1e-5, 1e-4),
    torch.bfloat16: (1e-5, 2**-8),
    torch.float16: (1e-5, 2**-10),
}
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 2, 3, 1, 2),
    (1, 4, 5, 3, 63),
    (2, 4, 16, 1, 64),
    (1, 2, 17, 4, 65),
    (3, 1, 7, 16, 197),
    (1, 4, 33, 1, 1000),
    (1, 1, 48, 17, 130),
]


def compare(backend, values, softplus, dtype):
    weight = torch.randn(values[0].shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    run = with_gradients(lambda *v: selective_scan(*v, softplus, backend=backend), values, weight)
    want = oracle(values, softplus, weight)
    for_output, for_gradient = TOLERANCES[dtype]
    assert run[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    check(run[0], want[0], for_output, "y")
    for name, value, got, exact in zip(NAMES, values, run[1], want[1], strict=True):
        if value is not None:
            assert got.dtype == value.dtype, name
            check(got, exact, for_gradient, f"d{name}")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes(backend, shape):
    compare(backend, inputs(*shape), True, torch.float32)


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize(("D", "bias"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_optional_parts(backend, softplus, D, bias):
    values = inputs(2, 2, 5, 3, 37, D=D, bias=bias)
    if not softplus:  # a negative step would make the recurrence grow
        values[1] = values[1].abs() * 0.3
        values[6] = None if values[6] is None else values[6].abs() * 0.1
    compare(backend, values, softplus, torch.float32)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes(backend, n, dtype):
    if backend not in runnable("selective_scan", dtype):
        assert dtype == torch.float64
        return
    compare(backend, inputs(2, 4, 6, n, 70, dtype=dtype), True, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides_and_offsets(backend):
    values = inputs(2, 2, 6, 3, 41)
    u, delta, B, C = (values[i] for i in (0, 1, 3, 4))
    values[0] = torch.randn(2, 41, 13)[:, :, 1:].transpose(1, 2).copy_(u)
    values[1] = torch.empty(2, 12, 99)[:, :, 5:87:2].copy_(delta)
    values[3] = torch.empty(41, 3, 2, 2).permute(3, 2, 1, 0).copy_(B)
    values[4] = C.new_empty(2, 2, 3, 42)[..., 1:].copy_(C)
    want = selective_scan(*[v.contiguous() for v in values], True, backend=backend)
    assert torch.equal(selective_scan(*values, True, backend=backend), want) or torch.allclose(
        selective_scan(*values, True, backend=backend), want, rtol=1e-6, atol=1e-6
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    shape=st.tuples(*(st.integers(1, high) for high in (3, 4, 20, 18, 90))),
    parts=st.tuples(st.booleans(), st.booleans()),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_drawn_shapes(backend, shape, parts):
    compare(backend, inputs(*shape, D=parts[0], bias=parts[1], seed=sum(shape)), True, torch.float32)


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_wild_steps_stay_finite(backend, softplus):
    """Steps from N(0, 30²): decays from 0 to 1 (and, without softplus, beyond) in one sequence."""
    values = inputs(1, 2, 4, 3, 300, scale=30.0)
    if not softplus:
        values[1] = values[1].abs()
        values[6] = None
    weight = torch.ones(values[0].shape, dtype=torch.float64)
    y, gradients = with_gradients(lambda *v: selective_scan(*v, softplus, backend=backend), values, weight)
    want, _ = oracle(values, softplus, weight)
    check(y, want, 1e-5, "y")
    assert all(g is None or g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_output_dtype_and_three_axis_matrices(backend):
    u, delta, A, B, C, D, bias = inputs(2, 1, 4, 3, 11, dtype=torch.bfloat16)
    y = selective_scan(u, delta, A, B[:, 0], C[:, 0], D, bias, True, backend=backend)
    assert y.dtype == torch.float32
    narrow = selective_scan(u, delta, A, B, C, D, bias, True, oflex=False, backend=backend)
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(y.bfloat16(), narrow)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_the_same_run_to_run(backend):
    values = inputs(2, 4, 20, 2, 150)
    weight = torch.randn(values[0].shape, dtype=torch.float64)
    runs = [with_gradients(lambda *v: selective_scan(*v, True, backend=backend), values, weight) for _ in range(2)]
    for a, b in zip(runs[0][1], runs[1][1], strict=True):
        assert torch.equal(a, b)


def test_torch_backend_gradcheck():
    values = [v.requires_grad_() for v in inputs(1, 2, 2, 2, 7, dtype=torch.float64)]

    def run(*v):
        return selective_scan(*v, True, backend="torch")

    assert torch.autograd.gradcheck(run, values)
    assert torch.autograd.gradgradcheck(run, values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"delta": (1, 6, 8)}, ["delta has shape (1, 6, 8)", "(1, 6, 9)"]),
        ({"u": (6, 9)}, ["u has shape (6, 9)", "(b, k·d, l)"]),
        ({"A": (5, 2)}, ["A has shape (5, 2)", "(6, n)"]),
        ({"B": (1, 2, 3, 9)}, ["B has shape (1, 2, 3, 9)", "(1, k, 2, 9)"]),
        ({"B": (1, 4, 2, 9), "C": (1, 4, 2, 9)}, ["divides the 6 channels"]),
        ({"C": (1, 1, 2, 9)}, ["C has shape (1, 1, 2, 9)", "(1, 2, 2, 9)"]),
        ({"D": (2, 3)}, ["D has shape (2, 3)", "(6,)"]),
        ({"delta_bias": (5,)}, ["delta_bias has shape (5,)", "(6,)"]),
    ],
)
def test_shapes_that_do_not_fit(change, words):
    values = dict(zip(NAMES, inputs(1, 2, 3, 2, 9), strict=True))
    values.update({name: torch.zeros(shape) for name, shape in change.items()})
    with pytest.raises(InputError) as caught:
        selective_scan(**values)
    for word in words:
        assert word in str(caught.value)


def test_types_and_devices_that_do_not_fit():
    values = dict(zip(NAMES, inputs(1, 2, 3, 2, 9), strict=True))
    with pytest.raises(InputError, match=r"u is torch.int64.*convert"):
        selective_scan(**{**values, "u": values["u"].long()})
    with pytest.raises(InputError, match=r"B is on meta but u is on cpu"):
        selective_scan(**{**values, "B": values["B"].to("meta")})
