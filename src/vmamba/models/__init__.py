"""The networks and their names."""

from vmamba.models.backbone import Backbone_VSSM
from vmamba.models.config import VSSMConfig
from vmamba.models.registry import create_model, list_models, model_config
from vmamba.models.variants import VARIANTS, Published, Variant
from vmamba.models.vssm import VSSM

__all__ = [
    "VARIANTS",
    "VSSM",
    "Backbone_VSSM",
    "Published",
    "VSSMConfig",
    "Variant",
    "create_model",
    "list_models",
    "model_config",
]
