"""The backend "mamba": what keeps it from running, and what it hands to mamba-ssm's compiled module.

The module is played by a double that refuses what the real one refuses and computes with the reference. Where the real
one runs, two more tests compare it with the reference and with the package's own.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from scan_cases import NAMES, check, inputs, oracle, with_gradients
from torch import Tensor

from vmamba import BackendError, recorded_runs
from vmamba.integrations.mamba_ssm import standing_in
from vmamba.kernels import mamba_ssm
from vmamba.kernels.interface import ScanCall
from vmamba.scan import selective_scan, selective_scan_reference, ss2d_scan
from vmamba.scan.dispatch import BACKENDS, Backend, choose

#: b, k, d, n, l
SHAPES = [(2, 2, 3, 4, 70), (1, 1, 1, 1, 1), (2, 4, 5, 1, 49)]
#: One place more than a saved state stands for.
LONG = (1, 1, 2, 1, 2049)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Sums of float32 in another order, relative to the largest element.
TOLERANCE = 1e-5


class Call(NamedTuple):
    name: str
    tensors: tuple[Tensor | None, ...]


class Double(ModuleType):
    """``selective_scan_cuda`` of releases 1.2 to 2.3: positional arguments, and the checks of its C++."""

    def __init__(self) -> None:
        super().__init__("selective_scan_cuda")
        self.calls: list[Call] = []
        self.saved: Tensor | None = None

    def fwd(self, u, delta, A, B, C, D, z, delta_bias, delta_softplus, /):
        self.look("fwd", (u, delta, A, B, C, D, delta_bias), u, delta, B, C)
        assert z is None
        y = selective_scan_reference(u, delta, A, B, C, D, delta_bias, delta_softplus).to(u.dtype)
        b, channels, length = u.shape
        shape = b, channels, -(-length // 2048), 2 * A.shape[1]
        self.saved = torch.linspace(1, 2, math.prod(shape)).view(shape)
        out = torch.empty_like(delta)  # its layout is delta's
        return [out.copy_(y), self.saved.clone()]

    def bwd(self, u, delta, A, B, C, D, z, delta_bias, dout, x, out, dz, delta_softplus, recompute_out_z, /):
        self.look("bwd", (u, delta, A, B, C, D, delta_bias), u, delta, B, C, dout)
        assert z is None
        assert out is None
        assert dz is None
        assert recompute_out_z is False
        assert self.saved is not None
        assert x.is_contiguous()
        torch.testing.assert_close(x, self.saved, rtol=0, atol=0)
        values = (u, delta, A, B, C, D, delta_bias)

        def differentiate() -> list[Tensor | None]:
            return with_gradients(lambda *v: selective_scan_reference(*v, delta_softplus), values, dout)[1]

        with ThreadPoolExecutor(1) as other:  # inside an operator this thread has no autograd
            gradients = other.submit(differentiate).result()
        pairs = zip(gradients, values, strict=True)
        return [None if t is None else torch.empty_like(t).copy_(g) for g, t in pairs]

    def look(self, name: str, tensors: tuple[Tensor | None, ...], *maps: Tensor) -> None:
        self.calls.append(Call(name, tensors))
        *_, D, delta_bias = tensors
        assert len({t.dtype for t in maps}) == 1
        assert all(t.stride(-1) == 1 or t.shape[-1] == 1 for t in maps)
        for t in (tensors[2], D, delta_bias):
            assert t is None or t.dtype == torch.float32
        for t in (D, delta_bias):
            assert t is None or t.stride(0) == 1 or len(t) == 1


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Double:
    double = Double()
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", double)
    return double


@pytest.fixture
def on_cpu(kernel: Double, monkeypatch: pytest.MonkeyPatch) -> Double:
    """The double as what ``backend="mamba"`` runs on CPU tensors."""
    row = BACKENDS["mamba"]
    answers = SimpleNamespace(machine_obstacle=lambda: None, call_obstacle=mamba_ssm.call_obstacle)
    here = Backend(row.name, row.summary, {"cpu": answers}, row.operators, row.transformable)
    monkeypatch.setitem(BACKENDS, "mamba", here)
    return kernel


def scan(*values: Any) -> Tensor:
    return selective_scan(*values, True, backend="mamba")


def weights_like(u: Tensor) -> Tensor:
    return torch.randn(u.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


# ---- what stands in the way of the machine ---------------------------------------------------------------------------

PACKAGES = {
    "release": "import selective_scan_cuda",  # 2.3.2.post1 built with MAMBA_SKIP_CUDA_BUILD=TRUE
    "development branch": "try:\n    import selective_scan_cuda\nexcept ImportError:\n    selective_scan_cuda = None",
}


class Installation:
    """A folder on Python's path in which parts of mamba-ssm are installed; at first, nothing is."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        monkeypatch.syspath_prepend(folder)
        for name in ("mamba_ssm", "selective_scan_cuda"):
            monkeypatch.setitem(sys.modules, name, None)  # hides what is really installed

    def add(self, module: str, text: str) -> None:
        path = self.folder / f"{module}.py"
        before = path.stat().st_mtime_ns if path.exists() else 0
        path.write_text(text)
        os.utime(path, ns=(before + 10**10, before + 10**10))
        importlib.invalidate_caches()
        self.monkeypatch.delitem(sys.modules, module, raising=False)

    def set_gpu(self, present: bool) -> None:
        self.monkeypatch.setattr(torch.cuda, "is_available", lambda: present)


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    return Installation(tmp_path, monkeypatch)


