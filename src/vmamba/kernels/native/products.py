"""Products for inference on a CPU with the weight laid out beforehand: a linear layer's, and the two of an MLP.

Each is one compiled call (``csrc/product.cpp``) that does on its way what would be passes over memory of their own: the
layer norm of what goes in, bias, activation and residual. Sums are float32; the factors float32, or bfloat16 where the
CPU multiplies those. There are no gradients.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Literal, NoReturn

import torch
from torch import Tensor

from vmamba.errors import BackendError, ConfigError
from vmamba.kernels.native import library as native
from vmamba.kernels.native.library import DTYPE_CODES, Step, TensorArg
from vmamba.kernels.native.program import Steps

Activation = Literal["none", "gelu", "silu"]
ACTIVATIONS: tuple[Activation, ...] = ("none", "gelu", "silu")  # the kernels' numbering

_UNIT = 32  # widths are filled up to this, on every instruction set
_BLOCK_ROWS = 112  # at most, of one task; a multiple of all tiles' heights
_TILE_ROWS = 14  # of the widest instruction set


class MatrixArg(ctypes.Structure):
    """``vmamba::PackedMatrix``."""

    _fields_ = (
        ("panels", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("dtype", ctypes.c_int64),
    )


class _PackArgs(ctypes.Structure):  # vmamba::PackMatrixArgs
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("panels", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("dtype", ctypes.c_int64),
    )


class _Inputs(ctypes.Structure):  # vmamba::ProductInputs
    _fields_ = (
        ("rows", ctypes.c_int64),
        ("x", TensorArg),
        ("norm", ctypes.c_int64),
        ("eps", ctypes.c_double),
        ("gate", ctypes.c_void_p),  # vmamba::Gate, from here
        ("gate_stride", ctypes.c_int64),
        ("gate_weight", ctypes.c_void_p),
        ("gate_bias", ctypes.c_void_p),
    )


class _Outputs(ctypes.Structure):  # vmamba::ProductOutputs
    _fields_ = (("residual", TensorArg), ("y", TensorArg))


class SharingArg(ctypes.Structure):
    """``vmamba::ProductSharing``."""

    _fields_ = (
        ("threads", ctypes.c_int64),
        ("block_rows", ctypes.c_int64),
        ("column_parts", ctypes.c_int64),
        ("workspace", ctypes.c_void_p),
        ("thread_floats", ctypes.c_int64),
    )


class _LinearArgs(ctypes.Structure):  # vmamba::LinearArgs
    _fields_ = (
        ("inputs", _Inputs),
        ("matrix", MatrixArg),
        ("activation", ctypes.c_int64),
        ("outputs", _Outputs),
        ("sharing", SharingArg),
    )


class _MlpArgs(ctypes.Structure):  # vmamba::MlpArgs
    _fields_ = (
        ("inputs", _Inputs),
        ("first", MatrixArg),
        ("activation", ctypes.c_int64),
        ("second", MatrixArg),
        ("outputs", _Outputs),
        ("sharing", SharingArg),
        ("hidden", ctypes.c_void_p),
    )


def obstacle(dtype: torch.dtype) -> str:
    """Why there are no packed products in ``dtype`` here, or an empty string."""
    if dtype not in (torch.float32, torch.bfloat16):
        return f"there are none for {dtype}"
    if (why := native.obstacle()) is not None:
        return str(why)
    if dtype == torch.bfloat16 and not native.multiplies_bfloat16():
        return f"the instruction set {native.isa()!r} does not multiply bfloat16 on this CPU"
    return ""


class PackedMatrix:
    """A weight and a bias as the kernels take them.

    Args:
        weight: ``(c_out, c_in)``, any floating-point dtype.
        bias: ``(c_out)`` or None.
        dtype: what is multiplied: float32 or bfloat16; the bias stays float32.

    Raises:
        BackendError: there are no packed products in ``dtype`` here, see `obstacle`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        if why := obstacle(dtype):
            raise BackendError(f"packed products cannot run: {why}")
        self.outputs, self.inputs = weight.shape
        self.dtype = dtype
        # The layout is the instruction set's own.
        self.isa = native.isa()
        dense = weight.detach().to("cpu", torch.float32).contiguous()
        self.panels = torch.empty(rounded(self.inputs) * rounded(self.outputs), dtype=dtype)
        self.bias = torch.zeros(rounded(self.outputs))
        if bias is not None:
            self.bias[: self.outputs] = bias.detach()
        code = DTYPE_CODES[dtype]
        native.call("pack_matrix", _PackArgs(dense.data_ptr(), self.panels.data_ptr(), self.inputs, self.outputs, code))
        self.tensors = (self.panels, self.bias)
        self.arg = MatrixArg(self.panels.data_ptr(), self.bias.data_ptr(), self.inputs, self.outputs, code)

    def __deepcopy__(self, memo: dict[int, object]) -> PackedMatrix:
        return self  # never changed, and holds its own memory's addresses

    def __reduce__(self) -> NoReturn:
        raise ConfigError("packed weights fit this machine only; save the model that they were made from")

    def __repr__(self) -> str:
        return f"PackedMatrix({self.inputs}, {self.outputs}, {self.dtype}, {self.isa})"


