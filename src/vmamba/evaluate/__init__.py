"""What trained weights do: measured on labelled samples, and said about images. What it means, their task says.

Called, it measures: ``vmamba.evaluate("runs/digits")``; see `vmamba.train` for why a package is a function.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmamba.evaluate.measure import Evaluation


class _Evaluate(ModuleType):
    """This package, which measures when it is called."""

    def __call__(self, weights: Any, *, data: Any = None, console: Any = None, **fields: Any) -> Evaluation:
        """Measure trained weights, as `vmamba eval` does.

        Args:
            weights: a run's folder, a weight file, an exported file, or a model's name for its released weights.
            data: the images, by default those that the run was trained on: a data set's name, the path of a tree of
                class folders, a `DataConfig` or a mapping of its fields.
            console: a `rich.console.Console` for the tables; silent without.
            fields: any other field of `vmamba.evaluate.measure.EvaluateConfig`, such as ``split`` or ``batch_size``.

        Returns:
            The figures, and what they were measured on.

        Raises:
            ConfigError: a field that there is not, or a value that cannot be used.
            VMambaError: as `vmamba.evaluate.measure.evaluate`.
        """
        from vmamba.evaluate.door import evaluate_by_keywords

        return evaluate_by_keywords(weights, data, console, fields)


sys.modules[__name__].__class__ = _Evaluate
