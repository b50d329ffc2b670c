"""VMamba: visual state-space models that install with pip, train on any machine, and explain themselves.

This page is the table of contents; `vmamba.ops` has the operators, `vmamba.layers` the layers, `vmamba.models` the
networks.
"""

from vmamba.checkpoints import infer_config, load, load_weights, read_weights, save_weights
from vmamba.errors import (
    BackendError,
    CheckpointError,
    ConfigError,
    DataError,
    InputError,
    OutputError,
    VMambaError,
)
from vmamba.layers import SS2D, VSSBlock
from vmamba.models import VSSM, Backbone_VSSM, VSSMConfig, create_model, list_models
from vmamba.ops import (
    backend,
    cross_merge_fn,
    cross_scan_fn,
    recorded_runs,
    selective_scan,
    selective_scan_fn,
    ss2d_scan,
)
from vmamba.optimized import optimize

__version__ = "0.1.0"

__all__ = [
    "SS2D",
    "VSSM",
    "Backbone_VSSM",
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "InputError",
    "OutputError",
    "VMambaError",
    "VSSBlock",
    "VSSMConfig",
    "backend",
    "create_model",
    "cross_merge_fn",
    "cross_scan_fn",
    "infer_config",
    "list_models",
    "load",
    "load_weights",
    "optimize",
    "read_weights",
    "recorded_runs",
    "save_weights",
    "selective_scan",
    "selective_scan_fn",
    "ss2d_scan",
]
