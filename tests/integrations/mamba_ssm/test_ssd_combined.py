"""Mamba-2's scan under mamba-ssm's names against a float64 oracle: its options, its states, packed rows, errors."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from scan_cases import check

from vmamba import InputError
from vmamba.integrations.mamba_ssm.mamba2.ssd_combined import (
    mamba_chunk_scan_combined,
    mamba_split_conv1d_scan_combined,
)
from vmamba.scan import ssd_scan_reference

b, h, p, g, n = 2, 6, 3, 2, 4


def inputs(length=11, dtype=torch.float64):
    draw = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    return {
        "x": normal(b, length, h, p),
        "dt": normal(b, length, h),
        "A": -torch.exp(normal(h)),
        "B": normal(b, length, g, n),
        "C": normal(b, length, g, n),
        "D": normal(h, p),
        "z": normal(b, length, h, p),
        "dt_bias": normal(h),
        "initial_states": normal(b, h, p, n),
    }


def oracle(x, dt, A, B, C, D=None, z=None, dt_bias=None, initial_states=None, softplus=True, limit=(0, math.inf)):
    step = dt if dt_bias is None else dt + dt_bias
    step = (F.softplus(step) if softplus else step).clamp(*limit)
    y, last = ssd_scan_reference(x, step, A, B, C, D, initial_states=initial_states)
    return (y if z is None else y * F.silu(z)), last


def gradients(run, values):
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    y, last = run(**leaves)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
    return y, last, *torch.autograd.grad((y * weights).sum() + last.square().sum(), list(leaves.values()))


@pytest.mark.parametrize("without", [(), ("z",), ("D", "dt_bias", "initial_states"), ("B",)], ids=str)
@pytest.mark.parametrize(("softplus", "limit"), [(True, (0.0, math.inf)), (True, (0.3, 0.9)), (False, (0.0, math.inf))])
def test_it_is_the_recurrence(without, softplus, limit):
    values = {name: value for name, value in inputs().items() if name not in without or name == "B"}
    if without == ("B",):  # a skip for each head
        values["D"] = values["D"][:, 0]

    def run(**given):
        return mamba_chunk_scan_combined(
            **given, chunk_size=4, dt_softplus=softplus, dt_limit=limit, return_final_states=True
        )

    got = gradients(run, values)
    want = gradients(lambda **given: oracle(**given, softplus=softplus, limit=limit), values)
    for name, ours, theirs in zip(("y", "last", *values), got, want, strict=True):
        check(ours, theirs, 1e-10, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(dtype):
    values = inputs(dtype=dtype)
    y, last = mamba_chunk_scan_combined(**values, chunk_size=64, dt_softplus=True, return_final_states=True)
    assert (y.dtype, last.dtype) == (dtype, torch.float32)
    want, want_last = oracle(**{name: value.double() for name, value in values.items()})
    check(y, want, 1e-5 if dtype == torch.float32 else 1e-2, "y")
    check(last, want_last, 1e-5, "last")
    assert torch.equal(mamba_chunk_scan_combined(**values, chunk_size=64, dt_softplus=True), y)


def test_sequences_in_a_row():
    values, ends = inputs(), [0, 4, 5, 11]
    numbers = torch.tensor([[3, 3, 3, 3, 0, 7, 7, 7, 7, 7, 7], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]])
    y, last = mamba_chunk_scan_combined(
        **values, chunk_size=4, dt_softplus=True, seq_idx=numbers, return_final_states=True
    )
    lengthy = ("x", "dt", "B", "C", "z")

    def alone(row, start, end):
        own = {name: value[row : row + 1, start:end] if name in lengthy else value for name, value in values.items()}
        return oracle(**own | {"initial_states": values["initial_states"][row : row + 1] * (start == 0)})

    for row, bounds in ((0, ends), (1, [0, 10, 11])):
        for start, end in pairwise(bounds):
            want, want_last = alone(row, start, end)
            check(y[row : row + 1, start:end], want, 1e-12, "y")
        check(last[row : row + 1], want_last, 1e-12, "last")

    single = {name: value[:1] if name in (*lengthy, "initial_states") else value for name, value in values.items()}
    options = {"chunk_size": 4, "dt_softplus": True, "seq_idx": numbers[:1], "return_varlen_states": True}
    same, states = mamba_chunk_scan_combined(**single, **options, cu_seqlens=torch.tensor(ends))
    check(same, y[:1], 1e-12, "y")
    for state, (start, end) in zip(states, pairwise(ends), strict=True):
        check(state[None], alone(0, start, end)[1], 1e-12, "states")
    three = mamba_chunk_scan_combined(**single, **options, cu_seqlens=torch.tensor(ends), return_final_states=True)
    assert [tuple(t.shape) for t in three] == [(1, 11, h, p), (1, h, p, n), (3, h, p, n)]
    with pytest.raises(InputError, match=r"cu_seqlens \[0, 4, 11\] is for a single .* at \[0, 4, 5, 11\]"):
        mamba_chunk_scan_combined(**single, **options, cu_seqlens=torch.tensor([0, 4, 11]))
    with pytest.raises(InputError, match="return_varlen_states needs cu_seqlens"):
        mamba_chunk_scan_combined(**single, **options)


@pytest.mark.parametrize("mlp", [0, 5])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("activation", ["silu", None])
def test_all_between_the_projections(mlp, normed, activation):
    values, d = inputs(), h * p
    rows = d + 2 * g * n
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    zxbcdt, weight, bias = normal(b, 11, 2 * mlp + d + rows + h), normal(rows, 4), normal(rows)
    norm, out_weight, out_bias = normal(d), normal(7, mlp + d), normal(7)
    first = (zxbcdt, weight, bias, values["dt_bias"], values["A"])
    options = {
        "initial_states": values["initial_states"],
        "activation": activation,
        "rmsnorm_weight": norm if normed else None,
        "rmsnorm_eps": 1e-3,
        "ngroups": g,
        "norm_before_gate": False,
        "return_final_states": True,
    }
    y, last = mamba_split_conv1d_scan_combined(*first, values["D"], 4, **options)
    z0, x0, z, xBC, dt = zxbcdt.split([mlp, mlp, d, rows, h], dim=-1)
    xBC = F.conv1d(xBC.mT, weight[:, None], bias, padding=3, groups=rows)[..., :11].mT
    xBC = F.silu(xBC) if activation else xBC
    x, B, C = xBC.split([d, g * n, g * n], dim=-1)
    want, want_last = oracle(
        x.unflatten(-1, (h, p)), dt, values["A"], B.unflatten(-1, (g, n)), C.unflatten(-1, (g, n)), values["D"],
        dt_bias=values["dt_bias"], initial_states=values["initial_states"],
    )  # fmt: skip
    want = want.flatten(2) * F.silu(z)
    if normed:
        groups = want.unflatten(-1, (g, -1))
        want = (groups / (groups.square().mean(-1, keepdim=True) + 1e-3).sqrt()).flatten(-2) * norm
    want = torch.cat([F.silu(z0) * x0, want], dim=-1)
    check(y, want, 1e-10, "y")
    check(last, want_last, 1e-10, "last")
    options |= {"outproj_weight": out_weight, "outproj_bias": out_bias, "return_final_states": False}
    y = mamba_split_conv1d_scan_combined(*first, values["D"], 4, **options)
    check(y, want @ out_weight.T + out_bias, 1e-10, "projected")
    heads = mamba_split_conv1d_scan_combined(*first, values["D"][:, 0], 4, **options, headdim=p)
    assert heads.shape == y.shape
    with pytest.raises(InputError, match="give headdim, or D of shape"):
        mamba_split_conv1d_scan_combined(*first, values["D"][:, 0], 4, **options)
    with pytest.raises(InputError, match="do not fit 6 heads of 4 channels"):
        mamba_split_conv1d_scan_combined(*first, values["D"][:, 0], 4, **options, headdim=4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"z": torch.ones(2, 11, 18, dtype=torch.float64)}, "z has shape"),
        ({"dt_bias": torch.ones(3, dtype=torch.float64)}, "dt_bias has shape"),
        ({"A": torch.ones(3, dtype=torch.float64)}, "A has shape"),
        ({"seq_idx": torch.zeros(2, 11)}, "want integers"),
        ({"seq_idx": torch.zeros(2, 10, dtype=torch.int32)}, "seq_idx is"),
    ],
)
def test_what_does_not_fit_is_named(changes, words):
    with pytest.raises(InputError, match=words):
        mamba_chunk_scan_combined(**{"chunk_size": 4, **inputs(), **changes})
