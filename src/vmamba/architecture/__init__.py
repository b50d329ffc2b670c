"""What a network is, as data: the typed configuration that is stored with its weights, and the named models."""

from vmamba.architecture.config import VSSMConfig
from vmamba.architecture.variants import VARIANTS, Published, Variant, list_models, model_config

__all__ = ["VARIANTS", "Published", "VSSMConfig", "Variant", "list_models", "model_config"]
