"""Mamba-2's scan against its oracle: outputs, states and every gradient, in chunks of any size, on both ways."""

from functools import partial

import pytest
import torch
import torch._dynamo.testing
from scan_cases import check

import vmamba
from vmamba.errors import BackendError, InputError
from vmamba.kernels.ssd import by_head, by_quotients, chunks
from vmamba.kernels.ssd.states import Sequences
from vmamba.scan import recorded_runs, ssd_scan, ssd_scan_reference

NAMES = ("x", "dt", "A", "B", "C", "D", "dt_bias", "initial_states")


def inputs(length=37, *, per_channel=True, scale=1.0, dtype=torch.float64):
    b, h, p, g, n = 2, 6, 3, 2, 4
    draw = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    values = (
        normal(b, length, h, p),
        scale * normal(b, length, h),
        -torch.exp(normal(h)),
        normal(b, length, g, n),
        normal(b, length, g, n),
        normal(h, p) if per_channel else normal(h),
        normal(h) - 1,
        normal(b, h, p, n),
    )
    return dict(zip(NAMES, values, strict=True))


def with_gradients(run, values, softplus=True):
    leaves = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
    y, last = run(**leaves, dt_softplus=softplus)
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=torch.float64).view(y.shape)
    total = (y.double() * weights).sum() + last.double().square().sum()
    return [y.detach(), last.detach(), *torch.autograd.grad(total, list(leaves.values()))]


@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["quotients", "decays too strong for quotients"])
@pytest.mark.parametrize("chunk_size", [None, 1, 5, 64])
@pytest.mark.parametrize("length", [1, 37, 70])
def test_it_is_the_recurrence(length, chunk_size, scale):
    values = inputs(length, per_channel=length != 37, scale=scale)
    want = with_gradients(ssd_scan_reference, values)
    got = with_gradients(lambda **v: ssd_scan(**v, return_final_states=True, chunk_size=chunk_size), values)
    for name, ours, theirs in zip(("y", "last", *NAMES), got, want, strict=True):
        check(ours, theirs, 1e-10, name)


@pytest.mark.parametrize("length", [64, 171])
@pytest.mark.parametrize("decay", [30.0, 79.0, 81.0, 119.0, 300.0])
def test_float32_over_a_wide_range_of_decays(length, decay):
    """Chunks whose decays multiply to e^-decay, on both sides of where quotients end."""
    values = {**inputs(length), "dt": torch.full((2, length, 6), decay / (64 if length == 64 else 57)).double()}
    values |= {"A": -torch.linspace(0.1, 1, 6).double(), "dt_bias": torch.zeros(6).double()}
    run = partial(ssd_scan, return_final_states=True)
    want = with_gradients(ssd_scan_reference, values, softplus=False)
    got = with_gradients(run, {name: value.float() for name, value in values.items()}, softplus=False)
    for name, ours, theirs in zip(("y", "last", *NAMES), got, want, strict=True):
        check(ours, theirs, 1e-4, name)


@pytest.mark.parametrize(
    ("decay", "size", "form"),
    [(1.0, 56, by_quotients), (2.0, 28, by_quotients), (4.0, 14, by_quotients), (8.0, 32, by_head)],
)
def test_the_stronger_decays_are_the_shorter_are_chunks(decay, size, form):
    s, length, m, p, n = 2, 224, 3, 2, 4
    given = (torch.ones(s, length, m, p), torch.ones(s, length, m), torch.full((s, length, m), -decay))
    matrix = torch.ones(s, length, n)
    with torch.no_grad():
        cut, _, chosen = chunks._plan(Sequences(*given, matrix, matrix, None), None, False)
    assert (cut.size, cut.chunks, cut.padding, chosen) == (size, length // size, 0, form)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_are_float32(dtype):
    values = {name: value.to(dtype) for name, value in inputs().items()}
    y, last = ssd_scan(**values, dt_softplus=True, return_final_states=True)
    want, want_last = ssd_scan_reference(**{k: v.double() for k, v in values.items()}, dt_softplus=True)
    assert y.dtype == last.dtype == torch.float32
    check(y, want, 1e-5, "y")
    check(last, want_last, 1e-5, "last")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ssd_scan(**values, dt_softplus=True), y, rtol=0, atol=0)


