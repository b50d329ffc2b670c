"""The scans' static library, called as AOTInductor's models call it: every layout and dtype, and what it refuses."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from map_cases import map_inputs
from scan_cases import inputs
from torch import Tensor

from vmamba.export.aoti import kernel_library
from vmamba.kernels.native import library as native
from vmamba.scan import schema
from vmamba.scan.orders import readings_of

TORCH = Path(torch.__file__).parent / "lib"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    static = kernel_library()
    assert static is not None
    folder = tmp_path_factory.mktemp("library")
    (folder / "addresses.cpp").write_text(ADDRESSES)
    torchs = [f"-L{TORCH}", f"-Wl,-rpath,{TORCH}", "-ltorch_cpu"]
    words = ["g++", "-shared", "-fPIC", "-fopenmp", "addresses.cpp", str(static), *torchs, "-o", "scan.so"]
    subprocess.run(words, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "scan.so"))


# A model sees the functions inside itself only.
ADDRESSES = """
extern "C" {
int aoti_torch_cpu_ss2d_scan();
int aoti_torch_cpu_selective_scan();
void* ss2d_scan() { return reinterpret_cast<void*>(aoti_torch_cpu_ss2d_scan); }
void* selective_scan() { return reinterpret_cast<void*>(aoti_torch_cpu_selective_scan); }
}
"""


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def handle_of(t: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(_pointer(torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors([t])[0], None))


def tensor_of(handle: ctypes.c_void_p) -> Tensor:
    return torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(_capsule(handle, None, None))


def call(library: ctypes.CDLL, name: str, *values: object) -> Tensor | None:
    """What the C function makes of torch's values, or None where it fails. ``[t]`` is an optional tensor."""
    given: list[object] = []
    for value in values:
        if isinstance(value, Tensor):
            given.append(handle_of(value))
        elif isinstance(value, tuple):
            given += [(ctypes.c_int64 * len(value))(*value), ctypes.c_int64(len(value))]
        elif isinstance(value, list):
            given.append(None if value[0] is None else ctypes.byref(handle_of(value[0])))
        else:
            given.append(ctypes.c_int32(value))
    address = getattr(library, name)
    address.restype = ctypes.c_void_p
    function = ctypes.CFUNCTYPE(ctypes.c_int)(address())
    y, saved = ctypes.c_void_p(), ctypes.c_void_p()
    if function(*given, ctypes.byref(y), ctypes.byref(saved)):
        return None
    assert tensor_of(saved).shape == (0,)
    return tensor_of(y)


def ss2d(library: ctypes.CDLL, values: list[Tensor | None], mode: str = "cross2d", *, save: int = 0) -> Tensor | None:
    x, x_dbl, dt_weight, dt_bias, A, D = values
    return call(library, "ss2d_scan", x, x_dbl, dt_weight, [dt_bias], A, [D], readings_of(mode), 1, save)


def spread(t: Tensor, axis: int) -> Tensor:
    """The same values, with gaps along an axis."""
    return t.repeat_interleave(2, axis)[(slice(None),) * axis + (slice(None, None, 2),)]


MAPS = {
    "as they come": lambda x: x,
    "gaps between channels' pixels": lambda x: spread(x, 2),
    "gaps between images": lambda x: spread(x, 0),
    "a part of the channels": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
}


@pytest.mark.parametrize("layout", MAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("h", "w"), [(5, 8), (1, 7), (6, 1), (9, 9)])
def test_maps(library: ctypes.CDLL, layout: str, dtype: torch.dtype, h: int, w: int) -> None:
    values = map_inputs(2, h, w, 19, 2)
    values[0], values[1] = (t.to(dtype) for t in values[:2])
    want = schema.ss2d_scan(*values, "rot2d", True)
    values[0], values[1] = MAPS[layout](values[0]), MAPS[layout](values[1])
    got = ss2d(library, values, "rot2d")
    assert got is not None
    assert torch.equal(got, want)


def test_maps_without_bias_and_skip_and_empty_ones(library: ctypes.CDLL) -> None:
    values = map_inputs(2, 4, 6, 16, 1)
    values[3] = values[5] = None
    assert torch.equal(ss2d(library, values), schema.ss2d_scan(*values, "cross2d", True))
    values[0], values[1] = values[0][:0], values[1][:0]
    assert ss2d(library, values).shape == (0, 4, 6, 16)


@pytest.mark.parametrize(
    ("position", "change", "why"),
    [
        (0, lambda t: t.transpose(1, 2).contiguous().transpose(1, 2), "pixels of a map do not lie at equal distances"),
        (0, lambda t: spread(t, 3), "pixels of a map do not lie at equal distances"),
        (1, lambda t: spread(t, 1), "pixels of a map do not lie at equal distances"),
        (0, lambda t: t.double(), "neither float32, bfloat16 nor float16"),
        (2, lambda t: t.bfloat16(), "a parameter is not contiguous float32"),
        (4, lambda t: spread(t, 0), "a parameter is not contiguous float32"),
        (5, lambda t: t.double(), "neither float32, bfloat16 nor float16"),
    ],
)
def test_what_it_cannot_read_it_refuses(
    library: ctypes.CDLL, position: int, change: Callable[[Tensor], Tensor], why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    values = map_inputs(2, 4, 6, 16, 2)
    values[position] = change(values[position])
    assert ss2d(library, values) is None
    assert why in capfd.readouterr().err


def test_it_refuses_to_keep_states(library: ctypes.CDLL, capfd: pytest.CaptureFixture[str]) -> None:
    assert ss2d(library, map_inputs(1, 4, 6, 16, 1), save=1) is None
    assert "not called as in inference" in capfd.readouterr().err


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_sequences(library: ctypes.CDLL, n: int, dtype: torch.dtype, channels_last: bool) -> None:
    u, delta, A, B, C, D, bias = inputs(2, 2, 19, n, 70)
    u, delta, B, C = (t.to(dtype) for t in (u, delta, B, C))
    want = schema.selective_scan(u, delta, A, B, C, D, bias, True)
    if channels_last:
        u, delta, B, C = (t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in (u, delta, B, C))
    got = call(library, "selective_scan", u, delta, A, B, C, [D], [bias], 1, 0)
    assert got is not None
    assert torch.equal(got, want)


def test_the_library_lies_beside_the_kernels() -> None:
    library, loaded = kernel_library(), native.library_path()
    assert library is not None
    assert loaded is not None
    assert library.parent == loaded.parent
