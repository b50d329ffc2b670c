"""The compiled library: where it is found, what it runs with, what it says when it cannot, and its vector functions."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import vmamba
from vmamba.errors import BackendError
from vmamba.kernels.interface import recorded_runs
from vmamba.kernels.native import library as native
from vmamba.kernels.native.structs import struct
from vmamba.scan import selective_scan

pytestmark = pytest.mark.skipif(native.library_path() is None, reason="the native kernels are not built")

ISAS = native.isas()[1] if native.library_path() else ()


def tiny_inputs() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    u, delta = torch.randn(2, 1, 6, 40)
    B, C = torch.randn(2, 1, 2, 3, 40)
    return u, delta, -torch.rand(6, 3), B, C


SETUP = """
import sys
from pathlib import Path
import torch, vmamba
from vmamba.scan import selective_scan
from vmamba.kernels.native import library as native
from vmamba.kernels.native.structs import struct
from vmamba.kernels.interface import recorded_runs

torch.manual_seed(0)
u, delta = torch.randn(2, 1, 48, 40)
B, C = torch.randn(2, 1, 2, 3, 40)
args = (u, delta, -torch.rand(48, 3), B, C)

def thread_count():
    return len(list(Path("/proc/self/task").iterdir()))

def openmp_runtimes():
    mapped = {Path(line.split()[-1]) for line in open("/proc/self/maps")}
    return sorted(path.name for path in mapped if "omp" in path.name and ".so" in path.name)
"""


def in_new_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(vmamba.__path__[0]).parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.run([sys.executable, "-c", SETUP + code], env=env, capture_output=True, text=True, check=False)


# ---- the vector functions ------------------------------------------------------------------------------------------


def softplus(x: np.ndarray) -> np.ndarray:
    return np.where(x > 20, x, np.logaddexp(0, x))


def sigmoid(x: np.ndarray) -> np.ndarray:
    z = np.exp(-np.abs(x))
    return np.where(x < 0, z, 1) / (1 + z)


FUNCTIONS = {
    "exp": (0, np.exp),
    "exp2": (1, np.exp2),
    "log1p_unit": (2, np.log1p),
    "softplus": (3, softplus),
    "sigmoid": (4, sigmoid),
}


def run_vecmath(isa: str, code: int, x: np.ndarray) -> np.ndarray:
    y = np.full_like(x, np.nan)
    with native.forced_isa(isa):
        assert (
            native.call("vecmath", struct("VecmathArgs", function=code, x=x.ctypes.data, y=y.ctypes.data, count=x.size))
            == isa
        )
    return y


def every_exponent(mantissas: int) -> np.ndarray:
    """Floats of every sign and exponent (zero, subnormals, infinity and NaN among them), and a dense middle."""
    rng = np.random.default_rng(0)
    mantissa = np.concatenate([[0, 1, (1 << 23) - 1], rng.integers(1 << 23, size=mantissas - 3)]).astype(np.uint32)
    bits = (np.arange(512, dtype=np.uint32)[:, None] << 23 | mantissa).ravel()
    return np.concatenate([bits.view(np.float32), rng.uniform(-104, 104, 200 * mantissas).astype(np.float32)])


def check_accuracy(isa: str, function: str, mantissas: int) -> None:
    code, exact = FUNCTIONS[function]
    x = every_exponent(mantissas)
    if function == "log1p_unit":
        x = x[(x >= 0) & (x <= 1)]
    with np.errstate(all="ignore"):
        want = exact(x.astype(np.float64))
        rounded = want.astype(np.float32)
    got = run_vecmath(isa, code, x)

    assert np.array_equal(np.isnan(got), np.isnan(x))
    finite = np.isfinite(rounded)
    assert np.array_equal(got[~finite & ~np.isnan(x)], rounded[~finite & ~np.isnan(x)])
    with np.errstate(over="ignore"):
        last_place = np.spacing(np.abs(rounded[finite])).astype(np.float64)
    error = np.abs(got[finite] - want[finite]) / last_place
    worst = error.argmax()
    assert error[worst] <= 2, f"{error[worst]:.2f} units in the last place at {x[finite][worst]!r}"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_vector_functions_are_accurate_to_two_units_in_the_last_place(isa: str, function: str) -> None:
    check_accuracy(isa, function, mantissas=512)


@pytest.mark.long
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_vector_functions_are_accurate_dense(isa: str, function: str) -> None:
    check_accuracy(isa, function, mantissas=16384)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("code", "dtype"), [(5, torch.bfloat16), (6, torch.float16)])
def test_rounding_to_16_bits_is_torchs(isa: str, code: int, dtype: torch.dtype) -> None:
    x = every_exponent(512)
    want = torch.from_numpy(x).to(dtype).float().numpy()
    np.testing.assert_array_equal(run_vecmath(isa, code, x), want)


# ---- instruction sets ----------------------------------------------------------------------------------------------


def test_portable_is_always_there_and_last() -> None:
    assert ISAS[-1] == "portable"


@pytest.mark.parametrize("isa", ISAS)
def test_forced_isa_is_the_one_that_runs(isa: str) -> None:
    with native.forced_isa(isa), recorded_runs() as runs:
        selective_scan(*tiny_inputs(), backend="oflex")
    assert [run.detail for run in runs] == [isa]
    assert native.isa() == ISAS[0]


def test_forcing_an_unknown_isa_names_the_legal_ones_and_those_here() -> None:
    with pytest.raises(BackendError) as caught, native.forced_isa("doesnotexist"):
        pass
    message = str(caught.value)
    assert "'doesnotexist'" in message
    assert "portable, neon, avx2, avx512" in message
    assert f"have {', '.join(ISAS)}" in message


def test_forcing_an_isa_that_the_cpu_lacks_says_what_it_has() -> None:
    missing = next(isa for isa in native.isas()[0] if isa not in ISAS)
    with (
        pytest.raises(BackendError, match=f"'{missing}' cannot run here; this CPU and build have {ISAS[0]}"),
        native.forced_isa(missing),
    ):
        pass


@pytest.mark.long
def test_environment_variable_forces_the_isa() -> None:
    code = "with recorded_runs() as runs: selective_scan(*args)\nprint(runs[0].backend, runs[0].detail)"
    assert in_new_process(code, VMAMBA_CPU_ISA="portable").stdout.split() == ["oflex", "portable"]


@pytest.mark.long
def test_bad_environment_variable_is_an_error_and_no_silent_fallback() -> None:
    done = in_new_process("selective_scan(*args)", VMAMBA_CPU_ISA="sse9")
    assert done.returncode != 0
    assert "BackendError: VMAMBA_CPU_ISA='sse9' is not an instruction set" in done.stderr


def test_library_that_lacks_a_kernel_is_an_error_with_the_mend() -> None:
    with pytest.raises(BackendError, match=r"built from other sources.*reinstall|built from other sources.*build"):
        native.call("kernel_of_tomorrow", struct("VecmathArgs", function=0, x=None, y=None, count=0))


# ---- threads -------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_threads_are_torchs_as_many_as_it_says_and_no_second_runtime_is_loaded() -> None:
    code = """
