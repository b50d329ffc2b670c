"""The networks and their names."""

from vmamba.architecture.config import VSSMConfig
from vmamba.architecture.variants import VARIANTS, Published, Variant, list_models, model_config
from vmamba.architecture.volumes import VolumeConfig
from vmamba.models.backbone import Backbone_VSSM
from vmamba.models.create import create_model
from vmamba.models.volumes import VSSM3D
from vmamba.models.vssm import VSSM

__all__ = [
    "VARIANTS",
    "VSSM",
    "VSSM3D",
    "Backbone_VSSM",
    "Published",
    "VSSMConfig",
    "Variant",
    "VolumeConfig",
    "create_model",
    "list_models",
    "model_config",
]
