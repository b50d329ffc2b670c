"""What a network costs for an image: parameters, multiply-adds, operations and activations of every module.

It is run once on tensors without memory, so that the largest network at the largest size takes a second. Every
convolution, product and attention is counted by torch's own formulas, scans by the one of `vmamba.scan.work`. Norms,
pooling and resizing, some per cent of the operations, are in one figure alone, that of the package fvcore, with which
VMamba's published figures were counted. Activations and sums of maps are counted nowhere.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vmamba.errors import ConfigError
from vmamba.flops import FORMULAS
from vmamba.heads.mask_rcnn import MaskRCNN
from vmamba.heads.mask_rcnn.dense import DensePart
from vmamba.inference.engines import Optimized
from vmamba.scan import dispatch, schema

#: Height and width of an image in pixels.
Size = tuple[int, int]


@dataclass(frozen=True)
class ModuleCost:
    """What one module costs for one image, what is in it included.

    Attributes:
        name: dotted, as in ``named_modules``; empty for the whole network.
        kind: its class.
        parameters: numbers in its parameters; those that several modules share count once.
        macs: multiply-adds, with the scan's operations; what most papers call FLOPs.
        flops: floating-point operations, two for a multiply-add.
        fvcore: ``macs``, and besides five operations for each value of a layer or group norm, two of a batch norm, four
            of a map that is resized and one that is pooled: what fvcore counts and VMamba's authors published.
        activations: numbers that products, convolutions and scans put out.
    """

    name: str
    kind: str
    parameters: int
    macs: int
    flops: int
    fvcore: int
    activations: int

    @property
    def depth(self) -> int:
        """0 for the whole network, 1 for its parts, and so on."""
        return self.name.count(".") + 1 if self.name else 0


@dataclass(frozen=True)
class Cost:
    """What a network costs for one image.

    Attributes:
        size: of the image, height and width in pixels.
        modules: every module, the whole network first, in the order of ``named_modules``.
        scan_flops: the part of ``flops`` that selective scans take, their step projections included.
        regions: of a detector, the proposals and the detections that it was counted with; else None.
    """

    size: Size
    modules: tuple[ModuleCost, ...]
    scan_flops: int
    regions: tuple[int, int] | None = None

    @property
    def parameters(self) -> int:
        """Of the network."""
        return self.modules[0].parameters

    @property
    def macs(self) -> int:
        """Of the network, see `ModuleCost`."""
        return self.modules[0].macs

    @property
    def flops(self) -> int:
        """Of the network, see `ModuleCost`."""
        return self.modules[0].flops

    @property
    def fvcore(self) -> int:
        """Of the network, see `ModuleCost`."""
        return self.modules[0].fvcore

    @property
    def activations(self) -> int:
        """Of the network, see `ModuleCost`."""
        return self.modules[0].activations

    def __getitem__(self, name: str) -> ModuleCost:
        """The cost of the module of that name."""
        return next(module for module in self.modules if module.name == name)


def count_network(
    model: nn.Module,
    size: int | Size | None = None,
    *,
    in_chans: int | None = None,
    proposals: int | None = None,
    detections: int | None = None,
) -> Cost:
    """Count what a network costs for one image in evaluation mode.

    Args:
        model: a network that takes images ``(1, in_chans, H, W)``, of this package or any other; it is left as it was.
        size: of the image in pixels, a side or height and width; by default that of the network's configuration, and
            800×1280 of a detector's.
        in_chans: of the image; by default those of the network's configuration, else 3.
        proposals, detections: how many regions a detector's box head and mask head are counted with; by default as
            many as there can be.

    Raises:
        ConfigError: no size is known, an image that the network cannot take, regions for a network without any, or a
            network that cannot be run without memory.
    """
    if isinstance(model, Optimized):
        raise ConfigError("an optimized model is counted as the model that it was made from: give that one")
    config = getattr(model, "config", None)
    backbone = getattr(config, "backbone", config)
    size = _size(size, model, backbone)
    channels: int = in_chans if in_chans is not None else getattr(backbone, "in_chans", 3)
    bare = _without_memory(model).eval()
    for name, value in (("proposals", proposals), ("detections", detections)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: want 1 or more regions, or None for as many as there can be")
    regions = None
    runs: nn.Module = bare
    if isinstance(bare, MaskRCNN):
        regions = (proposals or bare.config.rpn.max_per_image, detections or bare.config.box_head.max_per_image)
        runs = _Parts(bare, *regions)
    elif proposals is not None or detections is not None:
        raise ConfigError(f"proposals and detections are of a detector, and a {type(model).__name__} is none")
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    found = _counted(runs, torch.empty(1, channels, *size, dtype=dtype, device="meta"))
    return Cost(size, _modules(bare, found), found.scan_flops, regions)


class _Parts(nn.Module):
    """The parts of a detector, run for a fixed number of regions; they have their names in it."""

    def __init__(self, detector: MaskRCNN, proposals: int, detections: int) -> None:
        super().__init__()
        self.backbone, self.neck, self.rpn_head = detector.backbone, detector.neck, detector.rpn_head
        self.roi_head = detector.roi_head
        self.proposals, self.detections = proposals, detections

    def forward(self, x: Tensor) -> None:
        DensePart.forward(self, x)  # type: ignore[arg-type]
        for head, regions in ((self.roi_head.bbox_head, self.proposals), (self.roi_head.mask_head, self.detections)):
            config = head.config
            head(x.new_empty(regions, config.in_channels, config.roi_size, config.roi_size))


@dataclass(frozen=True)
class _Counts:
    """By module, and for the whole under ``""``."""

    macs: Mapping[str, int]
    flops: Mapping[str, int]
    fvcore: Mapping[str, int]
    activations: Mapping[str, int]
    scan_flops: int


def _counted(model: nn.Module, image: Tensor) -> _Counts:
    from torch.utils import flop_counter  # it imports Triton

    def outputs(*_: Any, out_shape: Any = None, **__: Any) -> int:
        first = out_shape if isinstance(out_shape, torch.Size) else out_shape[0]  # beside it may be what is saved
        return math.prod(first)

    def macs_of(formula: Any) -> Any:
        return lambda *arguments, out_shape=None, **options: formula(*arguments, **options).macs

    scans: dict[Any, Any] = {operator: macs_of(formula) for operator, formula in FORMULAS.items()}
    besides = _fvcore_formulas()
    # A counter takes operators apart that it is not told by overload, and the last one entered is asked first.
    overloads = {getattr(operator, name): one for operator, one in besides.items() for name in operator.overloads()}
    everything: dict[Any, Any] = dict.fromkeys(flop_counter.flop_registry, outputs)
    flops, activations, macs = (
        flop_counter.FlopCounterMode(display=False, custom_mapping=mapping)
        for mapping in ({}, everything, scans | besides | overloads)
    )
    # The fused scan, which has no kernel for tensors without memory and needs none.
    with dispatch.stand_in("torch", schema), dispatch.backend("torch"), torch.no_grad():
        try:
            with flops, activations, macs:
                model(image)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            size = "×".join(map(str, image.shape[2:]))
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"a {type(model).__name__} cannot be counted at {size} pixels: {reason}") from error

    root = type(model).__name__

    def by_module(counter: Any, share: Any) -> dict[str, int]:
        return {
            name.removeprefix(root).removeprefix("."): sum(share(operator, number) for operator, number in each.items())
            for name, each in counter.get_flop_counts().items()
            if name != "Global"
        }

    def as_fvcore(operator: Any, number: int) -> int:
        return number if operator in scans or operator in besides else number // 2

    return _Counts(
        by_module(macs, lambda operator, number: 0 if operator in besides else as_fvcore(operator, number)),
        by_module(flops, lambda operator, number: number),
        by_module(macs, as_fvcore),
        by_module(activations, lambda operator, number: number),
        sum(number for operator, number in flops.get_flop_counts().get("Global", {}).items() if operator in scans),
    )


def _fvcore_formulas() -> dict[Any, Any]:
    """What fvcore counts besides products and convolutions: operators, and functions from their arguments' shapes."""
    aten = torch.ops.aten

    def layer_norm(x: Sequence[int], shape: Any, weight: Any, *_: Any, **__: Any) -> int:
        return math.prod(x) * (4 if weight is None else 5)

    def group_norm(x: Sequence[int], weight: Any, *_: Any, **__: Any) -> int:
        return layer_norm(x, None, weight)

    def batch_norm(
        x: Sequence[int], weight: Any, bias: Any, mean: Any, variance: Any, training: bool, *_: Any, **__: Any
    ) -> int:
        if training:  # instance norms too
            return group_norm(x, weight)
        return math.prod(x) * (1 if weight is None else 2)

    def of_input(x: Sequence[int], *_: Any, **__: Any) -> int:
        return math.prod(x)

    def of_output(each: int) -> Any:
        return lambda *_, out_shape=None, **__: each * math.prod(out_shape)

    return {
        aten.native_layer_norm: layer_norm,
        aten.native_group_norm: group_norm,
        aten.native_batch_norm: batch_norm,
        aten._adaptive_avg_pool2d: of_input,
        aten.upsample_nearest2d: of_output(1),
        aten.upsample_bilinear2d: of_output(4),
        aten.grid_sampler_2d: of_output(4),
    }


