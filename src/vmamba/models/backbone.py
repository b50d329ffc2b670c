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
        out_indices: the stages to return; empty returns the last stage's map without a norm.
        pretrained: a classification checkpoint to start from (path), or None.
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
        super().__init__(config, **options)
        stages = len(self.config.depths)
        self.out_indices = tuple(out_indices)
        if any(not 0 <= i < stages for i in self.out_indices) or len(set(self.out_indices)) < len(self.out_indices):
            raise ConfigError(f"out_indices {self.out_indices} must be distinct stages out of 0..{stages - 1}")
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
