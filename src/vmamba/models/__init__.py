"""The networks and their names."""

from vmamba.architecture.config import VSSMConfig
from vmamba.architecture.variants import VARIANTS, Published, Variant, list_models, model_config
from vmamba.models.backbone import Backbone_VSSM
from vmamba.models.create import create_model
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