def test_not_installed(installation: Installation) -> None:
    obstacle = mamba_ssm.machine_obstacle()
    assert obstacle is not None
    assert obstacle.reason == "the mamba-ssm package is not installed"
    assert "`MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation mamba-ssm`" in obstacle.mend


@pytest.mark.parametrize("package", PACKAGES)
def test_installed_without_its_cuda_scan(installation: Installation, package: str) -> None:
    installation.add("mamba_ssm", PACKAGES[package])
    metadata = installation.folder / "mamba_ssm-9.8.7.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: mamba-ssm\nVersion: 9.8.7\n")
    importlib.invalidate_caches()
    obstacle = mamba_ssm.machine_obstacle()
    assert obstacle is not None
    assert obstacle.reason == "mamba-ssm 9.8.7 is installed without its CUDA scan (selective_scan_cuda is missing)"
    # Either way of building it takes both; and neither torch nor the wheel in pip's cache must come along.
    for word in ("MAMBA_KEEP_CUDA_BUILD=TRUE", "MAMBA_SKIP_CUDA_BUILD=FALSE", "--no-deps", "--no-cache-dir", "nvcc"):
        assert word in obstacle.mend
    assert "mamba_ssm" not in sys.modules  # nothing of the package was imported to find out


def test_a_guarded_import_leaves_none_behind_and_is_understood(installation: Installation) -> None:
    installation.add("mamba_ssm", PACKAGES["development branch"])
    package = importlib.import_module("mamba_ssm")
    assert package.selective_scan_cuda is None
    obstacle = mamba_ssm.machine_obstacle()
    assert obstacle is not None
    assert "without its CUDA scan" in obstacle.reason


def test_without_a_gpu_nothing_is_loaded(installation: Installation) -> None:
    installation.add("selective_scan_cuda", "raise ImportError('libcuda.so')")
    installation.set_gpu(False)
    obstacle = mamba_ssm.machine_obstacle()
    assert obstacle is not None
    assert "no CUDA GPU" in obstacle.reason
    assert "selective_scan_cuda" not in sys.modules


