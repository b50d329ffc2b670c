"""The one layer that all pointwise products go through."""

from __future__ import annotations

from torch import nn


class Pointwise(nn.Linear):
    """A product over channels at every place: ``(…, c_in) → (…, c_out)``, weight ``(c_out, c_in)``."""
