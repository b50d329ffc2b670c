"""``import vmamba.timm`` registers the named models with timm; see `vmamba.integrations.timm`."""

from vmamba.integrations import timm as _registered
from vmamba.integrations.timm import *  # noqa: F403 — the models' functions, whose names timm collects

__all__ = _registered.__all__
