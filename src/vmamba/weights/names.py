"""Other namings of the same weights, brought into this package's: upstream's one-file keys and its older prefixes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Size, Tensor

from vmamba.errors import CheckpointError
from vmamba.layers.patch_embed import resize_pos_embed

#: Old name -> ours, tried in order on each key. Upstream's classification file names the first ones as we do.
_RENAMES = [
    (re.compile(r"^patch_embed\.proj\."), "patch_embed.0."),
    (re.compile(r"^patch_embed\.norm\."), "patch_embed.2."),
    (re.compile(r"^(layers\.\d+\.blocks\.\d+)\.ln_1\."), r"\1.norm."),
    (re.compile(r"^(layers\.\d+\.blocks\.\d+)\.self_attention\."), r"\1.op."),
    (re.compile(r"^norm\."), "classifier.norm."),
    (re.compile(r"^head\."), "classifier.head."),
    (re.compile(r"(^|\.)x_proj\.weight$"), r"\1x_proj_weight"),
    (re.compile(r"(^|\.)dt_projs\.(weight|bias)$"), r"\1dt_projs_\2"),
]
#: What wrappers of torch put between names, wherever they stand.
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
#: A name that every network of ours has (a decoder beside it does not), and what stands before it.
_ANCHOR = re.compile(r"^(|.*\.)patch_embed\.(?:0|proj)\.weight$")
#: What torch's averaged models keep beside the weights.
_COUNTERS = ("n_averaged",)
_MERGING = re.compile(r"^(layers\.\d+\.downsample)\.([12])\.")


def translate_keys(state_dict: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state_dict`` under this package's names and shapes, as far as it can be.

    Values are viewed in the target's shape where only the layout differs (``(out, in)`` against ``(out, in, 1, 1)``,
    stacked directions against separate ones) and ``pos_embed`` is resized to the target's grid. Keys that match nothing
    stay as they are, so that a strict load can name them.

    Args:
        state_dict: weights in any of upstream's namings.
        target: the model's own state dict; only names and shapes are read.

    Raises:
        CheckpointError: two keys mean the same weight.
    """
    inside = next(iter(_prefixes(target)), "")
    names = {key: key if key in target else name for key, name in new_names(state_dict, inside).items()}
    names = {key: name for key, name in names.items() if name not in _COUNTERS or name in target}
    _refuse_doubles(names)
    return {
        name: _fit(name, state_dict[key], target[name]) if name in target else state_dict[key]
        for key, name in names.items()
    }


def prefix_of(names: Iterable[str]) -> str:
    """What stands before every name of the network in a larger module's state dict: ``"backbone."``, ``"module."``.

    Raises:
        CheckpointError: there are several such networks; names the prefix of each.
    """
    found = _prefixes(names)
    if len(found) > 1:
        listed = ", ".join(repr(prefix) for prefix in found)
        raise CheckpointError(
            f"the weights hold {len(found)} networks, under the prefixes {listed}; give the names of one of them, "
            "without its prefix"
        )
    return next(iter(found), "")


def _prefixes(names: Iterable[str]) -> dict[str, None]:
    """What stands before the names of each network, in their order."""
    return {match[1]: None for name in names if (match := _ANCHOR.match(_WRAPPERS.sub("", name)))}


def new_names(state_dict: Mapping[str, Tensor], inside: str = "") -> dict[str, str]:
    """This package's name of each key, as far as names and shapes tell without the model.

    The prefix that all of the network's names share becomes ``inside``. Keys beside it, such as a segmenter's
    ``decode_head.``, keep their names, but for what stands before ``inside`` in all of them, such as ``module.``.

    Raises:
        CheckpointError: as `prefix_of`.
    """
    prefix = prefix_of(state_dict)
    names = {key: _WRAPPERS.sub("", key) for key in state_dict}
    around = prefix.removesuffix(inside) if prefix.endswith(inside) else ""
    network = {key: _rename(name.removeprefix(prefix)) for key, name in names.items() if name.startswith(prefix)}
    # One-file patch merging counts its parts: 1 is the norm, 2 the projection. The other downsamples have a
    # convolution under 1.
    merging = {
        name.removesuffix(".1.weight")
        for key, name in network.items()
        if name.endswith(".downsample.1.weight") and state_dict[key].dim() == 1
    }
    return {
        key: inside + _name_merging(network[key], merging) if key in network else name.removeprefix(around)
        for key, name in names.items()
    }


def _rename(key: str) -> str:
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key, count=1)
    return key


def _name_merging(name: str, merging: set[str]) -> str:
    match = _MERGING.match(name)
    if not match or match[1] not in merging:
        return name
    return f"{match[1]}.{'norm' if match[2] == '1' else 'reduction'}.{name[match.end() :]}"


def _refuse_doubles(names: Mapping[str, str]) -> None:
    seen: dict[str, str] = {}
    for key, name in names.items():
        if name in seen:
            raise CheckpointError(f"the weights hold {name} twice, as {seen[name]} and as {key}; remove one of them")
        seen[name] = key


def _fit(name: str, value: Tensor, like: Tensor) -> Tensor:
    if name.rpartition(".")[2] == "pos_embed" and value.dim() == 4 and value.shape[:2] == like.shape[:2]:
        return resize_pos_embed(value, *like.shape[-2:])
    if value.shape != like.shape and _same_matrix(value.shape, like.shape):
        return value.reshape(like.shape)
    return value


def _same_matrix(a: Size, b: Size) -> bool:
    """Whether two shapes are row-major views of one weight: unit axes aside, leading axes may be merged."""
    a_axes, b_axes = ([size for size in shape if size != 1] for shape in (a, b))
    return a.numel() == b.numel() and (a_axes == b_axes or a[-1] == b[-1] or a_axes[-1:] == b_axes[-1:])