def _modules(model: nn.Module, found: _Counts) -> tuple[ModuleCost, ...]:
    """Every module's cost; of containers, which nobody calls, the sum of what is in them."""

    def of(values: Mapping[str, int], name: str, module: nn.Module) -> int:
        if name in values:
            return values[name]
        return sum(of(values, f"{name}.{part}".lstrip("."), child) for part, child in module.named_children())

    return tuple(
        ModuleCost(
            name,
            type(module).__name__,
            sum(p.numel() for p in module.parameters()),
            *(of(values, name, module) for values in (found.macs, found.flops, found.fvcore, found.activations)),
        )
        for name, module in model.named_modules()
    )


def _size(size: int | Size | None, model: nn.Module, config: Any) -> Size:
    if size is None:
        usual = (800, 1280) if isinstance(model, MaskRCNN) else getattr(config, "imgsize", None)
        if usual is None:
            raise ConfigError(f"a {type(model).__name__} does not say what it takes; give the size of an image")
        size = usual
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ConfigError(f"size={height}×{width}: want pixels, 1 or more")
    return height, width


def _without_memory(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers lie on the meta device, so that nothing of them is copied."""
    bare: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in model.parameters()
    }
    bare.update((id(b), torch.empty_like(b, device="meta")) for b in model.buffers())
    return copy.deepcopy(model, bare)
