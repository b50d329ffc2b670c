"""Stands in for ``mamba_ssm.utils.generation``: the cache that decoding goes through. Sampling is not here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vmamba.errors import ConfigError
from vmamba.integrations.mamba_ssm.modules.missing import missing
from vmamba.integrations.mamba_ssm.stand_in import NotProvidedError

__all__ = [
    "GenerationMixin",
    "InferenceParams",
    "capture_graph",
    "decode",
    "modify_logit_for_repetition_penalty",
    "modify_logits_for_min_p_filtering",
    "modify_logits_for_top_k_filtering",
    "modify_logits_for_top_p_filtering",
    "sample",
    "update_graph_cache",
]

_INSTEAD = (
    "there is InferenceParams: call the model with inference_params=…, first on the prompt, then on one position at a "
    "time, add the positions read to seqlen_offset, and choose from the logits yourself"
)


@dataclass
class InferenceParams:
    """How far a sequence has been read, and the states of each layer there, by its ``layer_idx``."""

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    batch_size_offset: int = 0
    key_value_memory_dict: dict[Any, Any] = field(default_factory=dict)
    lengths_per_sample: Tensor | None = None

    def reset(self, max_seqlen: int, max_batch_size: int) -> None:
        """Begin at position 0; the states stay, for the next prompt to fill."""
        self.max_seqlen = max_seqlen
        self.max_batch_size = max_batch_size
        self.seqlen_offset = 0
        if self.lengths_per_sample is not None:
            self.lengths_per_sample.zero_()


def cached_states(
    layer: Any, inference_params: Any, batch_size: int, initialize_states: bool = False
) -> tuple[Tensor, Tensor]:
    """The two states of a Mamba layer in an `InferenceParams`, made where they are not there yet.

    Args:
        layer: a `Mamba` or `Mamba2`.
        inference_params: the cache.
        batch_size: rows of states to make.
        initialize_states: set them to zero.

    Raises:
        ConfigError: the layer has no ``layer_idx``.
    """
    cache = inference_params.key_value_memory_dict
    if layer.layer_idx is None:
        raise ConfigError(f"a cache has a place for each layer: give {type(layer).__name__} a layer_idx")
    if layer.layer_idx not in cache:
        cache[layer.layer_idx] = layer.allocate_inference_cache(batch_size, 0)
    conv_state, ssm_state = cache[layer.layer_idx]
    if initialize_states:
        conv_state.zero_()
        ssm_state.zero_()
    return conv_state, ssm_state


class GenerationMixin:
    """Base of `MambaLMHeadModel`; its ``generate`` raises."""

    def allocate_inference_cache(self, batch_size: int, max_seqlen: int, dtype: Any = None, **_: Any) -> Any:
        """For models to define."""
        raise NotImplementedError(f"{type(self).__name__} has no allocate_inference_cache; define it")

    def generate(self, *_: Any, **__: Any) -> Any:
        """Not in vmamba's stand-in. Raises `NotProvidedError`."""
        raise NotProvidedError(f"generate is not provided by vmamba's stand-in; {_INSTEAD}")


decode = missing("mamba_ssm.utils.generation.decode", _INSTEAD)
sample = missing("mamba_ssm.utils.generation.sample", _INSTEAD)
update_graph_cache = missing("mamba_ssm.utils.generation.update_graph_cache", _INSTEAD)
capture_graph = missing("mamba_ssm.utils.generation.capture_graph", _INSTEAD)
modify_logit_for_repetition_penalty = missing(
    "mamba_ssm.utils.generation.modify_logit_for_repetition_penalty", _INSTEAD
)
modify_logits_for_min_p_filtering = missing("mamba_ssm.utils.generation.modify_logits_for_min_p_filtering", _INSTEAD)
modify_logits_for_top_k_filtering = missing("mamba_ssm.utils.generation.modify_logits_for_top_k_filtering", _INSTEAD)
modify_logits_for_top_p_filtering = missing("mamba_ssm.utils.generation.modify_logits_for_top_p_filtering", _INSTEAD)