@pytest.mark.parametrize(
    "text", ["raise ImportError('undefined symbol:\\n_ZN3c10')", "raise OSError('undefined symbol: _ZN3c10')"]
)
def test_a_scan_that_does_not_load_is_loaded_once_until_it_is_mended(installation: Installation, text: str) -> None:
    log = installation.folder / "log"
    installation.add("selective_scan_cuda", f"open({str(log)!r}, 'a').write('loaded ')\n{text}")
    installation.set_gpu(True)
    for _ in range(3):
        obstacle = mamba_ssm.machine_obstacle()
        assert obstacle is not None
        assert "does not load (undefined symbol: _ZN3c10)" in obstacle.reason
        assert "rebuild it against this torch" in obstacle.mend
        assert "--no-deps" in obstacle.mend
    assert log.read_text() == "loaded "
    installation.add("selective_scan_cuda", "fwd = bwd = print")
    assert mamba_ssm.machine_obstacle() is None
    assert mamba_ssm.machine_obstacle() is None


def test_a_folder_of_that_name_is_not_the_scan(installation: Installation) -> None:
    (installation.folder / "selective_scan_cuda").mkdir()
    importlib.invalidate_caches()
    installation.monkeypatch.delitem(sys.modules, "selective_scan_cuda")
    installation.set_gpu(True)
    for _ in range(2):
        obstacle = mamba_ssm.machine_obstacle()
        assert obstacle is not None
        assert "has no function fwd" in obstacle.reason
    del sys.modules["selective_scan_cuda"]


def test_our_own_stand_in_is_not_the_scan(installation: Installation) -> None:
    installation.set_gpu(True)
    installation.monkeypatch.delitem(sys.modules, "selective_scan_cuda")
    with standing_in("selective_scan_cuda"):
        for _ in range(2):  # before it is loaded, and after
            obstacle = mamba_ssm.machine_obstacle()
            assert obstacle is not None
            assert "not installed" in obstacle.reason
            importlib.import_module("selective_scan_cuda")


def test_what_is_installed_later_is_found(installation: Installation) -> None:
    installation.set_gpu(True)
    assert "not installed" in str(mamba_ssm.machine_obstacle())
    installation.add("selective_scan_cuda", "fwd = bwd = print")
    assert mamba_ssm.machine_obstacle() is None
    assert mamba_ssm.details()["gradients"] == "atomic sums"


# ---- what stands in the way of a call --------------------------------------------------------------------------------


def call(
    batch: int = 1, channels: int = 1, length: int = 1, states: int = 1, dtype: torch.dtype = torch.float32
) -> ScanCall:
    elements = batch * channels * length
    return ScanCall("selective_scan", "cuda", dtype, states, elements, channels=channels, length=length)


@pytest.mark.parametrize(
    ("fits", "does_not", "reason"),
    [
        (call(dtype=torch.float16), call(dtype=torch.float64), r"no torch\.float64"),
        (call(states=256), call(states=257), "at most 256 states, not 257"),
        (call(channels=65_535), call(channels=65_536), "at most 65,535 channels"),
        # 65,535 · 256 · 128 < 2³¹
        (call(128, 65_535, 2048, 256), call(129, 65_535, 2048, 256), r"past 2,147,483,647 of them.*2,164,227,840"),
        (call(128, 65_535, 2048, 256), call(128, 65_535, 2049, 256), "32-bit number"),
        (ScanCall("selective_scan", "cuda", torch.float32), call(states=1000), "states"),
    ],
)
def test_call_obstacles(fits: ScanCall, does_not: ScanCall, reason: str) -> None:
    assert mamba_ssm.call_obstacle(fits) is None
    obstacle = mamba_ssm.call_obstacle(does_not)
    assert obstacle is not None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(obstacle.reason)


def test_too_many_states_are_refused_by_name_and_passed_on_by_none(on_cpu: Double) -> None:
    values = inputs(1, 1, 1, 257, 3)
    with pytest.raises(BackendError, match="at most 256 states, not 257"):
        scan(*values)
    with recorded_runs() as runs:
        selective_scan(*values, True)
    assert [run.backend for run in runs] != ["mamba"]
    assert not on_cpu.calls


