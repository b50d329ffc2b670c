"""The named models in timm's registry: ``import vmamba.timm``, then ``timm.create_model("vmamba_tiny_s1l8")``.

With them comes what is built on that registry, such as timm's training script and segmentation-models-pytorch's ``tu-``
encoders. TorchScript is not supported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    register_notrace_module,
    resolve_pretrained_cfg,
)
from torch import Tensor, nn

from vmamba.errors import ConfigError
from vmamba.layers import SS1D, SS2D, SS3D, Mlp, Pointwise
from vmamba.layers.basic import Conv2d
from vmamba.models import VARIANTS, VSSM, VSSMConfig, model_config
from vmamba.weights import OFFICIAL, adapt_to, fetch, fetch_official, load_adapted, translate_keys
from vmamba.weights.pickled import check_pickled_file

#: `timm.models.register_model` adds the models' own functions.
__all__ = ["TimmVSSM"]


class TimmVSSM(VSSM):
    """A `VSSM` with what timm expects of a model besides; its keys and values are the same.

    Args:
        config, **options: as in `VSSM`.
        drop_rate: dropout of the pooled features in front of the head.
        global_pool: ``"avg"``, or ``""`` to leave the places apart: logits are then ``(b, h, w, num_classes)``.

    Raises:
        ConfigError, BackendError: as `VSSM`; another ``global_pool``.
    """

    output_fmt = "NHWC"  # the layout of forward_features

    def __init__(
        self,
        config: VSSMConfig | None = None,
        *,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
        **options: Any,
    ) -> None:
        super().__init__(config, **options)
        self.in_chans = self.config.in_chans
        self.drop_rate = drop_rate
        self.head_drop = nn.Dropout(drop_rate)
        self.global_pool = _checked_pool(global_pool)

    @property
    def head_hidden_size(self) -> int:
        """Channels of what the head takes."""
        return self.num_features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Normed map ``(b, h, w, c)`` to logits, or with ``pre_logits`` to what the head takes."""
        x = self.head_drop(x.mean((1, 2)) if self.global_pool else x)
        if pre_logits:
            return x
        logits: Tensor = self.classifier.head(x)
        return logits

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put in a fresh head of ``num_classes``; 0 takes it out. ``global_pool`` None leaves the pooling as it is."""
        if global_pool is not None:
            self.global_pool = _checked_pool(global_pool)
        super().reset_classifier(num_classes)

    def load_pretrained(self, path: str | Path) -> None:
        """Load a weight file strictly, but for another number of classes or image channels; see `load_adapted`."""
        load_adapted(self, path)


def _checked_pool(global_pool: str) -> str:
    if global_pool not in ("", "avg"):
        raise ConfigError(f"global_pool {global_pool!r} is not supported; legal: 'avg', or '' for none")
    return global_pool


def _build(
    variant: str,
    *,
    drop_rate: float = 0.0,
    global_pool: str = "avg",
    output_stride: int = 32,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **overrides: Any,
) -> TimmVSSM:
    if output_stride != 32:
        raise ConfigError(f"output_stride {output_stride} is not supported; the stages' strides are 4, 8, 16 and 32")
    config = model_config(variant, **overrides)
    with torch.device(device or torch.get_default_device()):
        return TimmVSSM(config, drop_rate=drop_rate, global_pool=global_pool).to(dtype=dtype)


def _entrypoint(variant: str) -> Callable[..., nn.Module]:
    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Mapping[str, Any] | None = None,
        cache_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        overlay = {**(pretrained_cfg_overlay or {}), "custom_load": True}  # by TimmVSSM.load_pretrained
        if pretrained and _is_official(variant, resolve_pretrained_cfg(variant, pretrained_cfg, overlay)):
            overlay["file"] = str(_official_file(variant, cache_dir))
        model: nn.Module = build_model_with_cfg(
            partial(_build, variant),
            variant,
            pretrained,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=overlay,
            pretrained_filter_fn=_own_keys,
            feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
            cache_dir=cache_dir,
            **kwargs,
        )
        return model

    create.__name__ = create.__qualname__ = variant
    create.__doc__ = f"Build ``{variant}``; see `timm.create_model` and `vmamba.VSSMConfig` for the keywords."
    return create


def _is_official(variant: str, cfg: PretrainedCfg) -> bool:
    """Whether the weights are upstream's and nothing else comes before them, in timm's order."""
    other = cfg.state_dict or cfg.file or cfg.hf_hub_id or cfg.source in ("hf-hub", "local-dir")
    return not other and variant in OFFICIAL and cfg.url == OFFICIAL[variant].url


def _official_file(variant: str, cache_dir: str | Path | None) -> Path:
    """Our own download, into timm's place: it resumes, verifies, and says what to do without a network."""
    if cache_dir is None:
        return fetch_official(variant)
    weights = OFFICIAL[variant]
    return fetch(weights.url, Path(cache_dir) / weights.file_name, check=check_pickled_file)


def _own_keys(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Upstream's namings to ours, all else strict; timm fits the image channels and the head afterwards."""
    translated = translate_keys(state_dict, model.state_dict())
    adapt_to(translated, model)
    return translated


def _default_cfg(variant: str) -> dict[str, Any]:
    weights = OFFICIAL.get(variant)
    return {
        "url": weights.url if weights else "",
        "custom_load": True,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "num_classes": 1000,
        "first_conv": "patch_embed.0",
        "classifier": "classifier.head",
        "license": "mit",
        "paper_ids": "arXiv:2401.10166",
        "origin_url": "https://github.com/MzeroMiko/VMamba",
    }


# torch.fx takes these as one node each, so that a traced network runs what they choose to run, bit for bit.
for _leaf in (SS1D, SS2D, SS3D, Mlp, Conv2d, Pointwise):
    register_notrace_module(_leaf)
default_cfgs = generate_default_cfgs(
    {f"{variant}.in1k" if variant in OFFICIAL else variant: _default_cfg(variant) for variant in VARIANTS}
)
for _variant in VARIANTS:
    globals()[_variant] = register_model(_entrypoint(_variant))
