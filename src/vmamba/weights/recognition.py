"""Which network a state dict belongs to, told from its names and shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from vmamba.architecture.config import VSSMConfig
from vmamba.architecture.detectors import MaskRCNNConfig
from vmamba.architecture.segmenters import SegmenterConfig
from vmamba.architecture.variants import VARIANTS
from vmamba.architecture.volumes import VolumeConfig
from vmamba.errors import CheckpointError
from vmamba.layers.forward_type import ForwardType
from vmamba.weights.misfits import some
from vmamba.weights.names import new_names

#: Fields that change what a network computes and leave no trace in its weights.
_UNSEEN = ("forward_type", "ssm_act_layer", "mlp_act_layer", "post_norm")
#: Fields that a named model may be built with in another way and still be that model.
_FREE = ("num_classes", "in_chans", "posembed", "imgsize")
#: Fields that the weights show, `forward_type` and `norm_layer` in part.
_SEEN = (
    "patch_size",
    "depths",
    "dims",
    "ssm_d_state",
    "ssm_ratio",
    "ssm_dt_rank",
    "ssm_conv",
    "ssm_conv_bias",
    "mlp_ratio",
    "gmlp",
    "patch_norm",
    "downsample_version",
    "patchembed_version",
)


Config = TypeVar("Config")


@dataclass(frozen=True)
class Recognised(Generic[Config]):
    """What a state dict was taken for.

    Attributes:
        config: the network's configuration.
        name: the named model that it is, head, input channels and positional embedding apart; None for another one.
        assumed: what the weights do not show, each as ``field=value``: the named model's, or `VSSMConfig`'s default.
    """

    config: Config
    name: str | None
    assumed: tuple[str, ...]

    def __str__(self) -> str:
        """One line."""
        what = self.name or _described(self.config)
        return what + (f", assuming {', '.join(self.assumed)}" if self.assumed else "")


def _described(config: object) -> str:
    if isinstance(config, SegmenterConfig):
        return f"a segmenter with a {config.decode_head.type} on {_described(config.backbone)}"
    if isinstance(config, MaskRCNNConfig):
        return f"a Mask R-CNN on {_described(config.backbone)}"
    if isinstance(config, VolumeConfig):
        return f"a network over volumes of depths {config.depths} and dims {config.dims}"
    if isinstance(config, VSSMConfig):
        return f"a VSSM of depths {config.depths} and dims {config.dims}"
    return f"a network of {type(config).__name__}"


def infer_config(state_dict: Mapping[str, Tensor]) -> VSSMConfig:
    """The configuration of the network that ``state_dict`` belongs to; see `recognise`."""
    return recognise(state_dict).config


def recognise(state_dict: Mapping[str, Tensor], source: str = "the state dict") -> Recognised[VSSMConfig]:
    """Recognise a network by the names and shapes of its weights, in any of upstream's namings.

    Where they agree with a named model, the result is that model's own configuration. Otherwise what does not show has
    `VSSMConfig`'s default: activations, `post_norm`, the scan's order and casts, and an output norm without weights.

    Args:
        state_dict: the weights. Only names and shapes are read; values may be on the meta device.
        source: what messages call it.

    Raises:
        CheckpointError: they are no VSSM's, or contradict each other.
    """
    shapes = _Shapes(state_dict, source)
    seen = _read(shapes)
    for name, variant in VARIANTS.items():
        named = VSSMConfig.from_dict(variant.options)
        if _visible(named) == _visible(seen):
            config = named.replace(**{field: getattr(seen, field) for field in _FREE})
            return Recognised(config, name, _assumed(config))
    return Recognised(seen, None, _assumed(seen))


def _visible(config: VSSMConfig) -> tuple[object, ...]:
    kind = ForwardType.parse(config.forward_type)
    weightless = kind.out_norm in ("none", "softmax", "sigmoid")
    form = (kind.gate, kind.family == "m0", "none" if weightless else kind.out_norm, config.norm_layer == "bn")
    return (*(getattr(config, field) for field in _SEEN), *form)


def _assumed(config: VSSMConfig) -> tuple[str, ...]:
    absent = {"mlp_act_layer"} if not config.mlp_ratio else set()
    absent |= {"forward_type", "ssm_act_layer"} if not config.ssm_ratio else set()
    return tuple(f"{field}={getattr(config, field)!r}" for field in _UNSEEN if field not in absent)


class _Shapes:
    """Shapes by this package's names; a name that is not there is an error that says what is."""

    def __init__(self, state_dict: Mapping[str, Tensor], source: str) -> None:
        names = new_names(state_dict)
        self._shapes = {name: tuple(state_dict[key].shape) for key, name in names.items()}
        self._source = source

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def __getitem__(self, name: str) -> tuple[int, ...]:
        if name not in self._shapes:
            raise self.refusal(f"it has no {name}; it has {some(self._shapes) or 'nothing'}")
        return self._shapes[name]

    def matrix(self, name: str) -> tuple[int, int]:
        """``(out, in)`` of a pointwise product, whether it is stored as a matrix or as a convolution."""
        shape = self[name]
        if len(shape) < 2:
            raise self.refusal(f"{name} has shape {shape}, want (out, in)")
        return shape[0], shape[1]

    def convolution(self, name: str) -> tuple[int, int, int]:
        """``(out, in, side)``."""
        shape = self[name]
        if len(shape) != 4:
            raise self.refusal(f"{name} has shape {shape}, want (out, in, side, side)")
        return shape[0], shape[1], shape[3]

    def numbers(self, pattern: str) -> list[tuple[int, ...]]:
        """The numbers in the names that begin with a pattern, sorted."""
        found = {match.groups() for name in self._shapes if (match := re.match(pattern, name))}
        return sorted(tuple(map(int, groups)) for groups in found)

    def any(self, pattern: str) -> bool:
        """Whether a name matches."""
        return any(re.search(pattern, name) for name in self._shapes)

    def refusal(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self._source} holds no weights that a VSSM can have: {reason}")


