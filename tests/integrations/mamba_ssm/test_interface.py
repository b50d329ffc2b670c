"""mamba-ssm's scan functions: shapes, dtypes, last states and gradients against plain loops in float64."""

import pytest
import torch
import torch.nn.functional as F
from scan_cases import check

from vmamba import InputError
from vmamba.integrations.mamba_ssm.modules import selective_scan_interface as interface
from vmamba.integrations.mamba_ssm.modules.selective_state_update import selective_state_update
from vmamba.integrations.mamba_ssm.stand_in import NotProvidedError

b, d, n, length = 2, 6, 3, 21
SHAPES = {"constant": (d, n), "(b, n, l)": (b, n, length), "2 groups": (b, 2, n, length), "6": (b, 6, n, length)}


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def values(B="(b, n, l)", C="(b, n, l)", z=True, D=True, dtype=torch.float64):
    """u, delta, A, B, C, D, z, delta_bias; the parameters in float32 for the 16-bit types, as mamba-ssm takes them."""
    full = torch.float64 if dtype == torch.float64 else torch.float32
    own = {name: dtype if len(SHAPES[name]) > 2 else full for name in (B, C)}
    return [
        normal(b, d, length, seed=1, dtype=dtype),
        normal(b, d, length, seed=2, dtype=dtype),
        -normal(d, n, seed=3, dtype=full).exp(),
        normal(*SHAPES[B], seed=4, dtype=own[B]),
        normal(*SHAPES[C], seed=5, dtype=own[C]),
        normal(d, seed=6, dtype=full) if D else None,
        normal(b, d, length, seed=7, dtype=dtype) if z else None,
        normal(d, seed=8, dtype=full),
    ]


