"""U-Net and FPN: decoders of segmentation-models-pytorch over the backbone's maps. It is imported when one is built."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.architecture.decoders import FPNConfig, UNetConfig
from vmamba.errors import ConfigError
from vmamba.heads.blocks import ConvBlock, classes

_INSTALL = "needs segmentation-models-pytorch, which is not installed: pip install segmentation-models-pytorch"


class UNetHead(nn.Module):
    """U-Net's decoder (arXiv 1505.04597) with a skip at every stride, up to the image's own size.

    A ResNet gives segmentation-models-pytorch's decoder a map of stride 2; the backbone's first map has stride 4. So a
    small stem halves the image once with two 3×3 blocks, and where the first stride is 8 twice. Its weights belong to
    the decoder: no classifier's checkpoint has them.

    Args:
        config: its options.
        in_channels: of the maps, finest first.
        num_classes: of the logits.
        in_chans: image channels.
        stride: of the finest map, pixels.
    """

    gives_full_size = True

    def __init__(
        self, config: UNetConfig, in_channels: Sequence[int], num_classes: int, in_chans: int, stride: int
    ) -> None:
        super().__init__()
        try:
            from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
        except ImportError as error:
            raise ConfigError(f"U-Net {_INSTALL}") from error
        halvings = stride.bit_length() - 1
        if stride < 2 or stride != 2**halvings:
            raise ConfigError(
                f"U-Net takes a backbone whose first map has a stride of 2, 4, 8, …; this one's is {stride}"
            )
        steps = len(in_channels) + halvings - 1
        if len(config.decoder_channels) != steps:
            raise ConfigError(
                f"decoder_channels {config.decoder_channels} must have {steps} widths: "
                f"one for each step from the coarsest map to the image"
            )
        finer = [config.stem_channels] * (halvings - 1)
        widths = [in_chans, *finer]
        self.stem = nn.ModuleList(
            nn.Sequential(ConvBlock(width, out, 3, stride=2), ConvBlock(out, out, 3))
            for width, out in zip(widths, finer, strict=False)
        )
        self.decoder = UnetDecoder([in_chans, *finer, *in_channels], config.decoder_channels, steps).apply(_draw)
        self.dropout = nn.Dropout2d(config.dropout_ratio)
        self.conv_seg = classes(config.decoder_channels[-1], num_classes, 3)

    def forward(self, maps: Sequence[Tensor], image: Tensor) -> Tensor:
        """Maps ``(b, c_i, h_i, w_i)``, finest first, and their image ``(b, in_chans, H, W)`` to logits of its size."""
        finer = [image]
        for block in self.stem:
            finer.append(block(finer[-1]))
        logits: Tensor = self.conv_seg(self.dropout(self.decoder([*finer, *maps])))
        return logits


class FPNHead(nn.Module):
    """The feature pyramid's segmentation decoder (arXiv 1901.02446, §3) on four maps.

    The decoder doubles a map's side with each step. Where a side is odd, the finer maps are continued by their last
    rows and columns to such sizes, and the logits are cut back.

    Args:
        config: its options.
        in_channels: of the four maps, finest first.
        num_classes: of the logits.
    """

    gives_full_size = False

    def __init__(self, config: FPNConfig, in_channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        try:
            from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
        except ImportError as error:
            raise ConfigError(f"FPN {_INSTALL}") from error
        if len(in_channels) != 4:
            raise ConfigError(f"FPN takes four maps, given {len(in_channels)}; choose out_indices")
        self.decoder = FPNDecoder(
            list(in_channels),
            encoder_depth=4,
            pyramid_channels=config.pyramid_channels,
            segmentation_channels=config.segmentation_channels,
            dropout=config.dropout_ratio,
        ).apply(_draw)
        self.conv_seg = classes(config.segmentation_channels, num_classes)

    def forward(self, maps: Sequence[Tensor], image: Tensor | None = None) -> Tensor:
        """Maps ``(b, c_i, h_i, w_i)``, finest first, to logits ``(b, num_classes, h_0, w_0)``.

        Args:
            maps: the backbone's.
            image: what they come from; U-Net takes it, this one does not.
        """
        steps = len(maps) - 1
        height, width = maps[-1].shape[2:]
        grown = [_grow(each, height * 2 ** (steps - i), width * 2 ** (steps - i)) for i, each in enumerate(maps)]
        logits: Tensor = self.conv_seg(self.decoder(grown))
        return logits[..., : maps[0].shape[2], : maps[0].shape[3]]


def _draw(module: nn.Module) -> None:
    """Fresh weights as segmentation-models-pytorch draws them (arXiv 1502.01852)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_uniform_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _grow(x: Tensor, height: int, width: int) -> Tensor:
    """The map continued at the bottom and on the right by its last values; or cut, where a step down dropped them."""
    return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]), mode="replicate")
