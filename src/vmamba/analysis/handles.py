"""What other counters of operations need to count a scan: a table for fvcore and one for ptflops.

Both count one for a multiply-add; with these the scan has its 9n + 1 operations, as in upstream's published figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from vmamba.flops import FORMULAS, Formula


def fvcore_handles() -> dict[str, Callable[[Sequence[Any], Sequence[Any]], int]]:
    """For ``FlopCountAnalysis(model, images).set_op_handle(**fvcore_handles())``."""

    def handle_of(formula: Formula) -> Callable[[Sequence[Any], Sequence[Any]], int]:
        # What fvcore gives are values of a traced graph, which know their shapes; None and numbers have none.
        return lambda inputs, outputs: formula(*(_sizes(value.type()) for value in inputs)).macs

    return {f"vmamba::{operator.__name__}": handle_of(formula) for operator, formula in _forward_formulas().items()}


def ptflops_hooks() -> dict[Any, Callable[[Sequence[Any], Sequence[Any]], int]]:
    """For ``get_model_complexity_info(…, backend="aten", custom_modules_hooks=ptflops_hooks())``."""

    def hook_of(formula: Formula) -> Callable[[Sequence[Any], Sequence[Any]], int]:
        return lambda inputs, outputs: formula(*(t.shape if isinstance(t, Tensor) else t for t in inputs)).macs

    return {operator: hook_of(formula) for operator, formula in FORMULAS.items()}


def _forward_formulas() -> dict[Any, Formula]:
    return {operator: formula for operator, formula in FORMULAS.items() if not operator.__name__.endswith("_backward")}


def _sizes(kind: Any) -> Sequence[int] | None:
    sizes: Sequence[int] | None = kind.sizes() if kind.kind() == "TensorType" else None
    return sizes
