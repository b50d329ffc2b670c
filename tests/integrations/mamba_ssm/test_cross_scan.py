"""A project's own ``csm_triton``, which has no branch for the CPU: adapted when it is imported."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from vmamba.integrations.mamba_ssm import NotProvidedError, standing_in
from vmamba.integrations.mamba_ssm.triton_on_cpu import CpuKernel
from vmamba.scan import cross_merge, cross_merge_fn, cross_scan, cross_scan_fn

pytest.importorskip("triton")

# Two kernels over flat maps, one program for each row of an image: ORDER says which places the four sequences read.
HEAD = """
import torch
import triton
import triton.language as tl

@triton.jit
def triton_cross_scan(x, y, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, BW: tl.constexpr):
    i, c, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    w = tl.arange(0, BW)
    value = tl.load(x + (b * C + c) * H * W + i * W + w, mask=w < W)
    to = y + (b * 4 * C + c) * H * W
    size = C * H * W
    tl.store(to + i * W + w, value, mask=w < W)
    tl.store(to + size + SECOND, value, mask=w < W)
    tl.store(to + 2 * size + H * W - 1 - i * W - w, value, mask=w < W)
    tl.store(to + 3 * size + H * W - 1 - (w * H + i), value, mask=w < W)

@triton.jit
def triton_cross_merge(x, y, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, BW: tl.constexpr):
    i, c, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    w = tl.arange(0, BW)
    to = y + (b * 4 * C + c) * H * W
    size = C * H * W
    value = tl.load(to + i * W + w, mask=w < W) + tl.load(to + size + SECOND, mask=w < W)
    value = value + tl.load(to + 2 * size + H * W - 1 - i * W - w, mask=w < W)
    value = value + tl.load(to + 3 * size + H * W - 1 - (w * H + i), mask=w < W)
    tl.store(x + (b * C + c) * H * W + i * W + w, value, mask=w < W)

def run(kernel, x, y):
    b, c, h, w = x.shape
    kernel[(h, c, b)](x, y, c, h, w, triton.next_power_of_2(w))

