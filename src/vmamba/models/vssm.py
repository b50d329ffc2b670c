"""VSSM, the VMamba classifier (arXiv 2401.10166, §4.1)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vmamba.errors import ConfigError
from vmamba.layers.norm import make_norm
from vmamba.models.config import VSSMConfig
from vmamba.models.trunk import Trunk, init_weights


class Classifier(nn.Module):
    """Norm, average pooling over the places, linear head."""

    def __init__(self, norm: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.head = head


class VSSM(Trunk):
    """A VMamba network that classifies images.

    Args:
        config: a `VSSMConfig`; or leave it out and
        **options: give its fields as keywords, with upstream's names.

    Raises:
        ConfigError, BackendError: an option that is unknown or not legal.
    """

    def __init__(self, config: VSSMConfig | None = None, **options: Any) -> None:
        super().__init__(config, **options)
        norm = make_norm(self.config.norm_layer, self.num_features)
        self.classifier = Classifier(norm, nn.Identity())
        self.reset_classifier(self.config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(b, in_chans, H, W)`` to logits ``(b, num_classes)``.

        Raises:
            InputError: another number of axes or channels, or an image smaller than a patch or than the stages need.
        """
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``(b, in_chans, H, W)`` to the last stage's normed map ``(b, h, w, c)``, before pooling."""
        x = self.embed(x)
        for stage in self.layers:
            x = stage(x)
        features: Tensor = self.classifier.norm(x)
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Normed map ``(b, h, w, c)`` to logits, or with ``pre_logits`` to pooled features ``(b, c)``."""
        x = x.mean((1, 2))
        if pre_logits:
            return x
        logits: Tensor = self.classifier.head(x)
        return logits

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.classifier.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put in a fresh head of ``num_classes``; 0 takes the head out. ``global_pool`` can only be average pooling."""
        if num_classes < 0:
            raise ConfigError(f"num_classes {num_classes} must not be negative; 0 takes the head out")
        if global_pool not in (None, "avg"):
            raise ConfigError(f"global_pool {global_pool!r} is not supported; VMamba pools by average ('avg')")
        self.config = self.config.replace(num_classes=num_classes)
        self.num_classes = num_classes
        like = next(self.classifier.norm.parameters())
        head: nn.Module = nn.Identity()
        if num_classes:
            head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            init_weights(head)
        self.classifier.head = head
