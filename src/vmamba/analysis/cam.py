"""Grad-CAM (arXiv 1610.02391, §3): which places of the last map speak for a class.

Of a network that labels places, a class's logit is its mean over the places that are given the class, as in
Seg-Grad-CAM (arXiv 2002.11434).

Our maps are channels-last, so the gradients are averaged over axes 1 and 2; tools written for ``(b, c, h, w)`` average
the wrong ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vmamba.analysis.blocks import evaluating, one_image, stage_of
from vmamba.errors import ConfigError


@dataclass(frozen=True)
class ClassMap:
    """What speaks for a class.

    Attributes:
        label: the class's index.
        logit: its logit; of a network that labels places the mean over those that are given the class, over all where
            none is.
        weights: ``(h, w)``, each place's part in it, 0 or more; the largest is 1, unless nothing speaks for the class.
    """

    label: int
    logit: float
    weights: Tensor


def class_map(
    model: nn.Module, image: Tensor, label: int | None = None, stage: int = -1, background: Sequence[int] = ()
) -> ClassMap:
    """Grad-CAM of a class for an image.

    Args:
        model: a network with one VMamba trunk whose output is ``(b, classes)`` or, for each place, ``(b, classes, H,
            W)``. It is run in eval mode and left as it was.
        image: ``(in_chans, H, W)`` or ``(1, in_chans, H, W)``, preprocessed.
        label: the class; by default the likeliest, and of a network that labels places the one that most are given.
        stage: whose last map, from 0; negative ones count from the last.
        background: classes of places that are not taken by default, as long as any place is given another.

    Raises:
        ConfigError: several images, or no such class or stage.
    """
    batch = one_image("class map", image)
    blocks = stage_of(model, stage).blocks
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_(True))  # so that gradients reach this map and go no further
        return kept[0]

    hook = blocks.register_forward_hook(keep)
    try:
        with evaluating(model), torch.enable_grad():
            logits = model(batch)
            if not isinstance(logits, Tensor) or logits.dim() not in (2, 4):
                raise ConfigError(f"a {type(model).__name__} gives no logits of classes, so no class can be mapped")
            logits = logits[0].flatten(1) if logits.dim() == 4 else logits.T  # (classes, places)
            if label is not None and not 0 <= label < len(logits):
                raise ConfigError(f"label={label}: the model has {len(logits)} classes, from 0")
            labels = logits.argmax(0)
            chosen = _most_frequent(labels, background) if label is None else label
            given = labels == chosen
            logit = logits[chosen][given if given.any() else slice(None)].mean()
            (gradient,) = torch.autograd.grad(logit, kept[0])
    finally:
        hook.remove()
    speaks = (kept[0] * gradient.mean((1, 2), keepdim=True)).sum(-1)[0].detach().relu()
    return ClassMap(chosen, float(logit.detach()), speaks / speaks.max().clamp(min=torch.finfo().tiny))


def _most_frequent(labels: Tensor, background: Sequence[int]) -> int:
    counts = labels.bincount()
    others = counts.clone()
    others[[one for one in background if one < len(counts)]] = 0
    return int((others if others.any() else counts).argmax())
