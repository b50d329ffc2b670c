"""Other namings of the same weights, brought into this package's: upstream's one-file keys and its older prefixes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Size, Tensor

from vmamba.models.trunk import resize_pos_embed

#: Old name -> ours, tried in order on each key. Upstream's classification file names the first ones as we do.
_RENAMES = [
    (re.compile(r"^(?:module\.)?(?:backbone\.)?"), ""),
    (re.compile(r"^patch_embed\.proj\."), "patch_embed.0."),
    (re.compile(r"^patch_embed\.norm\."), "patch_embed.2."),
    (re.compile(r"^(layers\.\d+\.blocks\.\d+)\.ln_1\."), r"\1.norm."),
    (re.compile(r"^(layers\.\d+\.blocks\.\d+)\.self_attention\."), r"\1.op."),
    (re.compile(r"^norm\."), "classifier.norm."),
    (re.compile(r"^head\."), "classifier.head."),
    (re.compile(r"(^|\.)x_proj\.weight$"), r"\1x_proj_weight"),
    (re.compile(r"(^|\.)dt_projs\.(weight|bias)$"), r"\1dt_projs_\2"),
]
_MERGING = re.compile(r"^(layers\.\d+\.downsample)\.([12])\.")


def translate_keys(state_dict: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state_dict`` under this package's names and shapes, as far as it can be.

    Values are viewed in the target's shape where only the layout differs (``(out, in)`` against ``(out, in, 1, 1)``,
    stacked
    directions against separate ones) and ``pos_embed`` is resized to the target's grid. Keys that match nothing stay as
    they are, so that a strict load can name them.

    Args:
        state_dict: weights in any of upstream's namings.
        target: the model's own state dict; only names and shapes are read.
    """
    translated: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        name = key if key in target else _rename(key, target)
        translated[name] = _fit(name, value, target[name]) if name in target else value
    return translated


def _rename(key: str, target: Mapping[str, Tensor]) -> str:
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key, count=1)
    merging = _MERGING.match(key)
    # One-file patch merging counts its parts; the other downsamples use the same numbers for other parts.
    if merging and f"{merging[1]}.reduction.weight" in target:
        part = "norm" if merging[2] == "1" else "reduction"
        key = f"{merging[1]}.{part}.{key[merging.end() :]}"
    return key


def _fit(name: str, value: Tensor, like: Tensor) -> Tensor:
    if name == "pos_embed" and value.dim() == 4 and value.shape[:2] == like.shape[:2]:
        return resize_pos_embed(value, *like.shape[-2:])
    if value.shape != like.shape and _same_matrix(value.shape, like.shape):
        return value.reshape(like.shape)
    return value


def _same_matrix(a: Size, b: Size) -> bool:
    """Whether two shapes are row-major views of one weight: unit axes aside, leading axes may be merged."""
    a_axes, b_axes = ([size for size in shape if size != 1] for shape in (a, b))
    return a.numel() == b.numel() and (a_axes == b_axes or a[-1] == b[-1] or a_axes[-1:] == b_axes[-1:])