torch.set_num_threads(1)
selective_scan(*args, backend="oflex")
alone = thread_count()
torch.set_num_threads(3)
selective_scan(*args, backend="oflex")
team = thread_count()
torch.randn(1 << 20).exp()
print(team - alone, thread_count() - team, len(openmp_runtimes()), native.uses_torchs_threads())
"""
    assert in_new_process(code).stdout.split() == ["2", "0", "1", "True"]


# ---- a library that is missing or does not fit ---------------------------------------------------------------------


@pytest.fixture
def fresh_loader(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for cached in (native._load, native.isas, native._from_environment):
        cached.cache_clear()
    monkeypatch.delenv(native.LIBRARY_VARIABLE, raising=False)
    yield monkeypatch
    monkeypatch.undo()
    for cached in (native._load, native.isas, native._from_environment):
        cached.cache_clear()


def test_missing_library_is_an_obstacle_with_the_mend(fresh_loader: pytest.MonkeyPatch) -> None:
    fresh_loader.setattr(native, "library_path", lambda: None)
    with pytest.raises(BackendError, match="compiled CPU kernels are missing") as caught:
        selective_scan(*tiny_inputs(), backend="oflex")
    assert native.MEND[1:] in str(caught.value)
    with recorded_runs() as runs:
        selective_scan(*tiny_inputs(), backend=None)
    assert [run.backend for run in runs] == ["torch"]


def test_of_two_libraries_the_newer_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(native.LIBRARY_VARIABLE, raising=False)
    paths = [tmp_path / name / "_native" / native.FILE_NAME for name in ("installed", "sources")]
    monkeypatch.setattr(vmamba, "__path__", [str(path.parents[1]) for path in paths])
    assert native.library_path() is None
    for age, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1000 - age, 1000 - age))
    assert native.library_path() == paths[0]
    os.utime(paths[1], (2000, 2000))
    assert native.library_path() == paths[1]


def test_mend_gets_past_pips_cached_wheel_or_builds_the_working_tree(tmp_path: Path) -> None:
    assert "--force-reinstall --no-deps --no-cache-dir --no-binary vmamba vmamba" in native.mend(tmp_path)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "build_native.sh").touch()
    assert native.mend(tmp_path) == "run `tools/build_native.sh`"


def test_broken_library_is_an_obstacle_with_the_reason(fresh_loader: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / native.FILE_NAME
    broken.write_bytes(b"not a library")
    fresh_loader.setattr(native, "library_path", lambda: broken)
    with pytest.raises(BackendError, match=r"do not load .*libvmamba_native"):
        selective_scan(*tiny_inputs(), backend="oflex")


def test_another_library_can_be_named(fresh_loader: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed = native.library_path()
    assert installed is not None
    copy = tmp_path / "copy.so"
    copy.write_bytes(installed.read_bytes())
    fresh_loader.setenv(native.LIBRARY_VARIABLE, str(copy))
    selective_scan(*tiny_inputs(), backend="oflex")
    assert native.loaded()._name == str(copy)


@pytest.mark.parametrize("backend", ["oflex", None])
def test_a_named_library_that_does_not_load_is_an_error_and_no_silent_fallback(
    fresh_loader: pytest.MonkeyPatch, tmp_path: Path, backend: str | None
) -> None:
    fresh_loader.setenv(native.LIBRARY_VARIABLE, str(tmp_path / "none.so"))
    with pytest.raises(BackendError, match=r"VMAMBA_NATIVE_LIBRARY='.*none\.so' does not load .* or unset it"):
        selective_scan(*tiny_inputs(), backend=backend)


def test_library_of_other_sources_is_refused() -> None:
    class OtherLayout(ctypes.Structure):
        _fields_ = (("more", ctypes.c_int64 * 5),)

    with pytest.raises(BackendError, match="built from other sources"):
        native.call("vecmath", OtherLayout())