def packed_linear(
    steps: Steps,
    x: Tensor,
    matrix: PackedMatrix,
    y: Tensor,
    *,
    norm_eps: float | None = None,
    gate: tuple[Tensor, Tensor] | None = None,
    activation: Activation = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """``y = activation(gate(norm(x)) · weightᵀ + bias) + residual`` over the last axis.

    Args:
        steps: where the call goes.
        x: ``(…, c_in)``; float32, bfloat16 or float16, on the CPU.
        matrix: weight and bias.
        y: ``(…, c_out)``, contiguous, of any of these dtypes.
        norm_eps: ``eps`` of a layer norm over ``c_in``, without weight and bias, that goes before; None for none.
        gate: ``(…, c_in)``, contiguous float32, to be multiplied with what goes in after a weight and a bias, see
            `affine_rows`. None for none.
        activation: ``"none"``, ``"gelu"`` (exact) or ``"silu"``.
        residual: ``(…, c_out)`` in the dtype of ``y``, or None; may be ``y`` itself.

    Returns:
        ``y``.
    """
    if y.numel() == 0:
        return y
    rows, added = _rows(x), None if residual is None else _rows(residual)
    sharing, memory = share_rows(steps, rows.shape[0], [matrix.inputs])
    inputs = _inputs(rows, norm_eps)
    if gate is not None:
        values, affine = gate
        inputs.gate, inputs.gate_stride = values.data_ptr(), values.shape[-1]
        inputs.gate_weight, inputs.gate_bias = (row.data_ptr() for row in affine)
    args = _LinearArgs(inputs, matrix.arg, ACTIVATIONS.index(activation), _outputs(y, added), sharing)
    steps.add(Step("packed_linear", args, (rows, added, y, memory, *(gate or ()), *matrix.tensors), matrix.isa))
    return y


def packed_mlp(
    steps: Steps,
    x: Tensor,
    first: PackedMatrix,
    second: PackedMatrix,
    y: Tensor,
    *,
    norm_eps: float | None = None,
    activation: Activation = "gelu",
    residual: Tensor | None = None,
) -> Tensor:
    """``y = activation(norm(x) · weight₁ᵀ + bias₁) · weight₂ᵀ + bias₂ + residual``; arguments as of `packed_linear`.

    ``y`` may be ``x`` itself.
    """
    if y.numel() == 0:
        return y
    rows, added = _rows(x), None if residual is None else _rows(residual)
    count = rows.shape[0]
    sharing, memory = share_rows(steps, count, [first.inputs, second.inputs])
    # Where several tasks share a block's rows, each needs the others' hidden values.
    hidden = steps.buffer("hidden", [count * rounded(second.inputs)]) if sharing.column_parts > 1 else None
    args = _MlpArgs(
        _inputs(rows, norm_eps),
        first.arg,
        ACTIVATIONS.index(activation),
        second.arg,
        _outputs(y, added),
        sharing,
        None if hidden is None else hidden.data_ptr(),
    )
    steps.add(Step("packed_mlp", args, (rows, added, y, memory, hidden, *first.tensors, *second.tensors), first.isa))
    return y


def rounded(width: int) -> int:
    """A width as the kernels' memory has it, filled up."""
    return -(-width // _UNIT) * _UNIT


def affine_rows(weight: Tensor, bias: Tensor) -> Tensor:
    """What a norm multiplies with and adds, each ``(c)``, as the kernels take them: ``(2, rounded(c))``, float32."""
    rows = torch.zeros(2, rounded(len(weight)))
    rows[0, : len(weight)], rows[1, : len(bias)] = weight.detach(), bias.detach()
    return rows


def _rows(x: Tensor) -> Tensor:
    """``(rows, c)`` with dense rows; a view where the memory allows it."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def _inputs(rows: Tensor, norm_eps: float | None) -> _Inputs:
    norm = norm_eps is not None
    return _Inputs(rows.shape[0], native.tensor_arg(rows), norm, norm_eps if norm else 0.0)


def _outputs(y: Tensor, residual: Tensor | None) -> _Outputs:
    return _Outputs(
        TensorArg() if residual is None else native.tensor_arg(residual), native.tensor_arg(y.view(-1, y.shape[-1]))
    )


def share_rows(
    steps: Steps, rows: int, widths: Sequence[int], *, more: int = 0, may_cut: bool = True
) -> tuple[SharingArg, Tensor]:
    """How threads share a product's rows, and the workspace, which must outlive the call.

    Args:
        steps: where the workspace comes from.
        rows: how many.
        widths: of what a thread keeps of each of its rows.
        more: floats that it needs besides.
        may_cut: whether several tasks may share a row, each with some of its outputs.
    """
    threads = torch.get_num_threads()
    blocks, parts = -(-rows // _BLOCK_ROWS), 1
    if rows >= 2 * _TILE_ROWS * threads or not may_cut:
        # As many for each thread, of two tiles at least.
        blocks = min(-(-blocks // threads) * threads, max(blocks, rows // (2 * _TILE_ROWS)))
    else:
        parts = -(-threads // blocks)
    block_rows = -(-rows // blocks)
    thread_floats = block_rows * sum(map(rounded, widths)) + more
    memory = steps.buffer("workspace", [threads * thread_floats])
    return SharingArg(threads, block_rows, parts, memory.data_ptr(), thread_floats), memory