def _read(shapes: _Shapes) -> VSSMConfig:
    blocks = shapes.numbers(r"layers\.(\d+)\.blocks\.(\d+)\.")
    steps = [stage for (stage,) in shapes.numbers(r"layers\.(\d+)\.downsample\.")]
    if not blocks:
        raise shapes.refusal(f"it has no layers.0.blocks.0; it has {some(shapes._shapes) or 'nothing'}")
    stages = 1 + max([stage for stage, _ in blocks] + [stage + 1 for stage in steps])
    depths = [1 + max([block for at, block in blocks if at == stage], default=-1) for stage in range(stages)]
    found = _read_patch_embed(shapes)
    dims = [found.pop("dim")]
    for stage in range(stages - 1):
        version, out = _read_downsample(shapes, stage)
        found["downsample_version"] = version
        dims.append(out)
    # One block a stage is enough: a strict load checks the others.
    present = [(f"layers.{stage}.blocks.0", dims[stage]) for stage in range(stages) if depths[stage]]
    found |= _read_ssm(shapes, present) | _read_mlp(shapes, present)
    if "pos_embed" in shapes:
        found |= {"posembed": True, "imgsize": shapes["pos_embed"][-1] * found["patch_size"]}
    has_head = "classifier.head.weight" in shapes
    return VSSMConfig.from_dict(
        {
            **found,
            "depths": depths,
            "dims": dims,
            "num_classes": shapes.matrix("classifier.head.weight")[0] if has_head else 0,
            "norm_layer": "bn" if shapes.any(r"(^|\.)running_mean$") else "ln",
        }
    )


def _read_patch_embed(shapes: _Shapes) -> dict[str, Any]:
    out, in_chans, side = shapes.convolution("patch_embed.0.weight")
    norm = "patch_embed.2.weight" in shapes
    if "patch_embed.5.weight" in shapes:
        dim, _, _ = shapes.convolution("patch_embed.5.weight")
        version, patch = "v2", 2 * (side - 1)
    else:
        dim, version, patch = out, "v1", side
    return {
        "dim": dim,
        "in_chans": in_chans,
        "patch_size": patch,
        "patch_norm": norm,
        "patchembed_version": version,
    }


def _read_downsample(shapes: _Shapes, stage: int) -> tuple[str, int]:
    """The version and the channels it leads to."""
    name = f"layers.{stage}.downsample"
    if f"{name}.reduction.weight" in shapes:
        return "v1", shapes.matrix(f"{name}.reduction.weight")[0]
    out, _, side = shapes.convolution(f"{name}.1.weight")
    if side not in (2, 3):
        raise shapes.refusal(f"{name}.1 is a convolution of side {side}, want 2 or 3")
    return f"v{side}", out


