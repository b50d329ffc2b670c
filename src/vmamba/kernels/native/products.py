"""Products for inference on a CPU with the weight laid out beforehand: a linear layer's, and the two of an MLP.

Each is one compiled call (``csrc/product.cpp``) that does on its way what would be passes over memory of their own: the
layer norm of what goes in, bias, activation and residual. Sums are float32; the factors float32, or bfloat16 where the
CPU multiplies those. There are no gradients.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from vmamba.errors import BackendError, ConfigError
from vmamba.kernels.native import library
from vmamba.kernels.native.library import KernelCall
from vmamba.kernels.native.program import Calls
from vmamba.kernels.native.structs import ACTIVATION_CODES, DTYPE_CODES, Activation, absent, pointer, struct, tensor

_UNIT = 32  # widths are filled up to this, on every instruction set
_BLOCK_ROWS = 112  # at most, of one task; a multiple of all tiles' heights
_TILE_ROWS = 14  # of the widest instruction set


def obstacle(dtype: torch.dtype) -> str:
    """Why there are no packed products in ``dtype`` here, or an empty string."""
    if dtype not in (torch.float32, torch.bfloat16):
        return f"there are none for {dtype}"
    if (why := library.obstacle()) is not None:
        return str(why)
    if dtype == torch.bfloat16 and not library.multiplies_bfloat16():
        return f"the instruction set {library.isa()!r} does not multiply bfloat16 on this CPU"
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
        self.isa = library.isa()
        dense = weight.detach().to("cpu", torch.float32).contiguous()
        with torch.inference_mode(False):  # as a model is made in inference mode, and used outside
            self.panels = torch.empty(rounded(self.inputs) * rounded(self.outputs), dtype=dtype, device="cpu")
            self.bias = torch.zeros(rounded(self.outputs), dtype=torch.float32, device="cpu")
        if bias is not None:
            self.bias[: self.outputs] = bias.detach()
        args = struct(
            "PackMatrixArgs",
            weight=dense.data_ptr(),
            panels=self.panels.data_ptr(),
            in_=self.inputs,
            out=self.outputs,
            dtype=DTYPE_CODES[dtype],
        )
        library.call("pack_matrix", args)
        self.tensors = (self.panels, self.bias)
        self.arg = struct(
            "PackedMatrix",
            panels=self.panels.data_ptr(),
            bias=self.bias.data_ptr(),
            in_=self.inputs,
            out=self.outputs,
            dtype=DTYPE_CODES[dtype],
        )

    def __deepcopy__(self, memo: dict[int, object]) -> PackedMatrix:
        return self  # never changed, and holds its own memory's addresses

    def __reduce__(self) -> NoReturn:
        raise ConfigError("packed weights fit this machine only; save the model that they were made from")

    def __repr__(self) -> str:
        return f"PackedMatrix({self.inputs}, {self.outputs}, {self.dtype}, {self.isa})"


def packed_linear(
    calls: Calls,
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
        calls: where the call goes.
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
    sharing, memory = share_rows(calls, rows.shape[0], [matrix.inputs])
    args = struct(
        "LinearArgs",
        in_=_inputs(rows, norm_eps, gate),
        matrix=matrix.arg,
        activation=ACTIVATION_CODES[activation],
        out=_outputs(y, added),
        sharing=sharing,
    )
    keep = (rows, added, y, memory, *(gate or ()), *matrix.tensors)
    calls.add(KernelCall("packed_linear", args, keep, matrix.isa))
    return y


def packed_mlp(
    calls: Calls,
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
    sharing, memory = share_rows(calls, count, [first.inputs, second.inputs])
    # Where several tasks share a block's rows, each needs the others' hidden values.
    hidden = calls.buffer("hidden", [count * rounded(second.inputs)]) if sharing.column_parts > 1 else None
    args = struct(
        "MlpArgs",
        in_=_inputs(rows, norm_eps),
        first=first.arg,
        activation=ACTIVATION_CODES[activation],
        second=second.arg,
        out=_outputs(y, added),
        sharing=sharing,
        hidden=pointer(hidden),
    )
    keep = (rows, added, y, memory, hidden, *first.tensors, *second.tensors)
    calls.add(KernelCall("packed_mlp", args, keep, first.isa))
    return y


def rounded(width: int) -> int:
    """A width as the kernels' memory has it, filled up."""
    return -(-width // _UNIT) * _UNIT


def affine_rows(weight: Tensor, bias: Tensor) -> Tensor:
    """What a norm multiplies with and adds, each ``(c)``, as the kernels take them: ``(2, rounded(c))``, float32."""
    with torch.inference_mode(False):
        rows = torch.zeros(2, rounded(len(weight)), dtype=torch.float32, device="cpu")
    rows[0, : len(weight)], rows[1, : len(bias)] = weight.detach(), bias.detach()
    return rows


def _rows(x: Tensor) -> Tensor:
    """``(rows, c)`` with dense rows; a view where the memory allows it."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def _inputs(rows: Tensor, norm_eps: float | None, gate: tuple[Tensor, Tensor] | None = None) -> ctypes.Structure:
    values, affine = gate or (None, (None, None))
    weight, bias = affine
    return struct(
        "ProductInputs",
        rows=rows.shape[0],
        x=tensor(rows),
        norm=norm_eps is not None,
        eps=norm_eps or 0.0,
        gate=struct(
            "Gate",
            values=pointer(values),
            stride=0 if values is None else values.shape[-1],
            weight=pointer(weight),
            bias=pointer(bias),
        ),
    )


def _outputs(y: Tensor, residual: Tensor | None) -> ctypes.Structure:
    added = absent() if residual is None else tensor(residual)
    return struct("ProductOutputs", residual=added, y=tensor(y.view(-1, y.shape[-1])))


def share_rows(
    calls: Calls, rows: int, widths: Sequence[int], *, more: int = 0, may_cut: bool = True
) -> tuple[ctypes.Structure, Tensor]:
    """How threads share a product's rows, and the workspace, which must outlive the call.

    Args:
        calls: where the workspace comes from.
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
    memory = calls.buffer("workspace", [threads * thread_floats])
    sharing = struct(
        "ProductSharing",
        threads=threads,
        block_rows=block_rows,
        column_parts=parts,
        workspace=memory.data_ptr(),
        thread_floats=thread_floats,
    )
    return sharing, memory
