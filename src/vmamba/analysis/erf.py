"""Effective receptive fields (arXiv 1701.04128): how much each pixel moves the middle of a network's last map.

As in VMamba's figure 5 (arXiv 2401.10166, §5.4): the gradient of the middle place, summed over channels, with respect
to the image; its size summed over colours and averaged over images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vmamba.analysis.blocks import evaluating, trunk_of
from vmamba.errors import ConfigError
from vmamba.models.trunk import Trunk

#: Shares of the whole influence whose areas are told.
SHARES = (0.2, 0.3, 0.5, 0.99)

#: From a batch of images to the last map, ``(b, c, h, w)``.
Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ReceptiveField:
    """What a network's middle place sees.

    Attributes:
        name: the network's.
        influence: ``(H, W)``: each pixel's, averaged over the images; float64, on the CPU, not scaled.
        images: how many.
        parameters: of the network up to the map, if that is known.
    """

    name: str
    influence: Tensor
    images: int
    parameters: int | None = None

    def area(self, share: float) -> float:
        """The smallest centred square or rectangle of the image's shape that holds ``share`` of all influence.

        Returns:
            Its area, as a share of the image's. Small: the network looks at the middle; near 1: everywhere.

        Raises:
            ConfigError: ``share`` is not above 0 and at most 1.
        """
        if not 0 < share <= 1:
            raise ConfigError(f"share={share}: want a part of the whole, above 0 and up to 1")
        height, width = self.influence.shape
        rows = (torch.arange(height, dtype=torch.float64) + 0.5 - height / 2).abs() / (height / 2)
        columns = (torch.arange(width, dtype=torch.float64) + 0.5 - width / 2).abs() / (width / 2)
        # Of each pixel, the half side of the smallest rectangle that holds its centre, as a share of the image's.
        side, order = torch.maximum(rows[:, None], columns[None, :]).flatten().sort(stable=True)
        held = self.influence.flatten()[order].cumsum(0)
        # Half a pixel beyond the centre of the last one that is needed.
        place = int(torch.searchsorted(held, share * held[-1]).clamp(max=len(side) - 1))
        return min(float(side[place]) + 1 / min(height, width), 1.0) ** 2

    def areas(self) -> dict[float, float]:
        """`area` for 20, 30, 50 and 99 % of the influence."""
        return {share: self.area(share) for share in SHARES}


def receptive_field(model: nn.Module | Features, images: Iterable[Tensor], name: str = "") -> ReceptiveField:
    """The effective receptive field of the middle place of a network's last map.

    Args:
        model: a network with a VMamba trunk, whose last map is taken; or any other module or function from images ``(b,
            in_chans, H, W)`` to a map ``(b, c, h, w)``, such as `vmamba.analysis.networks.timm_network` makes. A module
            is run in eval mode and left as it was.
        images: batches ``(b, in_chans, H, W)`` of one size, preprocessed.
        name: what plots call it.

    Raises:
        ConfigError: no image, images of several sizes, or a network that gives no map.
    """
    features, parts = _features(model)
    total, count = torch.zeros(0), 0
    with evaluating(model) if isinstance(model, nn.Module) else nullcontext():
        for batch in images:
            found = _influence(features, batch)
            if count and total.shape != found.shape:
                raise ConfigError(f"images of {tuple(total.shape)} and {tuple(found.shape)} pixels; give one size")
            total = total + found if count else found
            count += len(batch)
    if not count:
        raise ConfigError("a receptive field is an average over images; none was given")
    parameters = sum(p.numel() for part in parts for p in part.parameters()) if parts else None
    return ReceptiveField(name or type(model).__name__, total / count, count, parameters)


def _features(model: nn.Module | Features) -> tuple[Features, tuple[nn.Module, ...]]:
    """What makes the map, and the modules that take part in it."""
    if not isinstance(model, nn.Module):
        return model, ()
    if not any(isinstance(module, Trunk) for module in model.modules()):
        return model, (model,)
    trunk = trunk_of(model)
    return _trunk_features(trunk), (trunk.patch_embed, trunk.layers)


def _influence(features: Features, batch: Tensor) -> Tensor:
    """Of each pixel, summed over the batch's images."""
    with torch.enable_grad():
        pixels = batch.detach().requires_grad_(True)
        maps = features(pixels)
        if maps.dim() != 4:
            raise ConfigError(f"the network gives {tuple(maps.shape)}, not a map (b, c, h, w), so it has no middle")
        middle = maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2].sum()
        (gradient,) = torch.autograd.grad(middle, pixels)
    return gradient.abs().sum((0, 1)).double().cpu()


def _trunk_features(trunk: Trunk) -> Features:
    def features(images: Tensor) -> Tensor:
        x = trunk.embed(images)
        for stage in trunk.stages():
            x = stage(x)
        return x.permute(0, 3, 1, 2)

    return features
