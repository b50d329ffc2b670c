"""Stands in for ``mamba_ssm.models.mixer_seq_simple``: a stack of Mamba blocks, and a language model of it.

Keys and initial values are mamba-ssm's. Both generations of its arguments are understood: 1.0's, which name each field,
and a `MambaConfig`. Attention layers are not here.
"""

from __future__ import annotations

import json
import math
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vmamba.errors import ConfigError
from vmamba.integrations.mamba_ssm.mamba2.layer import Mamba2
from vmamba.integrations.mamba_ssm.modules.block import Block
from vmamba.integrations.mamba_ssm.modules.config_mamba import MambaConfig
from vmamba.integrations.mamba_ssm.modules.generation import GenerationMixin
from vmamba.integrations.mamba_ssm.modules.hf import load_config_hf, load_state_dict_hf
from vmamba.integrations.mamba_ssm.modules.layer_norm import RMSNorm, layer_norm_fn
from vmamba.integrations.mamba_ssm.modules.mamba_simple import Mamba
from vmamba.integrations.mamba_ssm.modules.mlp import GatedMLP
from vmamba.integrations.mamba_ssm.stand_in import NotProvidedError
from vmamba.output import create_folder, write_atomically

__all__ = ["MambaLMHeadModel", "MixerModel", "_init_weights", "create_block"]

LMOutput = namedtuple("LMOutput", ["logits"])

#: What a block's mixer can be, by ``ssm_cfg``'s word.
_MIXERS: dict[str, Callable[..., nn.Module]] = {"Mamba1": Mamba, "Mamba2": Mamba2}


def create_block(
    d_model: int,
    ssm_cfg: dict[str, Any] | None = None,
    norm_epsilon: float = 1e-5,
    rms_norm: bool = False,
    residual_in_fp32: bool = False,
    fused_add_norm: bool = False,
    layer_idx: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    *,
    d_intermediate: int = 0,
    attn_layer_idx: Sequence[int] | None = None,
    attn_cfg: dict[str, Any] | None = None,
) -> Block:
    """Make a residual block with a `Mamba` or `Mamba2` inside; positions of the arguments are mamba-ssm 1.x's.

    Args:
        d_model: channels.
        ssm_cfg: the mixer's options; ``"layer"`` is ``"Mamba1"``, the default, or ``"Mamba2"``.
        norm_epsilon, rms_norm: which norm.
        residual_in_fp32, fused_add_norm: as of `Block`.
        layer_idx: place in an `InferenceParams` cache.
        device, dtype: of the parameters.
        d_intermediate: inner channels of an MLP behind the mixer, or 0 for none.
        attn_layer_idx, attn_cfg: layers of attention; none can be asked for.

    Raises:
        NotProvidedError: an attention layer, or another ``"layer"``.
    """
    options = dict(ssm_cfg or {})
    layer = options.pop("layer", "Mamba1")
    if layer not in _MIXERS:
        raise NotProvidedError(
            f"ssm_cfg layer {layer!r} is not provided by vmamba's stand-in; there are {', '.join(_MIXERS)}"
        )
    if layer_idx in (attn_layer_idx or ()):
        raise NotProvidedError(
            f"layer {layer_idx} is attention by attn_layer_idx, which is not provided by vmamba's stand-in; "
            "there are Mamba layers"
        )
    factory: dict[str, Any] = {"device": device, "dtype": dtype}
    mlp: Any = nn.Identity
    if d_intermediate:
        mlp = partial(GatedMLP, hidden_features=d_intermediate, out_features=d_model, **factory)
    block = Block(
        d_model,
        partial(_MIXERS[layer], layer_idx=layer_idx, **options, **factory),
        mlp,
        partial(RMSNorm if rms_norm else nn.LayerNorm, eps=norm_epsilon, **factory),
        fused_add_norm,
        residual_in_fp32,
    )
    block.layer_idx = layer_idx  # type: ignore[assignment]
    return block