def _read_ssm(shapes: _Shapes, blocks: Iterable[tuple[str, int]]) -> dict[str, Any]:
    layers = [(f"{block}.op", dim) for block, dim in blocks if shapes.any(rf"^{re.escape(block)}\.op\.")]
    if not layers:
        return {"ssm_ratio": 0.0}
    first = layers[0][0]
    # Mamba-2's scan has its steps from the x projection, one a head.
    mamba2 = f"{first}.Ds" in shapes and len(shapes[f"{first}.Ds"]) == 3
    inner = [shapes.matrix(f"{layer}.out_proj.weight")[1] for layer, _ in layers]
    if mamba2:
        ranks = [shapes.matrix(f"{layer}.A_logs")[1] for layer, _ in layers]
        rows = [shapes.matrix(f"{layer}.x_proj_weight")[1] for layer, _ in layers]
        states = [(row - rank) // 2 for row, rank in zip(rows, ranks, strict=True)]
    else:
        ranks = [shapes[f"{layer}.dt_projs_weight"][-1] for layer, _ in layers]
        states = [shapes.matrix(f"{layer}.A_logs")[1] for layer, _ in layers]
    dims = [dim for _, dim in layers]
    gate = shapes.matrix(f"{first}.in_proj.weight")[0] == 2 * inner[0]
    found: dict[str, Any] = {
        "ssm_ratio": _ratio(shapes, "SS2D's inner channels", dims, inner),
        "ssm_dt_rank": _size(shapes, "the step projection's rank", ranks, [math.ceil(dim / 16) for dim in dims]),
        "ssm_d_state": _size(shapes, "the state size", states, [math.ceil(dim / 6) for dim in dims]),
        "forward_type": "_".join(["m0" if mamba2 else "v2", *([] if gate else ["noz"]), *_out_norm(shapes, first)]),
    }
    if mamba2:
        found["ssm_init"] = "v2"  # does not show; m0 has no v0
    conv = f"{first}.conv2d.1" if mamba2 else f"{first}.conv2d"
    if f"{conv}.weight" in shapes:
        found["ssm_conv"] = shapes.convolution(f"{conv}.weight")[2]
        found["ssm_conv_bias"] = f"{conv}.bias" in shapes
    else:
        found["ssm_conv"] = 0
    return found


def _out_norm(shapes: _Shapes, layer: str) -> list[str]:
    """The forward type's postfix for what follows the scan."""
    if f"{layer}.out_norm.weight" in shapes:
        return []
    if f"{layer}.out_norm.0.weight" in shapes:
        return ["oncnorm"]
    return ["ondwconv3"] if f"{layer}.out_norm.1.weight" in shapes else ["onnone"]


def _read_mlp(shapes: _Shapes, blocks: Iterable[tuple[str, int]]) -> dict[str, Any]:
    layers = [(f"{block}.mlp", dim) for block, dim in blocks if shapes.any(rf"^{re.escape(block)}\.mlp\.")]
    if not layers:
        return {"mlp_ratio": 0.0}
    hidden = [shapes.matrix(f"{layer}.fc2.weight")[1] for layer, _ in layers]
    gated = shapes.matrix(f"{layers[0][0]}.fc1.weight")[0] == 2 * hidden[0]
    return {"mlp_ratio": _ratio(shapes, "the MLP's width", [dim for _, dim in layers], hidden), "gmlp": gated}


def _size(shapes: _Shapes, what: str, sizes: list[int], automatic: list[int]) -> int | str:
    """The one size of all stages, else ``"auto"`` if that gives these."""
    if len(set(sizes)) == 1:
        return sizes[0]
    if sizes != automatic:
        raise shapes.refusal(f"{what} is {sizes} in its stages; want the same in all, or {automatic}")
    return "auto"


def _ratio(shapes: _Shapes, what: str, dims: list[int], widths: list[int]) -> float:
    """The ratio of the fewest decimals with ``int(ratio · dim) = width`` in every stage."""
    least = max(width / dim for dim, width in zip(dims, widths, strict=True))
    for decimals in range(10):
        ratio: float = math.ceil(least * 10**decimals - 1e-6) / 10**decimals
        if all(int(ratio * dim) == width for dim, width in zip(dims, widths, strict=True)):
            return ratio
    raise shapes.refusal(f"{what} {widths} over channels {dims} is not one ratio")
