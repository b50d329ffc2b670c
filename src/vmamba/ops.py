"""The operators under the name that they had in the first version: `vmamba.scan` is the folder."""

from vmamba.scan import *  # noqa: F403
from vmamba.scan import __all__ as __all__
