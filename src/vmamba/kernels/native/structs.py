"""The structs that the compiled kernels take, built from the declarations that the library itself carries.

``csrc/entry/struct.h`` keeps each struct's declaration as text. So no field is listed twice, and its place in memory is
the compiler's own. A call names every field; one that names other fields than the library has is refused.
"""

from __future__ import annotations

import ctypes
import re
import threading
from typing import Any, Literal

import torch

from vmamba.kernels.native import library

#: How the kernels call an element type.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
Activation = Literal["none", "gelu", "silu"]
#: How they call an activation.
ACTIVATION_CODES: dict[Activation, int] = {"none": 0, "gelu": 1, "silu": 2}

_SCALARS: dict[str, Any] = {"int64_t": ctypes.c_int64, "double": ctypes.c_double}
_DECLARATOR = re.compile(r"(?P<pointer>\*?)\s*(?P<name>\w+)\s*(?:\[(?P<count>\d+)\])?")


class _Described(ctypes.Structure):
    """A row of ``vmamba_structs``."""

    _fields_ = (("name", ctypes.c_char_p), ("declaration", ctypes.c_char_p), ("size", ctypes.c_int64))


def struct(name: str, /, **values: Any) -> ctypes.Structure:
    """The struct ``vmamba::<name>`` with all of its fields; one called ``in`` is given as ``in_``.

    Raises:
        BackendError: the library is missing, or was built from other sources: it has no such struct, or other fields.
    """
    kind, names = _types.get(name) or _known(name)
    if values.keys() != names:
        raise library.other_sources(f"{name} differs in {', '.join(sorted(values.keys() ^ names))}")
    made: ctypes.Structure = kind(**values)
    return made


def tensor(t: torch.Tensor) -> ctypes.Structure:
    """``t`` as the kernels see it: pointer, element type, strides in elements; it must outlive the call."""
    kind, _ = _types.get("Tensor") or _known("Tensor")
    return kind(data=t.data_ptr(), dtype=DTYPE_CODES[t.dtype], stride=t.stride())


def absent() -> ctypes.Structure:
    """A tensor that is not there."""
    return struct("Tensor", data=None, dtype=0, stride=())


def pointer(t: torch.Tensor | None) -> int | None:
    """The address of a tensor's data, which must outlive the call."""
    return None if t is None else t.data_ptr()


_types: dict[str, tuple[type[ctypes.Structure], frozenset[str]]] = {}  # filled at the first use
_lock = threading.Lock()


def _known(name: str) -> tuple[type[ctypes.Structure], frozenset[str]]:
    """A struct and its fields' names, when there has been none of its kind before."""
    with _lock:  # two threads must not make two types of one struct
        if not _types:
            _types.update(_struct_types())
    if name not in _types:
        raise library.other_sources(f"there is no {name}")
    return _types[name]


def _struct_types() -> dict[str, tuple[type[ctypes.Structure], frozenset[str]]]:
    """Every struct of the library as a type, with its fields' names."""
    listing = library.kernel("structs")
    listing.restype = ctypes.POINTER(_Described)
    rows = listing()
    types: dict[str, tuple[type[ctypes.Structure], frozenset[str]]] = {}
    for i in range(1 << 16):
        name = rows[i].name
        if name is None:
            break
        fields = _fields(rows[i].declaration.decode(), types)
        made = type(name.decode(), (ctypes.Structure,), {"_fields_": fields})
        if ctypes.sizeof(made) != rows[i].size:
            raise library.other_sources(f"{made.__name__} has {rows[i].size} bytes, not {ctypes.sizeof(made)}")
        types[made.__name__] = made, frozenset(field for field, _ in fields)
    return types


def _fields(declaration: str, known: dict[str, tuple[type[ctypes.Structure], frozenset[str]]]) -> list[tuple[str, Any]]:
    """``"int64_t a, b; const float* x;"`` as ctypes' ``_fields_``."""
    fields: list[tuple[str, Any]] = []
    for statement in filter(None, map(str.strip, declaration.split(";"))):
        base, declarators = statement.removeprefix("const ").split(None, 1) if " " in statement else (statement, "")
        if base.endswith("*"):
            base, declarators = base[:-1], f"*{declarators}"
        for text in declarators.split(","):
            found = _DECLARATOR.fullmatch(text.strip())
            if found is None:
                raise library.other_sources(f"{statement!r} is no declaration that Python can read")
            kind = ctypes.c_void_p if found["pointer"] else _SCALARS.get(base) or known[base][0]
            name = f"{found['name']}_" if found["name"] == "in" else found["name"]
            fields.append((name, kind * int(found["count"]) if found["count"] else kind))
    return fields
