"""Training: a run and its folder, the loop within it, and what both are configured by. What is learnt, a task says.

Called, it trains: ``vmamba.train(model="vmamba_nano", data="digits")``. A module cannot be called unless its class says
so, and whoever imports one of these modules makes ``vmamba.train`` this package: so the package itself is the function.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmamba.train.run import TrainResult


class _Train(ModuleType):
    """This package, which trains when it is called."""

    def __call__(
        self, *, data: Any = None, augmentation: Any = None, console: Any = None, **fields: Any
    ) -> TrainResult:
        """Train a model, as `vmamba train` does.

        Args:
            data: the images: a data set's name, the path of a tree of class folders, a `DataConfig` or a mapping of its
                fields.
            augmentation: random changes to them: an `Augmentation` or a mapping of its fields.
            console: a `rich.console.Console` to report progress to; silent without.
            fields: any other field of `vmamba.train.settings.config.TrainConfig`, such as ``model``, ``recipe`` or
                ``epochs``.

        Returns:
            The run's folder, its best epoch's figures, and what those weights do on the test images.

        Raises:
            ConfigError: a field that there is not, or a value that cannot be used.
            VMambaError: as `vmamba.train.run.train`.
        """
        from vmamba.train.door import train_by_keywords

        return train_by_keywords(data, augmentation, console, fields)


sys.modules[__name__].__class__ = _Train
