"""What a network is, as data: the typed configuration that is stored with its weights, and the named models."""

from vmamba.architecture.config import Architecture, RuntimeOptions, VSSMConfig
from vmamba.architecture.variants import VARIANTS, Published, Variant, list_models, model_config
from vmamba.architecture.volumes import VolumeConfig

__all__ = [
    "VARIANTS",
    "Architecture",
    "Published",
    "RuntimeOptions",
    "VSSMConfig",
    "Variant",
    "VolumeConfig",
    "list_models",
    "model_config",
]
