# mypy: ignore-errors
# onnxscript's functions are its own language; their annotations are not Python's types.
"""What the operator of `vmamba.export.row_scan` becomes in ONNX: its standard operator Scan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import torch
from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op

import vmamba.export.row_scan  # noqa: F401 — defines the operator

#: The first with Gelu as one operator. torch's exporter makes version 18 and converts it.
OPSET = 20

_ZERO = onnx.helper.make_tensor("zero", onnx.TensorProto.FLOAT, [1], [0.0])
_ONE = onnx.helper.make_tensor("one", onnx.TensorProto.FLOAT, [1], [1.0])


# onnxscript reads the source of this function. The body says its types, which OpenVINO does not infer.


@script(default_opset=op)
def _scan_pieces(
    decay: FLOAT[...], drive: FLOAT[...], C: FLOAT[...]
) -> tuple[FLOAT[...], FLOAT[...], FLOAT[...], FLOAT[...]]:
    item = op.Shape(drive, start=1)

    @graph()
    def body(state: FLOAT[...], product: FLOAT[...], a: FLOAT[...], x: FLOAT[...], c: FLOAT[...]):
        new_state = op.Add(op.Mul(a, state), x)
        new_product = op.Mul(a, product)
        return new_state, new_product, op.Mul(c, new_state), op.Mul(c, new_product)

    end, total, y, carried = op.Scan(
        op.ConstantOfShape(item, value=_ZERO),
        op.ConstantOfShape(item, value=_ONE),
        decay,
        drive,
        C,
        body=body,
        num_scan_inputs=3,
    )
    return y, carried, end, total


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The table that ``torch.onnx.export`` takes as ``custom_translation_table``."""
    return {torch.ops.vmamba.scan_pieces.default: _scan_pieces}
