"""What only the ``torch`` backend promises: derivatives of every kind, compilation, exports, bounded memory."""

from __future__ import annotations

import weakref
from collections import Counter

import pytest
import torch
import torch._dynamo.testing
from scan_cases import NAMES, check, inputs, oracle, with_gradients
from torch import Tensor, nn
from torch.export import Dim, export
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vmamba import BackendError, InputError
from vmamba.kernels import linear_recurrence
from vmamba.kernels import torch_prefix as torch_scan
from vmamba.scan import recorded_runs, selective_scan, selective_scan_reference, ss2d_scan


def scan(*values: Tensor) -> Tensor:
    return selective_scan(*values, True, backend="torch")


def weight_of(values: list[Tensor]) -> Tensor:
    return torch.randn(values[0].shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


# Lengths on both sides of one block, of one level of blocks, of two; sequences shorter than any block.


@pytest.mark.parametrize("length", [1, 2, 15, 63, 64, 65, 128, 1023, 1024, 1025])
def test_lengths_around_the_blocks(length):
    values = inputs(1, 1, 2, 2, length, dtype=torch.float64)
    weight = weight_of(values)
    got, want = with_gradients(scan, values, weight), oracle(values, True, weight)
    check(got[0], want[0], 1e-12, "y")
    for name, a, b in zip(NAMES, got[1], want[1], strict=True):
        check(a, b, 1e-11, f"d{name}")


@pytest.mark.long
def test_a_very_long_sequence():
    """Four levels of blocks: with ``a = 1/2`` and unit drive the t-th state is ``2 - 2^-t``, and so its gradient."""
    length = 300_000
    ones = torch.ones(1, 1, length, dtype=torch.float64)
    A = torch.full((1, 1), -torch.log(torch.tensor(2.0, dtype=torch.float64)).item(), dtype=torch.float64)
    u = ones.clone().requires_grad_()
    y = selective_scan(u, ones, A, ones[:, None], ones[:, None], backend="torch")
    expected = 2 - torch.exp2(-torch.arange(length, dtype=torch.float64))
    torch.testing.assert_close(y[0, 0].detach(), expected, rtol=1e-13, atol=0)
    (du,) = torch.autograd.grad(y.sum(), u)
    torch.testing.assert_close(du[0, 0], expected.flip(0), rtol=1e-13, atol=0)


@pytest.mark.parametrize("chunk", [1, 500, 3000, 20_000])
def test_chunks_change_nothing(chunk, monkeypatch):
    """However batch and channels are cut: every state the same, sums over chunks the same but for rounding."""
    values = inputs(3, 2, 7, 3, 100, dtype=torch.float64)
    weight = weight_of(values)
    want = with_gradients(scan, values, weight)
    monkeypatch.setitem(torch_scan._CHUNK, "cpu", chunk)
    got = with_gradients(scan, values, weight)
    assert torch.equal(got[0], want[0])
    for name, a, b in zip(NAMES, got[1], want[1], strict=True):
        check(a, b, 1e-13, f"d{name}")


# Steps of any size.


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("length", [60, 1000])
def test_steps_of_any_size(length, softplus):
    """δ from N(0, 30²): decays underflow to 0 and, without softplus, negative steps make the state grow past float32.

    No NaN comes up, and no overflow before the recurrence itself overflows.
    """
    values = inputs(1, 2, 4, 3, length, scale=30.0, bias=softplus)
    leaves = [None if v is None else v.requires_grad_() for v in values]
    y = selective_scan(*leaves, softplus, backend="torch")
    exact = selective_scan_reference(*[None if v is None else v.detach().double() for v in values], softplus)
    sound = (exact.isfinite() & (exact.abs() < 1e30)).cummin(-1).values
    assert sound.any(-1).all()
    assert softplus == bool(sound.all())
    # Each of the steps that made the state rounds its exponent, up to 100 in size.
    error = (y.double() - exact).abs()[sound] / exact.abs().clamp(min=1)[sound]
    assert error.max() <= 1e-5 if softplus else error.max() <= 1e-2
    if softplus:
        y.sum().backward()
        assert all(v.grad.isfinite().all() for v in leaves)


def test_an_overflowing_first_decay_is_not_used():
    """Nothing comes before the first position, so its decay, here infinite, decays nothing."""
    u, delta, A, B, C, *_ = inputs(1, 1, 2, 1, 100)
    delta = 0.1 * delta.abs()
    delta[..., 0] = -1e4
    u[..., 0] = 0
    y = selective_scan(u, delta, A, B, C, backend="torch")
    delta[..., 0] = 0
    assert torch.equal(y, selective_scan(u, delta, A, B, C, backend="torch"))


def test_no_decay_is_a_running_sum():
    u, delta, A, B, C, *_ = inputs(1, 2, 3, 2, 300, dtype=torch.float64)
    y = selective_scan(u, delta, torch.zeros_like(A), B, C, backend="torch")
    drive = (delta * u).unflatten(1, (2, 3))[:, :, :, None] * B[:, :, None]
    torch.testing.assert_close(y, (drive.cumsum(-1) * C[:, :, None]).sum(3).flatten(1, 2), rtol=1e-12, atol=1e-12)


# Derivatives.

PARTS = [{}, {"D": False}, {"bias": False}, {"D": False, "bias": False}]


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("shape", [(1, 2, 1, 2, 5), (2, 1, 2, 1, 1), (1, 1, 1, 1, 70)], ids=str)
def test_first_and_second_derivatives(shape, parts):
    """By finite differences in float64; 70 positions need two levels of blocks."""
    values = [v if v is None else v.requires_grad_() for v in inputs(*shape, dtype=torch.float64, **parts)]
    fast = shape[-1] > 10
    assert torch.autograd.gradcheck(scan, values, fast_mode=fast)
    assert torch.autograd.gradgradcheck(scan, values, fast_mode=fast)


def test_forward_mode():
    """`torch.func.jvp`, alone and over reverse mode, against the oracle, which is plain autograd."""
    values = tuple(inputs(1, 2, 2, 2, 70, dtype=torch.float64))
    tangents = tuple(torch.randn_like(v) for v in values)

    def reference(*v):
        return selective_scan_reference(*v, True)

    for got, want in zip(
        torch.func.jvp(scan, values, tangents), torch.func.jvp(reference, values, tangents), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)

    def gradient(function):
        return lambda A: torch.func.grad(lambda A: function(*values[:2], A, *values[3:]).square().sum())(A)

    found = torch.func.jvp(gradient(scan), (values[2],), (tangents[2],))
    wanted = torch.func.jvp(gradient(reference), (values[2],), (tangents[2],))
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)

    dual = [v.clone().requires_grad_() for v in values]  # inputs that require grad as well
    with torch.autograd.forward_ad.dual_level():
        y = scan(*[torch.autograd.forward_ad.make_dual(v, t) for v, t in zip(dual, tangents, strict=True)])
        tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(tangent, torch.func.jvp(reference, values, tangents)[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "mapped", [(0,) * 7, (None, None, 0, None, None, None, None), (0, None, None, 0, None, 0, None)]
)
def test_vmap(mapped):
    """Any input may carry the mapped axis, alone too, forward and under `torch.func.grad`."""
    values = inputs(1, 2, 2, 2, 70, dtype=torch.float64)
    many = [v if axis is None else torch.stack([v, 0.5 * v, 0.25 * v]) for v, axis in zip(values, mapped, strict=True)]

    def item(i):
        return [v if axis is None else v[i] for v, axis in zip(many, mapped, strict=True)]

    got = torch.func.vmap(scan, in_dims=mapped)(*many)
    torch.testing.assert_close(got, torch.stack([scan(*item(i)) for i in range(3)]), rtol=1e-12, atol=1e-12)

    gradient = torch.func.grad(lambda *v: scan(*v).square().sum(), argnums=tuple(range(7)))
    got = torch.func.vmap(gradient, in_dims=mapped)(*many)
    for each, *wanted in zip(got, *(gradient(*item(i)) for i in range(3)), strict=True):
        torch.testing.assert_close(each, torch.stack(wanted), rtol=1e-11, atol=1e-11)


# Compilation.


def test_the_operators_keep_torchs_rules():
    u, delta, A, B, C, *_ = inputs(2, 2, 3, 2, 70)
    tensors = [u.unflatten(1, (2, 3)), delta.unflatten(1, (2, 3)), A.unflatten(0, (2, 3)), B, C]
    torch.library.opcheck(torch.ops.vmamba.torch_scan, (*(t.requires_grad_() for t in tensors), None))
    torch.library.opcheck(
        torch.ops.vmamba.torch_scan_backward, (torch.ones_like(tensors[0]), None, *map(Tensor.detach, tensors), None)
    )


def test_a_compiled_graph_runs_the_same_and_tells():
    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    values = inputs(2, 2, 3, 2, 70)
    weight = weight_of(values)
    want = with_gradients(scan, values, weight)
    with recorded_runs() as runs:
        got = with_gradients(compiled, values, weight)
    assert [(run.backend, run.op) for run in runs] == [("torch", "selective_scan")]
    assert torch.equal(got[0], want[0])
    for name, a, b in zip(NAMES, got[1], want[1], strict=True):
        check(a, b.double(), 1e-6, f"d{name}")
    with torch.no_grad():
        assert torch.equal(compiled(*values), want[0])


def test_a_compiled_graph_has_no_second_derivatives():
    values = [v.requires_grad_() for v in inputs(1, 1, 2, 1, 9)]
    y = torch.compile(scan, fullgraph=True, backend="aot_eager")(*values)
    # Ours, or what AOTAutograd says first about any compiled backward.
    with pytest.raises((BackendError, RuntimeError), match=r"second derivatives|create_graph=False"):
        torch.autograd.grad(torch.autograd.grad(y.sum(), values, create_graph=True)[0].sum(), values)


@pytest.mark.parametrize("marked", [False, True])
def test_one_compiled_graph_for_every_batch_and_length(marked):
    """``dynamic=True`` and `torch._dynamo.mark_dynamic`, forward and backward: traced once."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(scan, fullgraph=True, dynamic=None if marked else True, backend=counter)
    for b, length in [(7, 50), (3, 197), (4, 1000), (5, 33), (2, 64), (3, 5000)]:  # 7: no other size at first
        values = [v.requires_grad_() for v in inputs(b, 2, 3, 2, length)]
        if marked:
            for i, (*_, last) in ((0, (0, 2)), (1, (0, 2)), (3, (0, 3)), (4, (0, 3))):
                torch._dynamo.mark_dynamic(values[i], 0)
                torch._dynamo.mark_dynamic(values[i], last)
        weight = weight_of(values)
        y = compiled(*values)
        found = torch.autograd.grad((y.double() * weight).sum(), values)
        want = with_gradients(scan, values, weight)
        check(y.detach(), want[0].double(), 1e-6, "y")
        for name, a, b_ in zip(NAMES, found, want[1], strict=True):
            check(a, b_.double(), 1e-5, f"d{name}")
    assert counter.frame_count == 1


@pytest.mark.long
def test_inductor():
    compiled = torch.compile(scan, fullgraph=True, dynamic=True)
    for b, length in [(2, 50), (3, 197)]:
        values = inputs(b, 2, 3, 2, length)
        weight = weight_of(values)
        got, want = with_gradients(compiled, values, weight), with_gradients(scan, values, weight)
        check(got[0], want[0].double(), 1e-6, "y")
        for name, a, b_ in zip(NAMES, got[1], want[1], strict=True):
            check(a, b_.double(), 1e-5, f"d{name}")


# Exports.


class Scan(nn.Module):
    def __init__(self, n: int):
        super().__init__()
        _, _, A, _, _, D, bias = inputs(1, 2, 3, n, 1)
        self.A, self.D, self.bias = nn.Parameter(A), nn.Parameter(D), nn.Parameter(bias)

    def forward(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return selective_scan(u, delta, self.A, B, C, self.D, self.bias, True, backend="torch")


class MapScan(nn.Module):
    def __init__(self):
        super().__init__()
        _, _, A, _, _, D, bias = inputs(1, 4, 3, 2, 1)
        self.A, self.D, self.bias = nn.Parameter(A), nn.Parameter(D), nn.Parameter(bias.view(4, 3))
        self.weight = nn.Parameter(torch.ones(4, 3, 1))

    def forward(self, x: Tensor, x_dbl: Tensor) -> Tensor:
        return ss2d_scan(x, x_dbl, self.weight, self.bias, self.A, self.D, backend="torch")


def sequences(n: int, b: int, length: int) -> tuple[Tensor, ...]:
    u, delta, _, B, C, *_ = inputs(b, 2, 3, n, length)
    return u, delta, B, C


def exported(n: int, b: int, length: int) -> torch.export.ExportedProgram:
    batch, l = Dim("batch"), Dim("l")  # noqa: E741
    shapes = ({0: batch, 2: l}, {0: batch, 2: l}, {0: batch, 3: l}, {0: batch, 3: l})
    return export(Scan(n), sequences(n, b, length), dynamic_shapes=shapes, strict=False)


def operations(program: torch.export.ExportedProgram) -> Counter[str]:
    return Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_an_export_serves_every_batch_and_length(n, gradients):
    with torch.set_grad_enabled(gradients):
        program = exported(n, 2, 50)
    module, original = program.module(), Scan(n)
    with torch.no_grad(), recorded_runs() as runs:
        for b, length in [(1, 2), (3, 16), (2, 17), (1, 1024), (2, 1025), (1, 70_000)]:
            given = sequences(n, b, length)
            check(module(*given), original(*given).double(), 1e-6, f"l = {length}")
    assert {run.backend for run in runs} == {"torch"}
    assert len(runs) == 6  # the exported graphs leave none


def test_an_export_holds_plain_operations_as_many_for_every_size():
    small, large = operations(exported(1, 2, 50)), operations(exported(1, 3, 5000))
    assert small == large
    assert not any("vmamba" in name or "higher_order" in name for name in small)
    assert all(name.startswith(("aten.", "<built-in function")) for name in small)
    assert small.total() < 300


def test_an_export_of_the_map_scan_serves_every_size():
    batch, h, w = Dim("batch"), Dim("h"), Dim("w")
    example = torch.randn(2, 7, 9, 3), torch.randn(2, 7, 9, 4, 5)
    shapes = ({0: batch, 1: h, 2: w}, {0: batch, 1: h, 2: w})
    program = export(MapScan(), example, dynamic_shapes=shapes, strict=False)
    assert not any("vmamba" in name for name in operations(program))
    module, original = program.module(), MapScan()
    with torch.no_grad():
        for b, h_, w_ in [(1, 3, 5), (3, 31, 17), (2, 64, 100)]:
            given = torch.randn(b, h_, w_, 3), torch.randn(b, h_, w_, 4, 5)
            check(module(*given), original(*given).double(), 1e-6, f"{h_} x {w_}")


def test_too_long_for_an_export(monkeypatch):
    """A fixed size is refused when it is exported, a dynamic one fails when it runs; neither is wrong in silence."""
    monkeypatch.setattr(linear_recurrence, "_EXPORTED_BLOCKS", (16, 4, 4))
    monkeypatch.setattr(torch_scan, "MAX_EXPORTED_LENGTH", 256)
    with pytest.raises(InputError, match=r"l = 257 positions.*256"):
        export(Scan(1), sequences(1, 1, 257), strict=False)
    module = exported(1, 2, 50).module()
    given = sequences(1, 1, 256)
    check(module(*given).detach(), Scan(1)(*given).detach().double(), 1e-6, "l = 256")
    for length in (257, 300, 5000):
        with pytest.raises((RuntimeError, IndexError), match=r"index out of range|out of bounds"):
            module(*sequences(1, 1, length))


# Memory.


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made inside hold at one time, each storage once."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                if storage not in self._known and storage.data_ptr() not in given:
                    self._known.add(storage)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._release, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _release(self, size: int) -> None:
        self.now -= size


def peak(function) -> int:
    with LiveBytes() as live:
        kept = function()
    del kept
    return live.peak


def test_the_meter_counts():
    kilo = torch.ones(256)
    assert peak(lambda: kilo + 1 + 1 + 1) == 2048  # of three sums, two at a time
    assert peak(lambda: [kilo + i for i in range(5)]) == 5120
    assert peak(lambda: kilo.view(16, 16).t()) == 0


@pytest.mark.parametrize("n", [1, pytest.param(16, marks=pytest.mark.long)])
def test_memory_is_bounded(n):
    """Forward and backward, saved tensors, outputs and gradients included, against the bytes of the inputs."""
    values = [v.requires_grad_() for v in inputs(1, 4, 96, n, 3136)]
    dy = torch.ones(values[0].shape)
    given = sum(v.nbytes for v in values)
    assert peak(lambda: torch.autograd.grad(scan(*values), values, dy)) <= 8 * given


def test_memory_does_not_grow_with_the_batch():
    """What the scan holds beyond outputs, gradients and δ belongs to one chunk."""

    def needed(b: int) -> float:
        values = [v.requires_grad_() for v in inputs(b, 4, 16, 4, 1000)]
        dy = torch.ones(values[0].shape)
        return peak(lambda: torch.autograd.grad(scan(*values), values, dy)) / sum(v.nbytes for v in values)

    assert needed(16) < 4.5 < needed(1)