def _init_weights(
    module: nn.Module,
    n_layer: int,
    initializer_range: float = 0.02,
    rescale_prenorm_residual: bool = True,
    n_residuals_per_layer: int = 1,
) -> None:
    """Set one module's start, for `torch.nn.Module.apply`.

    Biases of linear layers are zero but where they say ``_no_reinit``; embeddings are normal with
    ``initializer_range``; ``out_proj`` and ``fc2`` are drawn as torch does and divided by the square root of the number
    of residuals (GPT-2).
    """
    if isinstance(module, nn.Linear):
        if module.bias is not None and not getattr(module.bias, "_no_reinit", False):
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=initializer_range)
    if rescale_prenorm_residual:
        for name, parameter in module.named_parameters():
            if name in ("out_proj.weight", "fc2.weight"):
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
                with torch.no_grad():
                    parameter.div_(math.sqrt(n_residuals_per_layer * n_layer))


class MixerModel(nn.Module):
    """Embedding, ``n_layer`` blocks, and a norm: ``(b, l)`` words to ``(b, l, c)``.

    Args:
        d_model, n_layer, vocab_size: channels, blocks, words.
        ssm_cfg, norm_epsilon, rms_norm, fused_add_norm, residual_in_fp32: as of `create_block`.
        initializer_cfg: options of `_init_weights`.
        device, dtype: of the parameters.
        d_intermediate, attn_layer_idx, attn_cfg: as of `create_block`.
    """

    def __init__(
        self,
        d_model: int,
        n_layer: int,
        vocab_size: int,
        ssm_cfg: dict[str, Any] | None = None,
        norm_epsilon: float = 1e-5,
        rms_norm: bool = False,
        initializer_cfg: dict[str, Any] | None = None,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        d_intermediate: int = 0,
        attn_layer_idx: Sequence[int] | None = None,
        attn_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.residual_in_fp32 = residual_in_fp32
        self.fused_add_norm = fused_add_norm
        self.embedding = nn.Embedding(vocab_size, d_model, **factory)
        self.layers = nn.ModuleList(
            create_block(
                d_model,
                ssm_cfg,
                norm_epsilon,
                rms_norm,
                residual_in_fp32,
                fused_add_norm,
                i,
                **factory,
                d_intermediate=d_intermediate,
                attn_layer_idx=attn_layer_idx,
                attn_cfg=attn_cfg,
            )
            for i in range(n_layer)
        )
        self.norm_f: Any = (RMSNorm if rms_norm else nn.LayerNorm)(d_model, eps=norm_epsilon, **factory)
        residuals = 2 if d_intermediate else 1
        initial = {"n_residuals_per_layer": residuals, **(initializer_cfg or {})}
        self.apply(partial(_init_weights, n_layer=n_layer, **initial))

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **options: Any
    ) -> dict[int, Any]:
        """The states of each layer, by its number."""
        return {
            i: layer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **options)  # type: ignore[operator]
            for i, layer in enumerate(self.layers)
        }

    def forward(self, input_ids: Tensor, inference_params: Any = None, **mixer_options: Any) -> Tensor:
        """``(b, l)`` words to ``(b, l, c)``; see `Mamba.forward` for ``inference_params``."""
        x = self.embedding(input_ids)
        residual = None
        for layer in self.layers:
            x, residual = layer(x, residual, inference_params=inference_params, **mixer_options)
        if self.fused_add_norm:
            norm, rms = self.norm_f, isinstance(self.norm_f, RMSNorm)
            normed = layer_norm_fn(x, norm.weight, norm.bias, residual, eps=norm.eps, is_rms_norm=rms)
            assert isinstance(normed, Tensor)
            return normed
        total = x if residual is None else x + residual
        out: Tensor = self.norm_f(total.to(self.norm_f.weight.dtype))
        return out


