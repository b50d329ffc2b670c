"""The gate, the initial and the last state, on every backend: against the oracle, and pieces against the whole."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import check, runnable
from state_cases import NAMES, both, compare, run, values_of, weights_of

from vmamba import BackendError, InputError
from vmamba.kernels.interface import ScanCall
from vmamba.scan import dispatch, selective_scan, selective_scan_states_reference

BACKENDS = runnable("selective_scan")
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 2, 3, 1, 2),
    (1, 1, 5, 3, 31),
    (2, 1, 17, 4, 33),
    (1, 4, 33, 1, 200),
    (1, 1, 48, 17, 130),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes(backend, shape):
    compare(backend, values_of(*shape))


@pytest.mark.parametrize(("z", "initial"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_alone(backend, softplus, z, initial):
    values = values_of(2, 1, 18, 4, 70, z=z, initial=initial)
    if not softplus:
        values[1], values[6] = values[1].abs() * 0.3, None
    compare(backend, values, softplus)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 2**-8), (torch.float16, 2**-10)], ids=str
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes(backend, dtype, tolerance):
    if backend in runnable("selective_scan", dtype):
        compare(backend, values_of(2, 1, 20, 3, 45, dtype=dtype), tolerances=(min(tolerance, 1e-5), tolerance))


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_last_state_is_used(backend):
    """No gradient comes from y, and D and z get zeros."""
    values = values_of(1, 1, 6, 2, 40)
    leaves = [v.clone().requires_grad_() for v in values]
    _, last = run(leaves, backend)
    found = torch.autograd.grad(last.sum(), leaves, allow_unused=True)
    exact = [v.double().requires_grad_() for v in values]
    want = torch.autograd.grad(selective_scan_states_reference(*exact, True)[1].sum(), exact, allow_unused=True)
    for name, a, b in zip(NAMES, found, want, strict=True):
        check(torch.zeros(1) if a is None else a, torch.zeros(1).double() if b is None else b, 1e-4, name)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    cuts=st.sets(st.integers(1, 119), max_size=5),
    shape=st.tuples(*(st.integers(1, high) for high in (2, 2, 20, 6))),
    double=st.booleans(),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_pieces_equal_the_whole(backend, cuts, shape, double):
    dtype = torch.float64 if double and backend in runnable("selective_scan", torch.float64) else torch.float32
    values = values_of(*shape, 120, dtype=dtype, seed=len(cuts))
    edges = [0, *sorted(cuts), 120]

    def in_pieces(leaves):
        u, delta, A, B, C, D, bias, z, state = leaves
        parts = []
        for start, end in pairwise(edges):
            at = slice(start, end)
            piece = [u[..., at], delta[..., at], A, B[..., at], C[..., at], D, bias, z[..., at], state]
            y, state = run(piece, backend)
            parts.append(y)
        return torch.cat(parts, 2), state

    of_y, of_last = weights_of(values)
    whole = both(lambda v: run(v, backend), values, of_y, of_last)
    pieces = both(in_pieces, values, of_y, of_last)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    check(pieces[0], whole[0].double(), tolerance, "y")
    check(pieces[1], whole[1].double(), tolerance, "last")
    for name, a, b in zip(NAMES, pieces[2], whole[2], strict=True):
        check(a, b.double(), 10 * tolerance, f"d{name}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_output_dtype_and_strides(backend):
    values = values_of(2, 1, 6, 3, 41, dtype=torch.bfloat16)
    want, last = run(values, backend)
    values[7] = values[7].transpose(1, 2).contiguous().transpose(1, 2)
    values[8] = values[8].transpose(1, 2).contiguous().transpose(1, 2)
    got, again = run(values, backend, oflex=False)
    assert got.dtype == torch.bfloat16
    assert last.dtype == torch.float32
    torch.testing.assert_close(got, want.bfloat16())
    torch.testing.assert_close(again, last)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_and_without_gradients(backend):
    values = values_of(1, 1, 4, 2, 20)

    def function(*v):
        return run(list(v), backend)

    want = run(values, backend)
    with torch.no_grad():
        for got in (run(values, backend), torch.compile(function, backend="aot_eager", fullgraph=True)(*values)):
            torch.testing.assert_close(got, want)
    leaves = [v.clone().requires_grad_() for v in values]
    found, wanted = (
        torch.autograd.grad(sum(t.sum() for t in f(*leaves)), leaves)
        for f in (torch.compile(function, backend="aot_eager", fullgraph=True), function)
    )
    torch.testing.assert_close(found, wanted)


def test_what_does_not_fit():
    u, delta, A, B, C, _, _, z, state = values_of(1, 2, 3, 2, 9)
    with pytest.raises(InputError, match=r"z has shape \(1, 6, 8\), want u's shape \(1, 6, 9\)"):
        selective_scan(u, delta, A, B, C, z=z[..., :8])
    with pytest.raises(InputError, match=r"initial_state has shape \(1, 3, 2\), want \(b, k·d, n\) = \(1, 6, 2\)"):
        selective_scan(u, delta, A, B, C, initial_state=state[:, :3])
    with pytest.raises(InputError, match=r"z is torch.int64"):
        selective_scan(u, delta, A, B, C, z=z.long())


def test_what_mambas_kernel_does_not_have():
    mamba = dispatch.BACKENDS["mamba"].kernels["cuda"]
    call = ScanCall("selective_scan", "cuda", torch.float32)
    assert mamba.call_obstacle(call._replace(last=True)) is None
    assert "begins with no state" in mamba.call_obstacle(call._replace(initial=True)).reason
    assert "no gradient of the last state" in mamba.call_obstacle(call._replace(last=True, gradients=True)).reason
    with pytest.raises(BackendError, match="mamba"):
        selective_scan(*values_of(1, 1, 2, 1, 3)[:5], return_last_state=True, backend="mamba")
