"""The network as a backbone for detection and segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vmamba.architecture.config import VSSMConfig
from vmamba.errors import ConfigError
from vmamba.layers.norm import make_norm
from vmamba.models.trunk import Trunk


class Backbone_VSSM(Trunk):  # noqa: N801 — upstream's name
    """The stages' outputs, each through a norm of its own.

    Args:
        out_indices: the stages to return; empty returns the last stage's map without a norm. Stages after the last one
            returned are not built: they would run for nothing, and have parameters without gradients.
        pretrained: a checkpoint to start from (path), a classifier's, segmenter's or detector's, see
            `load_backbone_weights`; or None.
        norm_layer: as in `VSSMConfig`; without it the configuration's.
        config: the network; fields given beside it take the place of its own.
        **options: the other fields of `VSSMConfig`.

    Raises:
        ConfigError, BackendError: an illegal option or stage.
        CheckpointError: ``pretrained`` does not fit.
    """

    def __init__(
        self,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        pretrained: str | Path | None = None,
        norm_layer: str | None = None,
        *,
        config: VSSMConfig | None = None,
        **options: Any,
    ) -> None:
        if norm_layer is not None:
            options["norm_layer"] = norm_layer
        config = VSSMConfig.of(config, options)
        count = len(config.depths)
        chosen = tuple(out_indices)
        if any(not 0 <= i < count for i in chosen) or len(set(chosen)) < len(chosen):
            raise ConfigError(f"out_indices {chosen} must be distinct stages out of 0..{count - 1}")
        super().__init__(config, stages=max(chosen) + 1 if chosen else count)
        self.out_indices = chosen
        for i in self.out_indices:
            self.add_module(f"outnorm{i}", make_norm(self.config.norm_layer, self.config.dims[i]))
        if pretrained is not None:
            from vmamba.weights import load_backbone_weights

            load_backbone_weights(self, pretrained)

    def forward(self, x: Tensor) -> list[Tensor] | Tensor:
        """Images ``(b, in_chans, H, W)`` to a list of ``(b, c_i, h_i, w_i)``, one for each of ``out_indices``.

        Without ``out_indices`` the last stage's map itself.
        """
        x = self.embed(x)
        outputs = []
        for i, stage in enumerate(self.stages()):
            x = stage.blocks(x)
            if i in self.out_indices:
                normed: Tensor = getattr(self, f"outnorm{i}")(x)
                outputs.append(normed.permute(0, 3, 1, 2).contiguous())
            x = stage.downsample(x)
        return outputs if self.out_indices else x.permute(0, 3, 1, 2).contiguous()