class MambaLMHeadModel(nn.Module, GenerationMixin):
    """A language model of a `MixerModel`, whose embedding is also its last layer.

    Args:
        config: a `MambaConfig`; or None, with its fields as ``**fields``, among them ``d_model``, ``n_layer`` and
            ``vocab_size``, and for the others mamba-ssm 1.0's defaults: no RMS norm, nothing in float32, nothing fused,
            no padding of the vocabulary.
        initializer_cfg: options of `_init_weights`.
        device, dtype: of the parameters.

    Raises:
        ConfigError: neither a config nor these fields, or unknown ones.
        NotProvidedError: layers that are not here; see `create_block`.
    """

    def __init__(
        self,
        config: MambaConfig | None = None,
        initializer_cfg: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **fields: Any,
    ) -> None:
        super().__init__()
        config = _config(config, fields)
        self.config = config
        multiple = config.pad_vocab_size_multiple
        vocab_size = -(-config.vocab_size // multiple) * multiple
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.backbone = MixerModel(
            config.d_model,
            config.n_layer,
            vocab_size,
            config.ssm_cfg,
            rms_norm=config.rms_norm,
            initializer_cfg=initializer_cfg,
            fused_add_norm=config.fused_add_norm,
            residual_in_fp32=config.residual_in_fp32,
            **factory,
            d_intermediate=config.d_intermediate,
            attn_layer_idx=config.attn_layer_idx,
            attn_cfg=config.attn_cfg,
        )
        self.lm_head = nn.Linear(config.d_model, vocab_size, bias=False, **factory)
        self.apply(partial(_init_weights, n_layer=config.n_layer, **(initializer_cfg or {})))
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make the embedding the last layer too, where the config says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **options: Any
    ) -> dict[int, Any]:
        """The states of each layer, by its number."""
        return self.backbone.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **options)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        inference_params: Any = None,
        num_last_tokens: int = 0,
        **mixer_options: Any,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: words ``(b, l)``.
            position_ids: not used.
            inference_params: see `Mamba.forward`.
            num_last_tokens: how many positions at the end get logits; 0 is all.

        Returns:
            A named tuple with ``logits (b, l, words)``.
        """
        x = self.backbone(input_ids, inference_params=inference_params, **mixer_options)
        if num_last_tokens > 0:
            x = x[:, -num_last_tokens:]
        return LMOutput(logits=self.lm_head(x))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> MambaLMHeadModel:
        """Load a model that `save_pretrained` or mamba-ssm stored, from a folder or the hub."""
        fields = load_config_hf(pretrained_model_name)
        _check_fields(fields)
        model = cls(MambaConfig(**fields), device=device, dtype=dtype, **options)
        model.load_state_dict(load_state_dict_hf(pretrained_model_name, device=device, dtype=dtype))
        return model

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write ``config.json`` and ``pytorch_model.bin`` into a folder, which is made."""
        folder = Path(save_directory)
        create_folder(folder)
        write_atomically(folder / "pytorch_model.bin", lambda path: torch.save(self.state_dict(), path))
        text = json.dumps(asdict(self.config), indent=4) + "\n"
        write_atomically(folder / "config.json", lambda path: path.write_text(text, encoding="utf-8"))


#: What mamba-ssm 1.0 takes for fields that are not given, where it differs from `MambaConfig`.
_FIRST_DEFAULTS: dict[str, Any] = {
    "rms_norm": False,
    "residual_in_fp32": False,
    "fused_add_norm": False,
    "pad_vocab_size_multiple": 1,
}


def _config(config: MambaConfig | None, fields: dict[str, Any]) -> MambaConfig:
    if config is not None:
        if isinstance(config, MambaConfig) or hasattr(config, "d_model"):
            if fields:
                raise ConfigError(f"{', '.join(fields)} beside a config; set the config's own fields")
            return config
        raise ConfigError(f"config is {config!r}; give a MambaConfig, or d_model=…, n_layer=…, vocab_size=…")
    _check_fields(fields)
    return MambaConfig(**{**_FIRST_DEFAULTS, **fields})


def _check_fields(fields: dict[str, Any]) -> None:
    legal = set(MambaConfig.__dataclass_fields__)
    unknown, lacking = set(fields) - legal, {"d_model", "n_layer", "vocab_size"} - set(fields)
    if unknown or lacking:
        raise ConfigError(
            f"unknown fields: {', '.join(sorted(unknown)) or 'none'}; lacking: {', '.join(sorted(lacking)) or 'none'}; "
            f"legal: {', '.join(sorted(legal))}"
        )