def test_pieces_give_what_the_whole_gives():
    values = inputs()
    whole, end = ssd_scan(**values, return_final_states=True)
    pieces, state = [], values["initial_states"]
    for part in (slice(0, 9), slice(9, 10), slice(10, None)):
        own = {name: value[:, part] if name in ("x", "dt", "B", "C") else value for name, value in values.items()}
        y, state = ssd_scan(**{**own, "initial_states": state}, return_final_states=True)
        pieces.append(y)
    check(torch.cat(pieces, 1), whole, 1e-12, "y")
    check(state, end, 1e-12, "last")


def test_transforms_and_an_empty_batch():
    values = inputs()
    x = values.pop("x")
    one = {name: value[:1] if name in ("dt", "B", "C", "initial_states") else value for name, value in values.items()}

    def scan(t):
        return ssd_scan(t, **one, dt_softplus=True)

    want = torch.cat([scan(x[:1]), scan(x[1:])])
    check(torch.func.vmap(lambda t: scan(t[None])[0])(x), want, 1e-12, "vmap")
    _, tangent = torch.func.jvp(scan, (x[:1],), (x[1:],))
    check(tangent, scan(x[1:]) - scan(torch.zeros_like(x[:1])), 1e-12, "jvp")
    empty = {name: value[:0] if name in ("dt", "B", "C", "initial_states") else value for name, value in values.items()}
    assert ssd_scan(x[:0], **empty).shape == (0, *x.shape[1:])


def test_second_derivatives():
    values = [value.requires_grad_() for value in inputs(6).values()]

    def scan(*tensors):
        return ssd_scan(*tensors[:7], True, initial_states=tensors[7], return_final_states=True, chunk_size=4)

    assert torch.autograd.gradcheck(scan, values, fast_mode=True)
    assert torch.autograd.gradgradcheck(scan, values, fast_mode=True)


def operands(length=70, *, starts=True):
    """What the operator takes: one direction, and the states of four sequences."""
    x, dt, A, B, C, _, _, initial = inputs(length).values()
    x, dt, A, B, C = x.unflatten(2, (2, 3))[:, :, 0], dt[..., :3].abs(), A[:3], B[:, :, :1], C[:, :, :1]
    start = initial[:, :3].movedim(-1, 1).flatten(2)
    tensors = (x, dt[:, :, None], (dt * A)[:, :, None], B, C, start if starts else None)
    return [None if t is None else t.clone().requires_grad_() for t in tensors]


@pytest.mark.parametrize("starts", [True, False])
def test_opcheck(starts):
    options = (None, [0], [0], starts, None)
    tensors = operands(starts=starts)
    torch.library.opcheck(torch.ops.vmamba.torch_ssd, (*tensors, *options))
    plain = [None if t is None else t.detach() for t in tensors]
    dlast = None if plain[-1] is None else plain[-1] + 1
    torch.library.opcheck(torch.ops.vmamba.torch_ssd_backward, (torch.ones_like(plain[0]), dlast, *plain, *options))


def test_compiled_it_is_one_operator_both_ways_and_for_all_sizes():
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    run = partial(ssd_scan, return_final_states=True)
    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=graphs)
    for length in (70, 37):
        values = inputs(length)
        with recorded_runs() as runs:
            got = with_gradients(compiled, values)
        assert [one.op for one in runs] == ["ssd_scan"]
        for name, ours, theirs in zip(("y", "last", *NAMES), got, with_gradients(run, values), strict=True):
            check(ours, theirs, 1e-12, name)
    assert graphs.frame_count == 1


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("x", (2, 37, 18), "b, l, h, p"),
        ("dt", (2, 36, 6), "dt has shape"),
        ("A", (6, 4), "A has shape"),
        ("B", (2, 37, 4, 4), "divides the 6 heads"),
        ("C", (2, 37, 2, 5), "B's shape"),
        ("D", (3,), "or \\(h, p\\)"),
        ("dt_bias", (2,), "dt_bias has shape"),
        ("initial_states", (2, 6, 4, 3), "initial_states has shape"),
    ],
)
def test_shapes_that_do_not_fit_are_named(name, shape, words):
    with pytest.raises(InputError, match=words):
        ssd_scan(**{**inputs(), name: torch.ones(shape, dtype=torch.float64)})


def test_what_else_is_refused():
    with pytest.raises(InputError, match="chunk_size 0"):
        ssd_scan(**inputs(), chunk_size=0)
    with pytest.raises(InputError, match=r"dt is torch\.int64"):
        ssd_scan(**{**inputs(), "dt": torch.ones(2, 37, 6, dtype=torch.int64)})
    with pytest.raises(BackendError, match=r"mamba.*no kernel for cpu"), vmamba.backend("mamba"):
        ssd_scan(**inputs())
