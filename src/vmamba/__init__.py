"""VMamba: visual state-space models that install with pip, train on any machine, and explain themselves.

This page is the table of contents; `vmamba.scan` has the operators, `vmamba.layers` the layers, `vmamba.models` the
networks. `train`, `evaluate` and `predict` do what the commands of these names do; they are loaded when first used.
"""

from typing import TYPE_CHECKING, Any

from vmamba.errors import (
    BackendError,
    CheckpointError,
    ConfigError,
    DataError,
    InputError,
    OutputError,
    VMambaError,
)
from vmamba.heads import MaskRCNN, UNet3D, UPerNet
from vmamba.inference.engines import optimize
from vmamba.inference.warm import warm
from vmamba.layers import SS1D, SS2D, SS3D, VSSBlock
from vmamba.models import VSSM, VSSM3D, Backbone_VSSM, VolumeConfig, VSSMConfig, model_config
from vmamba.scan import (
    AxisOrder,
    IndexOrder,
    RuleOrder,
    backend,
    cross_merge_fn,
    cross_scan_fn,
    recorded_runs,
    selective_scan,
    selective_scan_fn,
    ss2d_scan,
    ssd_scan,
)
from vmamba.version import __version__
from vmamba.weights import infer_config, load_weights, read_weights, save_weights
from vmamba.zoo import create_model, list_models, load

if TYPE_CHECKING:
    from vmamba.analysis.flops import count
    from vmamba.evaluate.door import predict

__all__ = [
    "SS1D",
    "SS2D",
    "SS3D",
    "VSSM",
    "VSSM3D",
    "AxisOrder",
    "Backbone_VSSM",
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "IndexOrder",
    "InputError",
    "MaskRCNN",
    "OutputError",
    "RuleOrder",
    "UNet3D",
    "UPerNet",
    "VMambaError",
    "VSSBlock",
    "VSSMConfig",
    "VolumeConfig",
    "__version__",
    "backend",
    "count",
    "create_model",
    "cross_merge_fn",
    "cross_scan_fn",
    "evaluate",
    "infer_config",
    "list_models",
    "load",
    "load_weights",
    "model_config",
    "optimize",
    "predict",
    "read_weights",
    "recorded_runs",
    "save_weights",
    "selective_scan",
    "selective_scan_fn",
    "ss2d_scan",
    "ssd_scan",
    "train",
    "warm",
]


def __getattr__(name: str) -> Any:
    """What is not needed to use a model: loaded when it is asked for."""
    if name == "count":
        from vmamba.analysis.flops import count

        return count
    if name == "predict":
        from vmamba.evaluate.door import predict

        return predict
    if name == "evaluate":  # a package that can be called
        import vmamba.evaluate as measuring

        return measuring
    if name == "train":
        import vmamba.train as training

        return training
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
