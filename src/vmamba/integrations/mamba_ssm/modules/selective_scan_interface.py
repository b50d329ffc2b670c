"""Stands in for ``mamba_ssm.ops.selective_scan_interface``, with what Vim's fork has besides.

The classes are autograd functions there; forks call their ``apply``, which is all that these have.
"""

from __future__ import annotations

from vmamba.integrations.mamba_ssm.modules.inner import (
    bimamba_inner_fn,
    bimamba_inner_ref,
    mamba_inner_fn,
    mamba_inner_fn_no_out_proj,
    mamba_inner_ref,
    mamba_inner_ref_no_out_proj,
)
from vmamba.integrations.mamba_ssm.modules.scan import selective_scan_fn, selective_scan_ref

__all__ = [
    "BiMambaInnerFn",
    "MambaInnerFn",
    "MambaInnerFnNoOutProj",
    "SelectiveScanFn",
    "bimamba_inner_fn",
    "bimamba_inner_ref",
    "mamba_inner_fn",
    "mamba_inner_fn_no_out_proj",
    "mamba_inner_ref",
    "mamba_inner_ref_no_out_proj",
    "selective_scan_fn",
    "selective_scan_ref",
]


class SelectiveScanFn:
    """`selective_scan_fn` under the name of the class behind it."""

    apply = staticmethod(selective_scan_fn)


class MambaInnerFn:
    """`mamba_inner_fn` under the name of the class behind it."""

    apply = staticmethod(mamba_inner_fn)


class BiMambaInnerFn:
    """`bimamba_inner_fn` under the name of the class behind it."""

    apply = staticmethod(bimamba_inner_fn)


class MambaInnerFnNoOutProj:
    """`mamba_inner_fn_no_out_proj` under the name of the class behind it."""

    apply = staticmethod(mamba_inner_fn_no_out_proj)
