"""Stands in for ``mamba_ssm.models.config_mamba``: what a Mamba language model is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["MambaConfig"]


@dataclass
class MambaConfig:
    """Fields, and defaults, of mamba-ssm 2.x.

    ``d_model`` channels, ``d_intermediate`` of an MLP behind each mixer (0 for none), ``n_layer`` blocks,
    ``vocab_size`` words, rounded up to a multiple of ``pad_vocab_size_multiple``; ``ssm_cfg`` are the mixer's
    options, see `create_block`.
    """

    d_model: int = 2560
    d_intermediate: int = 0
    n_layer: int = 64
    vocab_size: int = 50277
    ssm_cfg: dict[str, Any] = field(default_factory=dict)
    attn_layer_idx: list[int] = field(default_factory=list)
    attn_cfg: dict[str, Any] = field(default_factory=dict)
    rms_norm: bool = True
    residual_in_fp32: bool = True
    fused_add_norm: bool = True
    pad_vocab_size_multiple: int = 8
    tie_embeddings: bool = True
