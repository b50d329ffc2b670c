"""Every backend's 2-d scan against the oracle over explicit index tables: outputs and every gradient."""

import pytest
import torch
from scan_cases import check, runnable, with_gradients

from vmamba import ConfigError, InputError
from vmamba.scan import selective_scan_reference, ss2d_scan

BACKENDS = runnable("ss2d_scan")
NAMES = ("x", "x_dbl", "dt_weight", "dt_bias", "A", "D")


def places(mode, h, w):
    """For each direction the flat places of the map in reading order, written out from the definition of the modes."""
    rows = [i * w + j for i in range(h) for j in range(w)]
    columns = [i * w + j for j in range(w) for i in range(h)]
    turned = [i * w + j for j in reversed(range(w)) for i in range(h)]
    return {
        "cross2d": [rows, columns, rows[::-1], columns[::-1]],
        "unidi": [rows] * 4,
        "bidi": [rows, rows, rows[::-1], rows[::-1]],
        "rot2d": [rows, turned, rows[::-1], turned[::-1]],
    }[mode]


def by_definition(x, x_dbl, dt_weight, dt_bias, A, D, mode, softplus):
    b, h, w, d = x.shape
    r, n = dt_weight.shape[2], A.shape[1]
    y = torch.zeros(b, h * w, d, dtype=torch.float64)
    for i, order in enumerate(places(mode, h, w)):
        channels = slice(i * d, (i + 1) * d)
        sequence = x_dbl[:, :, :, i].flatten(1, 2)[:, order]
        low_rank, B, C = sequence.split([r, n, n], dim=-1)
        out = selective_scan_reference(
            x.flatten(1, 2)[:, order].transpose(1, 2),
            (low_rank @ dt_weight[i].T).transpose(1, 2),
            A[channels],
            B.transpose(1, 2)[:, None],
            C.transpose(1, 2)[:, None],
            None if D is None else D[channels],
            None if dt_bias is None else dt_bias[i],
            softplus,
        )
        y = y.index_add(1, torch.tensor(order), out.transpose(1, 2))
    return y.view(b, h, w, d)


def inputs(b, h, w, d, n, r, dtype=torch.float32, D=True, bias=True):
    draw = torch.Generator().manual_seed(h * 100 + w * 10 + d)
    return [
        torch.randn(b, h, w, d, generator=draw).to(dtype),
        torch.randn(b, h, w, 4, r + 2 * n, generator=draw).to(dtype),
        torch.randn(4, d, r, generator=draw) * r**-0.5,
        torch.randn(4, d, generator=draw) - 1 if bias else None,
        -torch.exp(torch.randn(4 * d, n, generator=draw)),
        torch.randn(4 * d, generator=draw) if D else None,
    ]


def compare(backend, values, mode="cross2d", softplus=True, tolerances=(1e-5, 1e-4)):
    weight = torch.randn(values[0].shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    exact = [None if v is None else v.double() for v in values]
    got = with_gradients(lambda *v: ss2d_scan(*v, mode, softplus, backend=backend), values, weight)
    want = with_gradients(lambda *v: by_definition(*v, mode, softplus), exact, weight)
    assert got[0].dtype == torch.float32
    check(got[0], want[0], tolerances[0], "y")
    for name, value, a, b in zip(NAMES, values, got[1], want[1], strict=True):
        if value is not None:
            assert a.dtype == value.dtype
            check(a, b, tolerances[1], f"d{name}")


@pytest.mark.parametrize("mode", ["cross2d", "unidi", "bidi", "rot2d"])
@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_modes(backend, n, mode):
    compare(backend, inputs(2, 5, 7, 19, n, 3), mode)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1, 1, 1), (1, 1, 9, 16, 2, 1), (2, 8, 1, 5, 1, 6), (1, 13, 12, 33, 16, 2)], ids=str
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_edges(backend, shape):
    compare(backend, inputs(*shape))


@pytest.mark.parametrize(("D", "bias", "softplus"), [(False, True, True), (True, False, True), (False, False, False)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_optional_parts(backend, D, bias, softplus):
    values = inputs(1, 4, 5, 6, 2, 2, D=D, bias=bias)
    if not softplus:  # steps must not be negative, or the recurrence grows
        values[1], values[2] = values[1].abs() * 0.3, values[2].abs() * 0.3
    compare(backend, values, softplus=softplus)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_inputs(backend, dtype):
    """Read exactly, summed in float32; gradients are rounded once to the input's 8 or 11 bits."""
    compare(
        backend, inputs(2, 6, 5, 17, 1, 4, dtype=dtype), tolerances=(2e-5, 2**-8 if dtype == torch.bfloat16 else 2**-10)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides(backend):
    x, x_dbl, *rest = inputs(2, 5, 4, 6, 2, 3)
    strided = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    wide = torch.zeros(2, 5, 4, 4, 20)[..., 3:10].copy_(x_dbl)
    torch.testing.assert_close(
        ss2d_scan(strided, wide, *rest, backend=backend), ss2d_scan(x, x_dbl, *rest, backend=backend)
    )


def test_mistakes():
    x, x_dbl, dt_weight, dt_bias, A, D = inputs(1, 3, 4, 5, 2, 2)
    with pytest.raises(InputError, match=r"x_dbl has shape \(1, 3, 4, 4, 5\).*\(1, 3, 4, 4, 6\)"):
        ss2d_scan(x, x_dbl[..., :5], dt_weight, dt_bias, A, D)
    with pytest.raises(InputError, match=r"x has shape \(3, 4, 5\)"):
        ss2d_scan(x[0], x_dbl, dt_weight, dt_bias, A, D)
    with pytest.raises(InputError, match=r"dt_bias has shape \(20,\)"):
        ss2d_scan(x, x_dbl, dt_weight, dt_bias.flatten(), A, D)
    with pytest.raises(InputError, match=r"A is torch.int64"):
        ss2d_scan(x, x_dbl, dt_weight, dt_bias, A.long(), D)
    with pytest.raises(ConfigError, match="'diag'"):
        ss2d_scan(x, x_dbl, dt_weight, dt_bias, A, D, "diag")
