"""What the operators of this package cost, told to `torch.utils.flop_counter`, so that anybody's counter is right.

That module imports Triton, which takes half a second, so ``import vmamba`` does not load it: who else does gets the
formulas with it.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple


class Work(NamedTuple):
    """What one call of an operator computes.

    Attributes:
        products: multiply-adds of products and convolutions.
        operations: other operations that are counted, each as one.
    """

    products: int
    operations: int = 0

    @property
    def flops(self) -> int:
        """Floating-point operations: two for a multiply-add."""
        return 2 * self.products + self.operations

    @property
    def macs(self) -> int:
        """As papers count, VMamba's among them: one for a multiply-add, and the other operations as they are."""
        return self.products + self.operations

    def times(self, factor: int) -> Work:
        """So many such calls."""
        return Work(factor * self.products, factor * self.operations)


#: From an operator's arguments, shapes in place of tensors, to what the call computes.
Formula = Callable[..., Work]

_COUNTER = "torch.utils.flop_counter"

#: Operators (``torch.ops.vmamba.NAME``) and their formulas.
FORMULAS: dict[Any, Formula] = {}


def register(operator: Any, formula: Formula) -> None:
    """Tell torch's counters what an operator costs.

    Args:
        operator: ``torch.ops.NAMESPACE.NAME``.
        formula: takes the operator's arguments.
    """
    FORMULAS[operator] = formula
    if (counter := sys.modules.get(_COUNTER)) is not None:
        _tell(counter, operator)


def _tell(counter: ModuleType, operator: Any) -> None:
    formula = FORMULAS[operator]

    def flops(*arguments: Any, out_shape: Any = None, **options: Any) -> int:
        return formula(*arguments, **options).flops

    if operator not in counter.flop_registry:
        counter.register_flop_formula(operator)(flops)


class _Watch(importlib.abc.MetaPathFinder):
    """Finds torch's counter as all others do, and has it told the formulas once it is loaded."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            for operator in FORMULAS:
                _tell(module, operator)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if _COUNTER not in sys.modules:
    sys.meta_path.insert(0, _Watch())