class CrossScanTriton(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        b, c, h, w = x.shape
        y = x.new_empty(b, 4, c, h, w)
        run(triton_cross_scan, x.contiguous(), y)
        return y.view(b, 4, c, -1)

    @staticmethod
    def backward(ctx, y):
        x = y.new_empty(ctx.shape)
        run(triton_cross_merge, x, y.contiguous())
        return x

class CrossMergeTriton(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        b, _, c, h, w = ctx.shape = y.shape
        x = y.new_empty(b, c, h, w)
        run(triton_cross_merge, x, y.contiguous())
        return x.view(b, c, -1)

    @staticmethod
    def backward(ctx, x):
        b, _, c, h, w = ctx.shape
        y = x.new_empty(ctx.shape)
        run(triton_cross_scan, x.view(b, c, h, w).contiguous(), y)
        return y

class CrossScanTritonF(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, channel_first=True):
        ctx.channel_first = channel_first
        x = x if channel_first else x.permute(0, 3, 1, 2)
        return CrossScanTriton.forward(ctx, x)

    @staticmethod
    def backward(ctx, y):
        x = CrossScanTriton.backward(ctx, y)
        return x if ctx.channel_first else x.permute(0, 2, 3, 1), None

def getCSM(mode=1):
    return CrossScanTriton, CrossMergeTriton
"""
#: Later projects call functions, which enter the device of a tensor, and have PyTorch classes besides.
LATER = """
import torch

class CrossScanF(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, in_channel_first=True, out_channel_first=True, one_by_one=False, scans=0):
        return torch.stack([x.flatten(2)] * 4, 1) * 7

def cross_scan_fn(x, in_channel_first=True, out_channel_first=True, one_by_one=False, scans=0, force_torch=False):
    with torch.cuda.device(x.device):
        return CrossScanF.apply(x, in_channel_first, out_channel_first, one_by_one, scans)

def cross_merge_fn(y):
    return y
"""
#: Classes of the later form, of their own making here: flags at each call.
FLAGGED = """
import torch
from vmamba.scan import cross_merge_fn, cross_scan_fn  # what their kernels compute

class CrossScanTritonF(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, in_channel_first=True, out_channel_first=True, one_by_one=False, scans=0):
        ctx.flags = in_channel_first, out_channel_first, one_by_one, scans
        ctx.shape = x.shape
        return FACTOR * cross_scan_fn(x, *ctx.flags)

    @staticmethod
    def backward(ctx, y):
        with torch.enable_grad():
            x = torch.zeros(ctx.shape, requires_grad=True)
            z = cross_scan_fn(x, *ctx.flags)
            return FACTOR * torch.autograd.grad(z, x, y.reshape(z.shape))[0], None, None, None, None
"""
COLUMNS, ROWS = "w * H + i", "i * W + w"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a package's ``csm_triton`` with this text."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "derived").mkdir()
    (tmp_path / "derived" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "derived", raising=False)
    monkeypatch.delitem(sys.modules, "derived.csm_triton", raising=False)

    def load(text: str) -> ModuleType:
        (tmp_path / "derived" / "csm_triton.py").write_text(text)
        return importlib.import_module("derived.csm_triton")

    yield load
    for name in ("derived", "derived.csm_triton"):
        sys.modules.pop(name, None)


def check(own: Any, ours: Any, given: torch.Tensor) -> None:
    results = []
    for function in (own, ours):
        t = given.clone().requires_grad_()
        y = function(t)
        y.backward(torch.arange(y.numel(), dtype=y.dtype).view(y.shape))
        results.append((y, t.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_the_known_orders_are_fast(project: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with standing_in():
        module = project(HEAD.replace("SECOND", COLUMNS))
        assert capsys.readouterr().err == (
            "vmamba: derived.csm_triton, a cross-scan for CUDA alone, is computed on the CPU by vmamba\n"
        )
        for name in ("CrossScanTriton", "CrossMergeTriton", "CrossScanTritonF"):
            assert "apply" in vars(getattr(module, name))
        assert module.getCSM(0) == (module.CrossScanTriton, module.CrossMergeTriton)
        x, y = torch.randn(2, 3, 5, 7), torch.randn(2, 4, 3, 5, 7)
        check(module.CrossScanTriton.apply, cross_scan, x)
        check(
            lambda t: module.CrossScanTritonF.apply(t, False),
            lambda t: cross_scan_fn(t, False),
            torch.randn(2, 5, 7, 3),
        )
        check(module.CrossMergeTriton.apply, lambda y: cross_merge(y.flatten(3), 5, 7).flatten(2), y)
    assert "apply" not in vars(module.CrossScanTriton)  # given back
    assert not isinstance(module.triton_cross_scan, CpuKernel)


def test_orders_of_their_own_are_kept(project: Any) -> None:
    with standing_in():
        module = project(HEAD.replace("SECOND", ROWS))
        assert "apply" not in vars(module.CrossScanTriton)
        x = torch.randn(2, 3, 5, 7)
        y = module.CrossScanTriton.apply(x)
        assert torch.equal(y[:, 0], y[:, 1])
        assert torch.equal(y[:, [0, 2, 3]], cross_scan(x)[:, [0, 2, 3]])


def test_without_triton(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "triton"]:
        monkeypatch.delitem(sys.modules, name)

    class Missing:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "triton":
                raise ModuleNotFoundError("No module named 'triton'", name="triton")

    missing = Missing()
    with standing_in():
        sys.meta_path.insert(0, missing)  # type: ignore[arg-type]
        try:
            module = project(HEAD.replace("SECOND", COLUMNS))
            assert "triton" not in sys.modules
            x = torch.randn(1, 2, 3, 4)
            assert torch.equal(module.CrossScanTriton.apply(x), cross_scan(x))
        finally:
            sys.meta_path.remove(missing)  # type: ignore[arg-type]


def test_functions_that_enter_a_device(project: Any) -> None:
    with standing_in():
        module = project(LATER)
        x = torch.randn(1, 2, 3, 4)
        assert torch.equal(module.cross_scan_fn(x, scans=0, force_torch=True), torch.stack([x.flatten(2)] * 4, 1) * 7)
        assert module.cross_merge_fn(x) is x
    with pytest.raises((ValueError, AssertionError, RuntimeError)):
        module.cross_scan_fn(x)


def test_with_a_gpu_nothing_is_adapted(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with standing_in():
        assert not isinstance(project(HEAD.replace("SECOND", COLUMNS)).triton_cross_scan, CpuKernel)


def test_a_kernel_that_does_more(project: Any) -> None:
    text = HEAD.replace("SECOND", COLUMNS).replace("value = value +", "value = tl.maximum(value, value) +")
    with standing_in():
        module = project(text)
        with pytest.raises(NotProvidedError, match=r"triton_cross_merge calls tl\.maximum, which vmamba does not run"):
            module.CrossMergeTriton.apply(torch.randn(1, 4, 2, 3, 4))


def test_the_flags_are_upstreams() -> None:
    x = torch.randn(1, 3, 4, 2)
    y = cross_scan_fn(x, False, True)
    assert torch.equal(y, cross_scan(x.permute(0, 3, 1, 2)))
    assert cross_merge_fn(y.view(1, 4, 2, 3, 4), False, True).shape == (1, 12, 2)


def test_classes_that_take_flags(project: Any) -> None:
    with standing_in():
        module = project(FLAGGED.replace("FACTOR", "1"))
        assert "apply" in vars(module.CrossScanTritonF)
        x = torch.randn(2, 5, 7, 3)
        check(
            lambda t: module.CrossScanTritonF.apply(t, False, False, False, 2),
            lambda t: cross_scan_fn(t, False, False, False, 2),
            x,
        )
        rotated = module.CrossScanTritonF.apply(x, False, False, False, 3)  # its own: not every such module has it
        assert torch.equal(rotated, cross_scan_fn(x, False, False, False, 3))


def test_classes_that_take_flags_and_give_something_else(project: Any) -> None:
    with standing_in():
        module = project(FLAGGED.replace("FACTOR", "2"))
        assert "apply" not in vars(module.CrossScanTritonF)
