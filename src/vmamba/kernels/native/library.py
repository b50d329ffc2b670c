"""Finds and loads the compiled kernels (``csrc/``), and says which instruction set they run with.

The library is plain C behind ctypes: it knows neither torch nor Python, so one build serves every version of both.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vmamba.errors import BackendError
from vmamba.kernels.interface import Obstacle

ENVIRONMENT_VARIABLE = "VMAMBA_CPU_ISA"
#: A library to load in place of the installed one, such as a build with sanitizers.
LIBRARY_VARIABLE = "VMAMBA_NATIVE_LIBRARY"
FILE_NAME = "libvmamba_native" + {"darwin": ".so", "win32": ".dll"}.get(sys.platform, ".so")


def mend(root: Path) -> str:
    """How to get the compiled kernels; ``root`` is where the source tree's root would be."""
    if (root / "tools" / "build_native.sh").exists():
        return "run `tools/build_native.sh`"
    reinstall = "pip install --force-reinstall --no-deps --no-cache-dir"
    return (
        "install a C++ compiler (g++ or clang++), then reinstall past pip's cached wheel: "
        f"`{reinstall} --no-binary vmamba vmamba`, or in a clone `{reinstall} .`"
    )


MEND = mend(Path(__file__).parents[4])
_TORCH_LIB = Path(torch.__file__).parent / "lib"


def library_path() -> Path | None:
    """The library that ``VMAMBA_NATIVE_LIBRARY`` names, else the newest beside this package, else None."""
    if given := os.environ.get(LIBRARY_VARIABLE):
        return Path(given)
    # An editable install has two directories, its own and the source tree's, and may have a library in each.
    paths = (Path(directory) / "_native" / FILE_NAME for directory in sys.modules["vmamba"].__path__)
    return max((path for path in paths if path.exists()), key=lambda path: path.stat().st_mtime, default=None)


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, Obstacle | None]:
    path = library_path()
    if path is None:
        return None, Obstacle(
            "the compiled CPU kernels are missing (vmamba was installed where no fitting C++ compiler was found)", MEND
        )
    try:
        found = ctypes.CDLL(str(path))
    except OSError as error:  # built for another machine or C library
        if os.environ.get(LIBRARY_VARIABLE):
            raise BackendError(
                f"{LIBRARY_VARIABLE}={str(path)!r} does not load ({error}); give the path of a built {FILE_NAME}, "
                "or unset it to use the installed one"
            ) from error
        return None, Obstacle(f"the compiled CPU kernels do not load ({error})", MEND)
    if run_team := _run_team():
        found.vmamba_use_threads(run_team)
    return found, None


def uses_torchs_threads() -> bool:
    """Whether the kernels found the OpenMP runtime that torch has loaded; otherwise they run on one thread."""
    return _run_team() is not None


def _run_team() -> ctypes.c_void_p | None:
    """``GOMP_parallel`` of the OpenMP runtime that torch has loaded, or None.

    Wheels of torch carry the runtime under changing names, so it is looked for among what is already loaded.
    """
    shipped = sorted(path for pattern in ("libgomp*", "libiomp*", "libomp*") for path in _TORCH_LIB.glob(pattern))
    for name in (None, *map(str, shipped), "libgomp.so.1", "libiomp5.so", "libomp.so"):
        try:
            runtime = ctypes.CDLL(name, mode=getattr(os, "RTLD_NOLOAD", 0) | getattr(os, "RTLD_LAZY", 0))
            return ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p)
        except (OSError, AttributeError):
            continue
    return None


def obstacle() -> Obstacle | None:
    """What keeps the compiled kernels from running here, or None.

    Raises:
        BackendError: ``VMAMBA_CPU_ISA`` asks for an instruction set that does not exist or that is not here, or
            ``VMAMBA_NATIVE_LIBRARY`` for a library that does not load.
    """
    found, why = _load()
    if found is not None:
        isa()
    return why


def loaded() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        BackendError: it is missing or does not load.
    """
    found, why = _load()
    if found is None:
        raise BackendError(f"{why}")
    return found


@functools.cache
def isas() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Every instruction set's name in the library's numbering, and the usable ones here, best first."""
    lib = loaded()
    lib.vmamba_isa_name.restype = ctypes.c_char_p
    names = tuple(lib.vmamba_isa_name(i).decode() for i in range(lib.vmamba_isa_count()))
    usable = tuple(name for i, name in reversed(list(enumerate(names))) if lib.vmamba_isa_usable(i))
    return names, usable


_forced: str | None = None


def isa() -> str:
    """The instruction set that calls run with now: the one forced, else the environment's, else the best here.

    Raises:
        BackendError: the one asked for does not exist or is not here.
    """
    return _forced or _from_environment()


@functools.cache
def _from_environment() -> str:
    asked = os.environ.get(ENVIRONMENT_VARIABLE)
    return check_isa(asked, ENVIRONMENT_VARIABLE) if asked else isas()[1][0]


def check_isa(name: str, source: str) -> str:
    """Return ``name`` if it can run here; raise `BackendError` that names the legal ones and those that are here."""
    names, usable = isas()
    if name in usable:
        return name
    here = f"this CPU and build have {', '.join(usable)}"
    if name in names:
        raise BackendError(f"{source}={name!r} cannot run here; {here}")
    raise BackendError(f"{source}={name!r} is not an instruction set; legal values are {', '.join(names)}; {here}")


@contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """Run the kernels called inside the ``with`` block with one instruction set (process-wide; for tests).

    Raises:
        BackendError: ``name`` does not exist or is not here.
    """
    global _forced
    before, _forced = _forced, check_isa(name, "forced_isa")
    try:
        yield
    finally:
        _forced = before


def multiplies_bfloat16() -> bool:
    """Whether products of bfloat16 can run with the instruction set that calls run with now."""
    return bool(loaded().vmamba_has_bfloat16_products(isas()[0].index(isa())))


class KernelCall(NamedTuple):
    """A call of a kernel that can be made later, or again.

    Attributes:
        name: of the kernel.
        args: what it takes.
        keep: tensors whose addresses are in ``args``.
        isa: the instruction set that data was laid out for, or None for the one that calls run with.
    """

    name: str
    args: ctypes.Structure
    keep: tuple[torch.Tensor | None, ...]
    isa: str | None = None


def call(name: str, args: ctypes.Structure, isa_name: str | None = None) -> str:
    """Run kernel ``vmamba_<name>`` on ``args`` without the GIL; return the instruction set that it ran with.

    Args:
        isa_name: one of the usable ones, for data that was laid out for it; None for the one that calls run with now.

    Raises:
        BackendError: the library was built from other sources than this package's.
    """
    chosen = isa_name or isa()
    if kernel(name)(ctypes.byref(args), ctypes.c_int64(ctypes.sizeof(args)), isas()[0].index(chosen)) != 0:
        raise other_sources()
    return chosen


def run(prepared: KernelCall) -> str:
    """Make the prepared call; see `call`."""
    return call(prepared.name, prepared.args, prepared.isa)


def kernel(name: str) -> Any:
    """The kernel as a function of ctypes.

    Raises:
        BackendError: the library was built from other sources than this package's.
    """
    found = getattr(loaded(), f"vmamba_{name}", None)  # an older library lacks the newer kernels
    if found is None:
        raise other_sources()
    return found


def other_sources(difference: str = "") -> BackendError:
    """What to raise where a kernel is missing or takes other arguments than it is given."""
    seen = f" ({difference})" if difference else ""
    return BackendError(f"the compiled CPU kernels were built from other sources than this package's{seen}: {MEND}")
