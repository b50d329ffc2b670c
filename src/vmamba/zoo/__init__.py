"""All networks by name, of whatever family, and the weight files that they belong to."""

from vmamba.zoo.create import create_model, list_models, load

__all__ = ["create_model", "list_models", "load"]