def loop(u, delta, A, B, C, D, z, bias, softplus):
    """The recurrence, channel by channel and position by position."""

    def at(t, channel, place):
        if t.dim() == 2:
            return t[channel]
        return t[:, :, place] if t.dim() == 3 else t[:, channel // (d // t.shape[1]), :, place]

    outs, states = [], []
    for c in range(d):
        h, ys = 0, []
        for t in range(u.shape[2]):
            step = delta[:, c, t] + bias[c]
            step = (F.softplus(step) if softplus else step)[:, None]
            h = torch.exp(step * A[c]) * h + step * at(B, c, t) * u[:, c, t, None]
            y = (h * at(C, c, t)).sum(-1) + (0 if D is None else D[c] * u[:, c, t])
            ys.append(y if z is None else y * F.silu(z[:, c, t]))
        outs.append(torch.stack(ys, dim=-1))
        states.append(h)
    return torch.stack(outs, dim=1), torch.stack(states, dim=1)


def gradients(function, given, last):
    """Output, last state, and the gradients of a weighted sum of what ``last`` says."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in given]
    y, state = function(*leaves)
    total = (y.double() * normal(*y.shape, seed=9)).sum()
    if last:
        total = total + (state.double() * normal(*state.shape, seed=10)).sum()
    return y, state, torch.autograd.grad(total, [leaf for leaf in leaves if leaf is not None])


@pytest.mark.parametrize("function", [interface.selective_scan_fn, interface.selective_scan_ref])
@pytest.mark.parametrize(
    ("B", "C", "options"),
    [
        ("(b, n, l)", "(b, n, l)", {}),
        ("(b, n, l)", "(b, n, l)", {"z": False, "D": False}),
        ("2 groups", "2 groups", {"z": False}),
        ("constant", "constant", {}),
        ("constant", "(b, n, l)", {"D": False}),
        ("2 groups", "constant", {}),
        ("2 groups", "6", {}),
        ("(b, n, l)", "2 groups", {"z": False}),
    ],
)
def test_shapes_of_b_and_c(function, B, C, options):
    given = values(B, C, **options)
    want = gradients(lambda *v: loop(*v, True), given, last=True)
    got = gradients(lambda *v: function(*v, delta_softplus=True, return_last_state=True), given, last=True)
    check(got[0], want[0], 1e-10, "y")
    check(got[1], want[1], 1e-10, "last state")
    for name, ours, theirs in zip(
        ("u", "delta", "A", "B", "C", "D, z", "z, bias", "bias"), got[2], want[2], strict=False
    ):
        check(ours, theirs, 1e-10, f"d{name}")


@pytest.mark.parametrize("softplus", [False, True])
def test_float32(softplus):
    given = values("2 groups", "2 groups", dtype=torch.float32)
    if not softplus:
        given[1], given[7] = 0.3 * given[1].abs(), 0.1 * given[7].abs()  # a negative step would grow
    exact = [t.double() for t in given]
    want = gradients(lambda *v: loop(*v, softplus), exact, last=False)
    got = gradients(lambda *v: (interface.selective_scan_fn(*v, softplus), None), given, last=False)
    check(got[0], want[0], 1e-5, "y")
    for ours, theirs in zip(got[2], want[2], strict=True):
        assert ours.dtype == torch.float32
        check(ours, theirs, 1e-5, "gradient")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_16_bits_come_back_as_16_bits(dtype, autocast):
    given = values(dtype=dtype)
    exact = [t.double() for t in given]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, last = interface.selective_scan_fn(*given, True, True)
        plain = interface.selective_scan_ref(*given, True)
    assert y.dtype == plain.dtype == dtype
    assert last.dtype == torch.float32
    want = loop(*exact, True)
    check(y, want[0], torch.finfo(dtype).eps, "y")
    check(plain, want[0], torch.finfo(dtype).eps, "plain")
    check(last, want[1], 1e-5, "last state")  # autocast did not reach it


def test_autocast_leaves_float32_alone():
    given = values(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = interface.selective_scan_fn(*given, True)
    assert torch.equal(y, interface.selective_scan_fn(*given, True))


def test_keywords_as_projects_give_them():
    u, delta, A, B, C, D, _, bias = values(dtype=torch.float32)
    y = interface.selective_scan_fn(
        u, delta, A, B, C, D, z=None, delta_bias=bias, delta_softplus=True, return_last_state=False
    )
    assert torch.equal(y, interface.SelectiveScanFn.apply(u, delta, A, B, C, D, None, bias, True))


@pytest.mark.parametrize("function", [interface.selective_scan_fn, interface.selective_scan_ref])
def test_mistakes_of_a_scan(function):
    u, delta, A, B, C, *_ = values()
    with pytest.raises(InputError, match=r"A is torch\.complex128: vmamba's kernels have real states"):
        function(u, delta, A.to(torch.complex128), B, C)
    with pytest.raises(InputError, match=r"C has shape \(2, 3, 20\), want \(d, n\) = \(6, 3\)"):
        function(u, delta, A, B, C[:, :, 1:])
    with pytest.raises(InputError, match="B has 2 groups and C 3"):
        function(u, delta, A, normal(b, 2, n, length), normal(b, 3, n, length))
    with pytest.raises(InputError, match="want u"):
        function(u[0], delta, A, B, C)


# The inside of a block.

r, c = 2, 5


def block(dtype=torch.float64, out=True, back=False):
    """Positional arguments of mamba_inner_fn, or of its relatives, from xz to D."""
    given = [
        normal(b, 2 * d, length, seed=11),
        normal(d, 1, 4, seed=12),
        normal(d, seed=13),
        normal(r + 2 * n, d, seed=14),
        normal(d, r, seed=15),
        *([normal(c, d, seed=16), normal(c, seed=17)] if out else []),
        -normal(d, n, seed=18).exp(),
        *([-normal(d, n, seed=19).exp()] if back else []),
        None,
        None,
        normal(d, seed=20),
    ]
    return [None if t is None else t.to(dtype) for t in given]


PAIRS = {
    "mamba_inner": (interface.mamba_inner_fn, interface.mamba_inner_ref, {}),
    "bimamba_inner": (interface.bimamba_inner_fn, interface.bimamba_inner_ref, {"back": True}),
    "no_out_proj": (interface.mamba_inner_fn_no_out_proj, interface.mamba_inner_ref_no_out_proj, {"out": False}),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("softplus", [True, False])
def test_inner_functions_equal_their_references(name, softplus):
    fast, plain, options = PAIRS[name]
    given, more = block(**options), [normal(d, seed=21), normal(n, seed=22), normal(n, seed=23)]
    if not softplus:
        given[4], more[0] = 0.01 * given[4], 1 + more[0].abs()  # a negative step would grow
    got, want = (
        gradients(lambda *v, run=run: (run(*v, delta_softplus=softplus), None), given + more, last=False)
        for run in (fast, plain)
    )
    assert got[0].shape == ((b, d, length) if name == "no_out_proj" else (b, length, c))
    check(got[0], want[0], 1e-10, "y")
    for ours, theirs in zip(got[2], want[2], strict=True):
        check(ours, theirs, 1e-10, "gradient")


def test_inner_function_step_by_step():
    """The reference itself, put together from its parts here."""
    xz, conv, conv_bias, x_proj, dt_proj, out, out_bias, A, _, _, D = block()
    bias = normal(d, seed=21)
    x, z = xz.chunk(2, dim=1)
    x = F.silu(F.conv1d(F.pad(x, (3, 0)), conv, conv_bias, groups=d))
    low, B, C = torch.einsum("bdl,rd->brl", x, x_proj).split([r, n, n], dim=1)
    delta = torch.einsum("brl,dr->bdl", low, dt_proj)
    y, _ = loop(x, delta, A, B, C, D, z, bias, True)
    want = torch.einsum("bdl,cd->blc", y, out) + out_bias
    check(interface.mamba_inner_ref(*block(), bias), want, 1e-10, "y")
    assert torch.equal(interface.MambaInnerFn.apply(*block(), bias), interface.mamba_inner_fn(*block(), bias))
    y_b = loop(*(t.flip(-1) for t in (x, delta)), 2 * A, B.flip(-1), C.flip(-1), D, z.flip(-1), bias, True)[0].flip(-1)
    both = torch.einsum("bdl,cd->blc", y + y_b, out) + out_bias
    given = block()
    check(interface.bimamba_inner_ref(*given[:8], 2 * A, None, None, D, bias), both, 1e-10, "both ways")
    bi = interface.BiMambaInnerFn.apply(*given[:8], 2 * A, None, None, D, bias)
    check(bi, both, 1e-10, "both ways")
    no_out = interface.MambaInnerFnNoOutProj.apply(*block(out=False), bias)
    check(no_out, y, 1e-10, "no projection")


def test_b_and_c_may_be_given():
    given = block(back=True)
    B, C = normal(d, n, seed=24), normal(b, n, length, seed=25)
    given[-3:-1] = B, C
    check(interface.bimamba_inner_fn(*given), interface.bimamba_inner_ref(*given), 1e-10, "y")


def test_norms_of_step_b_and_c():
    given, weights = block(), (normal(n, seed=26), normal(n, seed=27), normal(d, seed=28))
    xz, conv, conv_bias, x_proj, dt_proj, out, out_bias, A, _, _, D = given
    x, z = xz.chunk(2, dim=1)
    x = F.silu(F.conv1d(F.pad(x, (3, 0)), conv, conv_bias, groups=d))
    low, B, C = torch.einsum("bdl,rd->brl", x, x_proj).split([r, n, n], dim=1)
    delta = torch.einsum("brl,dr->bdl", low, dt_proj)
    B, C, delta = (
        t / (t.square().mean(1, keepdim=True) + 1e-5).sqrt() * w[:, None]
        for t, w in zip((B, C, delta), weights, strict=True)
    )
    y, _ = loop(x, delta, A, B, C, D, z, torch.zeros(d), True)
    want = torch.einsum("bdl,cd->blc", y, out) + out_bias
    names = ("b_rms_weight", "c_rms_weight", "dt_rms_weight")
    got = interface.mamba_inner_fn(*given, **dict(zip(names, weights, strict=True)), b_c_dt_rms_eps=1e-5)
    check(got, want, 1e-10, "y")


@pytest.mark.parametrize("name", PAIRS)
def test_inner_functions_under_autocast(name):
    fast, plain, options = PAIRS[name]
    given = block(torch.float32, **options)
    want = plain(*given)
    given[0] = given[0].bfloat16()  # as the first projection gives it under autocast
    with torch.autocast("cpu", torch.bfloat16):
        y = fast(*given)
    assert y.dtype == torch.bfloat16
    check(y, want.double(), 2**-4, "y")  # five roundings to 8 bits, one in the exponent of the decay


def test_inner_function_needs_both_halves():
    given = block()
    given[0] = given[0][:, 1:]
    with pytest.raises(InputError, match=r"xz has shape \(2, 11, 21\), want \(b, 2·d, l\)"):
        interface.mamba_inner_fn(*given)


# One step.


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize(("z", "D"), [(True, True), (False, False)])
def test_steps_equal_the_scan(z, D, softplus):
    given = values(z=z, D=D)
    if not softplus:
        given[1], given[7] = 0.3 * given[1].abs(), 0.1 * given[7].abs()
    u, delta, A, B, C, D, z, bias = given
    want, last = loop(*given, softplus)
    state, ys = torch.zeros(b, d, n, dtype=torch.float64), []
    for t in range(length):
        gate = None if z is None else z[:, :, t]
        ys.append(
            selective_state_update(
                state, u[:, :, t], delta[:, :, t], A, B[:, :, t], C[:, :, t], D, gate, bias, dt_softplus=softplus
            )
        )
    check(torch.stack(ys, dim=-1), want, 1e-12, "y")
    check(state, last, 1e-12, "state")


def test_a_step_with_heads_and_groups():
    h, p = 4, 3
    x, dt, z = (normal(b, h, p, seed=30 + i) for i in range(3))
    A, D, bias = -normal(h, p, n, seed=33).exp(), normal(h, p, seed=34), normal(h, p, seed=35)
    B, C = normal(b, 2, n, seed=36), normal(b, 2, n, seed=37)
    state = normal(b, h, p, n, seed=38)
    before = state.clone()
    y = selective_state_update(state, x, dt, A, B, C, D, z, bias, True)
    assert y.shape == (b, h, p)
    for head in range(h):
        own, group = before[:, head].clone(), head // 2
        alone = selective_state_update(
            own, x[:, head], dt[:, head], A[head], B[:, group], C[:, group], D[head], z[:, head], bias[head], True
        )
        torch.testing.assert_close(y[:, head], alone)
        torch.testing.assert_close(state[:, head], own)


def test_a_step_in_bfloat16():
    state = torch.zeros(b, d, n, dtype=torch.bfloat16)
    u, delta, A, B, C, D, z, bias = values(dtype=torch.bfloat16)
    y = selective_state_update(state, u[:, :, 0], delta[:, :, 0], A, B[:, :, 0], C[:, :, 0], D, z[:, :, 0], bias, True)
    assert y.dtype == state.dtype == torch.bfloat16
    assert state.abs().max() > 0


def test_a_step_has_gradients_and_its_state_none():
    state = torch.zeros(b, d, n, dtype=torch.float64)
    x = normal(b, d).requires_grad_()
    for _ in range(2):
        y = selective_state_update(state, x, normal(b, d), -normal(d, n).exp(), normal(b, n), normal(b, n))
    y.sum().backward()
    assert x.grad.abs().max() > 0
    assert not state.requires_grad


def test_mistakes_of_a_step():
    state, x = torch.zeros(b, d, n), torch.zeros(b, d)
    A, B = torch.zeros(d, n), torch.zeros(b, n)
    with pytest.raises(InputError, match=r"dt has shape \(2, 1, 5\), want \(2, 1, 6\)"):
        selective_state_update(state, x, x[:, 1:], A, B, B)
    with pytest.raises(NotProvidedError, match="state_batch_indices"):
        selective_state_update(state, x, x, A, B, B, state_batch_indices=torch.arange(2))