# ---- what it hands over, and gives back ------------------------------------------------------------------------------


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("optional", [True, False], ids=["D+bias", "bare"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_every_gradient(on_cpu: Double, shape: tuple[int, ...], optional: bool, softplus: bool) -> None:
    values = inputs(*shape, D=optional, bias=optional, scale=0.3)
    if not softplus:  # steps below zero would let the states grow without end
        values[1], values[6] = values[1].abs(), values[6].abs() if optional else None
    weight = weights_like(values[0])
    y, gradients = with_gradients(lambda *v: selective_scan(*v, softplus, backend="mamba"), values, weight)
    y_exact, wanted = oracle(values, softplus, weight)
    assert [call.name for call in on_cpu.calls] == ["fwd", "bwd"]
    assert y.dtype == torch.float32
    check(y, y_exact, TOLERANCE, "y")
    for name, got, want in zip(NAMES, gradients, wanted, strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            check(got, want, TOLERANCE, f"d{name}")


def test_the_gate_and_the_last_state(on_cpu: Double) -> None:
    values = inputs(2, 1, 3, 2, 40, scale=0.3)
    z = torch.randn(values[0].shape, generator=torch.Generator().manual_seed(3))

    def gated(*v: Tensor, backend: str = "mamba") -> Tensor:
        return selective_scan(*v[:-1], True, z=v[-1], backend=backend)

    weight = weights_like(values[0])
    y, gradients = with_gradients(gated, [*values, z], weight)
    wanted, of_torch = with_gradients(lambda *v: gated(*v, backend="torch"), [*values, z], weight)
    check(y, wanted.double(), TOLERANCE, "y")
    for name, got, want in zip((*NAMES, "z"), gradients, of_torch, strict=True):
        check(got, want.double(), TOLERANCE, f"d{name}")

    with torch.no_grad():
        _, last = selective_scan(*values, True, return_last_state=True, backend="mamba")
    assert on_cpu.saved is not None
    assert torch.equal(last, on_cpu.saved[:, :, -1, 1::2])
    leaves = [v.clone().requires_grad_() for v in values]
    with pytest.raises(BackendError, match="no gradient of the last state"):
        selective_scan(*leaves, True, return_last_state=True, backend="mamba")
    with pytest.raises(BackendError, match="begins with no state"):
        selective_scan(*values, True, initial_state=torch.zeros(2, 3, 2), backend="mamba")


def test_a_sequence_of_more_than_one_saved_state(on_cpu: Double) -> None:
    values = inputs(*LONG, scale=0.3)
    with_gradients(scan, values, weights_like(values[0]))  # the double compares what backward is given
    assert on_cpu.saved is not None
    assert on_cpu.saved.shape == (1, 2, 2, 2)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_nothing_is_rounded_to_16_bits(on_cpu: Double, dtype: torch.dtype) -> None:
    """The kernel returns y in the dtype of u, so u is float32; gradients are rounded once, to their input's dtype."""
    values = inputs(2, 2, 3, 4, 70, dtype=dtype, scale=0.3)
    values[0], values[3], values[4] = 200 * values[0], 10 * values[3], 10 * values[4]
    weight = 1e-3 * weights_like(values[0])  # or the gradients would overflow too
    y, gradients = with_gradients(scan, values, weight)
    y_exact, wanted = oracle(values, True, weight)
    assert y.dtype == torch.float32
    assert y.abs().max() > torch.finfo(torch.float16).max
    check(y, y_exact, TOLERANCE, "y")
    for name, value, got, want in zip(NAMES, values, gradients, wanted, strict=True):
        assert got.dtype == value.dtype
        rounding = 0 if value.dtype == torch.float32 else torch.finfo(dtype).eps / 2
        check(got, want, TOLERANCE + rounding, f"d{name}")
    assert {t.dtype for call in on_cpu.calls for t in call.tensors if t is not None} == {torch.float32}


def test_dtypes_may_differ_and_a_float32_step_is_not_rounded(on_cpu: Double) -> None:
    u, delta, A, B, C, D, bias = inputs(1, 2, 3, 2, 20)
    selective_scan(u.bfloat16(), delta, A.double(), B.half(), C.double(), D.bfloat16(), bias, True, backend="mamba")
    ((_, given),) = on_cpu.calls
    assert {t.dtype for t in given if t is not None} == {torch.float32}
    torch.testing.assert_close(given[1], delta, rtol=0, atol=0)


def test_any_strides(on_cpu: Double) -> None:
    u, delta, A, B, C, D, bias = plain = inputs(2, 2, 3, 4, 70)
    strided = [
        u.transpose(1, 2).contiguous().transpose(1, 2),
        delta.transpose(0, 1).contiguous().transpose(0, 1),  # the last axis is as the kernel wants it
        A.t().contiguous().t(),
        torch.cat([B, C], dim=2)[:, :, :4],
        torch.stack([C, C], dim=-1)[..., 0],
        torch.stack([D, D], dim=-1)[:, 0],
        torch.stack([bias, bias], dim=-1)[:, 0],
    ]
    want = with_gradients(scan, plain, torch.ones_like(u, dtype=torch.float64))
    leaves = [t.detach().requires_grad_() for t in strided]
    y = scan(*leaves)
    got = torch.autograd.grad(y.sum(), leaves)  # y's gradient has strides of 0
    assert y.is_contiguous()
    # The double's own arithmetic depends on strides, in the last bits.
    torch.testing.assert_close(y, want[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(list(got), want[1], rtol=1e-5, atol=1e-6)


def test_an_empty_batch(on_cpu: Double) -> None:
    values = inputs(2, 2, 3, 4, 7)
    leaves = [t.requires_grad_() for t in values]
    u, delta, A, B, C, D, bias = leaves
    y = scan(u[:0], delta[:0], A, B[:0], C[:0], D, bias)
    assert y.shape == (0, 6, 7)
    y.sum().backward()
    assert all(t.grad is not None and not t.grad.any() for t in leaves)
    assert not on_cpu.calls


def test_states_are_saved_for_backward_alone(kernel: Double) -> None:
    values = inputs(1, 2, 3, 4, 70)
    assert torch.ops.vmamba.mamba_scan(*values, True, False)[1].numel() == 0
    assert torch.ops.vmamba.mamba_scan(*values, True, True)[1].shape == (1, 6, 1, 8)
    values[0].requires_grad_()
    with pytest.raises(BackendError, match="pass save=True"):
        torch.ops.vmamba.mamba_scan(*values, True, False)


def test_the_2d_scan_is_composed_from_it(on_cpu: Double) -> None:
    draw = torch.Generator().manual_seed(3)
    x, x_dbl = torch.randn(2, 5, 6, 4, generator=draw), torch.randn(2, 5, 6, 4, 3 + 2 * 2, generator=draw)
    others = torch.randn(4, 4, 3, generator=draw), None, -torch.rand(16, 2, generator=draw), torch.ones(16)
    with recorded_runs() as runs, torch.autocast("cpu", torch.bfloat16):
        y = ss2d_scan(x.bfloat16(), x_dbl, *others, backend="mamba")
    assert [(run.backend, run.op) for run in runs] == [("mamba", "selective_scan")]
    exact = [None if t is None else t.double() for t in (x.bfloat16(), x_dbl, *others)]
    check(y, ss2d_scan(*exact, backend="torch"), TOLERANCE, "y")


# ---- as torch operators ----------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("permuted", [False, True], ids=["contiguous", "permuted"])
@pytest.mark.parametrize("optional", [True, False], ids=["D+bias", "bare"])
def test_opcheck(kernel: Double, optional: bool, permuted: bool) -> None:
    values = inputs(2, 2, 3, 2, 20, D=optional, bias=optional)
    if permuted:
        values[:2] = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in values[:2]]
        values[3:5] = [t.transpose(2, 3).contiguous().transpose(2, 3) for t in values[3:5]]
    leaves = [None if t is None else t.detach().requires_grad_() for t in values]
    torch.library.opcheck(torch.ops.vmamba.mamba_scan.default, (*leaves, True, True))
    torch.library.opcheck(torch.ops.vmamba.mamba_scan.default, (*values, True, False))
    y, saved = torch.ops.vmamba.mamba_scan(*values, True, True)
    torch.library.opcheck(torch.ops.vmamba.mamba_scan_backward.default, (torch.ones_like(y), saved, *values, True))


def test_compiles_in_one_graph_and_records_what_ran(on_cpu: Double) -> None:
    values = inputs(2, 2, 3, 4, 70)
    weight = weights_like(values[0])
    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    with recorded_runs() as runs:
        got = with_gradients(compiled, values, weight)
    assert [(run.backend, run.op) for run in runs] == [("mamba", "selective_scan")]
    assert [call.name for call in on_cpu.calls] == ["fwd", "bwd"]
    torch.testing.assert_close(got, with_gradients(scan, values, weight), rtol=0, atol=0)


def test_what_a_compiled_graph_cannot_know_the_operator_refuses(on_cpu: Double) -> None:
    assert choose("mamba", "selective_scan", "cpu", torch.float32) == "mamba"
    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    with pytest.raises(BackendError, match=r'at most 256 states, not 257; use fewer states, or use backend="torch"'):
        compiled(*inputs(1, 1, 1, 257, 3))
    assert not on_cpu.calls


def test_second_derivatives_are_refused(on_cpu: Double) -> None:
    leaves = [t.requires_grad_() for t in inputs(1, 1, 2, 2, 9)]
    (first,) = torch.autograd.grad(scan(*leaves).sum(), leaves[0], create_graph=True)
    with pytest.raises(BackendError, match=r'no second derivatives; use backend="torch"'):
        first.sum().backward()


def test_forward_mode_and_transforms_are_refused(on_cpu: Double) -> None:
    u, *rest = inputs(1, 1, 2, 2, 9)
    with pytest.raises(BackendError, match="forward-mode differentiation"):
        torch.func.jvp(lambda u: scan(u, *rest), (u,), (torch.ones_like(u),))
    with pytest.raises(BackendError, match=r"torch.func's transforms"):
        torch.func.grad(lambda u: scan(u, *rest).sum())(u)
    assert not on_cpu.calls


# ---- the real kernel, where there is one -----------------------------------------------------------------------------

if mamba_ssm.machine_obstacle() is None:

    @pytest.mark.gpu
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", [*SHAPES, LONG], ids=str)
    def test_the_real_kernel_agrees_with_the_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
        values = [t.cuda() for t in inputs(*shape, dtype=dtype, scale=0.3)]
        weight = weights_like(values[0]).cuda()
        with recorded_runs() as runs:
            y, gradients = with_gradients(scan, values, weight)
        assert [run.backend for run in runs] == ["mamba"]
        y_exact, wanted = oracle(values, True, weight)
        # Its exponentials and logarithms are the fast ones.
        check(y, y_exact, 10 * TOLERANCE, "y")
        for name, value, got, want in zip(NAMES, values, gradients, wanted, strict=True):
            rounding = 0 if value.dtype == torch.float32 else torch.finfo(dtype).eps / 2
            check(got, want, 10 * TOLERANCE + rounding, f"d{name}")

    @pytest.mark.gpu
    def test_the_reference_agrees_with_the_packages_own() -> None:
        theirs = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_ref
        u, delta, A, B, C, D, bias = (t.cuda() for t in inputs(2, 2, 3, 4, 70))
        want = theirs(u, delta, A, B, C, D, None, bias, True)
        check(selective_scan_reference(u, delta, A, B, C, D, bias, True), want.double(), TOLERANCE, "y")
