"""Networks that give every pixel a class: a VMamba backbone and a decode head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vmamba.architecture.decoders import FPNConfig, UNetConfig, UPerHeadConfig
from vmamba.architecture.segmenters import SegmenterConfig
from vmamba.errors import ConfigError
from vmamba.functional.pyramid import resize
from vmamba.heads.fcn import FCNHead
from vmamba.heads.upernet import UPerHead
from vmamba.models.backbone import Backbone_VSSM


class Segmenter(nn.Module):
    """A backbone, a decode head, and perhaps an auxiliary head for training.

    Args:
        backbone: the options of `VSSMConfig`, and perhaps ``out_indices`` and ``pretrained``, a checkpoint as
            `Backbone_VSSM` takes it.
        decode_head: options of the head that its ``type`` names (UPerHead, UNet or FPN), and ``num_classes``;
            ``in_channels`` is checked.
        auxiliary_head: options of `FCNHead`; or None.
        config: all of these together, in their stead.

    Raises:
        ConfigError: an unknown word, an illegal value, parts that do not go together, or a decoder whose package is
            missing.
        CheckpointError: ``pretrained`` does not fit.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any] | None = None,
        decode_head: Mapping[str, Any] | None = None,
        auxiliary_head: Mapping[str, Any] | None = None,
        *,
        config: SegmenterConfig | None = None,
    ) -> None:
        super().__init__()
        pretrained = None
        if config is None:
            options = dict(backbone or {})
            pretrained = options.pop("pretrained", None)
            parts = {"backbone": options, "decode_head": decode_head, "auxiliary_head": auxiliary_head}
            config = SegmenterConfig.from_dict(parts)
        elif (backbone, decode_head, auxiliary_head) != (None, None, None):
            raise ConfigError("give either config or backbone, decode_head and auxiliary_head, not both")
        self.config = config
        self.num_classes, self.in_chans = config.num_classes, config.in_chans
        assert config.out_indices is not None
        self.backbone = Backbone_VSSM(config.out_indices, pretrained, config=config.backbone)
        self.decode_head = _decode_head(config)
        self.auxiliary_head = (
            None
            if config.auxiliary_head is None
            else FCNHead(config.auxiliary_head, config.in_channels, config.num_classes)
        )

    def forward(self, x: Tensor, own_strides: bool = False) -> Any:
        """Images ``(b, in_chans, H, W)`` to logits ``(b, num_classes, H, W)``, float32 or wider.

        With ``own_strides`` what `logits` gives: training in several processes must go through here.

        The decode head's logits are resized to the images' size, bilinearly.

        Raises:
            InputError: another number of axes or channels, or an image smaller than the stages need.
        """
        if own_strides:
            return self.logits(x)
        logits: Tensor = self.decode_head(self.backbone(x), x)
        full = logits if logits.dtype.itemsize >= 4 else logits.float()
        return full if self.decode_head.gives_full_size else resize(full, x.shape[2:])

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images ``(b, in_chans, H, W)`` to both heads' logits ``(b, num_classes, h, w)``, each at its own stride.

        Returns:
            the decode head's, and the auxiliary head's or None where there is none.
        """
        maps = self.backbone(x)
        return self.decode_head(maps, x), None if self.auxiliary_head is None else self.auxiliary_head(maps)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must leave alone besides vectors and biases."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's blocks in backward instead of keeping their activations."""
        self.backbone.set_grad_checkpointing(enable)


class UPerNet(Segmenter):
    """UPerNet (arXiv 1807.10221) on a VMamba backbone, as upstream trains it on ADE20K: see `Segmenter`.

    Its keys are those of OpenMMLab's ``EncoderDecoder`` with ``MM_VSSM``, ``UPerHead`` and ``FCNHead``, and so are the
    words of the three dicts. What in them is about training (losses, samplers) is left out.

    ``decode_head`` takes ``channels``, ``num_classes``, ``pool_scales`` and ``dropout_ratio``; ``auxiliary_head``
    ``channels``, ``in_index``, ``num_convs``, ``kernel_size``, ``concat_input`` and ``dropout_ratio``.

    Raises:
        ConfigError: as `Segmenter`; and a decode head of another type.
        CheckpointError: as `Segmenter`.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any] | None = None,
        decode_head: Mapping[str, Any] | None = None,
        auxiliary_head: Mapping[str, Any] | None = None,
        *,
        config: SegmenterConfig | None = None,
    ) -> None:
        super().__init__(backbone, decode_head, auxiliary_head, config=config)
        kind = self.config.decode_head.type
        if kind != UPerHeadConfig.type:
            raise ConfigError(f"UPerNet has a {UPerHeadConfig.type}, not a {kind}; vmamba.heads.Segmenter takes all")


def build_segmenter(config: SegmenterConfig | Mapping[str, Any]) -> Segmenter:
    """The network of a configuration, or of the dict that `SegmenterConfig.to_dict` gives, with fresh weights.

    Raises:
        ConfigError: an illegal configuration, or a decoder whose package is missing.
    """
    if not isinstance(config, SegmenterConfig):
        config = SegmenterConfig.from_dict(config)
    kind = UPerNet if isinstance(config.decode_head, UPerHeadConfig) else Segmenter
    return kind(config=config)


def _decode_head(config: SegmenterConfig) -> nn.Module:
    head, widths, classes = config.decode_head, config.in_channels, config.num_classes
    if isinstance(head, UPerHeadConfig):
        return UPerHead(head, widths, classes)
    from vmamba.heads.smp import FPNHead, UNetHead

    if isinstance(head, FPNConfig):
        return FPNHead(head, widths, classes)
    assert isinstance(head, UNetConfig)
    assert config.out_indices is not None
    stride = config.backbone.stem_stride * 2 ** config.out_indices[0]
    return UNetHead(head, widths, classes, config.in_chans, stride)
