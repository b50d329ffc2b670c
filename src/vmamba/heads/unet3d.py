"""A U-Net over volumes: an encoder of SS3D blocks, a decoder of plain 3-d convolutions (arXiv 1606.06650)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vmamba.architecture.volumes import VolumeConfig
from vmamba.errors import ConfigError, InputError
from vmamba.models.volumes import VolumeTrunk


class ConvNormAct3d(nn.Sequential):
    """A 3×3×3 convolution, instance norm, leaky ReLU: ``(b, c, z, h, w) → (b, c', z, h, w)``."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__(
            nn.Conv3d(dim, out_dim, 3, padding=1), nn.InstanceNorm3d(out_dim, affine=True), nn.LeakyReLU(0.01)
        )


class UpLevel(nn.Module):
    """Up to the next finer map's size, beside that map, and two convolutions."""

    def __init__(self, dim: int, skip_dim: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(dim, skip_dim, stride, stride)
        self.convs = nn.Sequential(ConvNormAct3d(2 * skip_dim, skip_dim), ConvNormAct3d(skip_dim, skip_dim))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``(b, c, z, h, w)`` and the finer map ``(b, c', z', h', w')`` to ``(b, c', z', h', w')``."""
        y: Tensor = self.convs(torch.cat([self.up(x), skip], dim=1))
        return y


class VolumeDecoder(nn.Module):
    """From the stages' maps to logits of the finest, or with deep supervision of all but the coarsest.

    Args:
        config: the encoder's.
        deep_supervision: give logits for every level, the finest first.
    """

    def __init__(self, config: VolumeConfig, deep_supervision: bool) -> None:
        super().__init__()
        dims, strides = config.dims, config.strides
        finer = range(len(dims) - 1)
        self.deep_supervision = deep_supervision
        self.levels = nn.ModuleList(UpLevel(dims[i + 1], dims[i], strides[i + 1]) for i in finer)
        self.heads = nn.ModuleList(nn.Conv3d(dims[i], config.num_classes, 1) for i in finer)
        # Where the stem has a stride, the finest logits are made of a map that is brought up to the volume's size.
        first = strides[0]
        self.up = nn.ConvTranspose3d(dims[0], dims[0], first, first) if max(first) > 1 else nn.Identity()

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps ``(b, c_i, z_i, h_i, w_i)``, the finest first, to logits ``(b, num_classes, …)``, the finest first."""
        x, found = maps[-1], []
        for i in reversed(range(len(self.levels))):
            x = self.levels[i](x, maps[i])
            if i == 0 or self.deep_supervision:
                found.append(self.heads[i](self.up(x) if i == 0 else x))
        return found[::-1]


class UNet3D(nn.Module):
    """A segmenter of volumes.

    Args:
        config: a `VolumeConfig` of two stages or more, whose ``num_classes`` are the logits' channels; or leave it out
            and
        deep_supervision: give logits for every level of the decoder, the finest first.
        **options: give its fields as keywords.

    Raises:
        ConfigError, BackendError: an option that is unknown or not legal.
    """

    def __init__(self, config: VolumeConfig | None = None, *, deep_supervision: bool = False, **options: Any) -> None:
        super().__init__()
        config = VolumeConfig.of(config, options)
        if len(config.dims) < 2 or config.num_classes < 1:
            raise ConfigError(
                f"a U-Net needs two stages and a class, given dims {config.dims} and num_classes {config.num_classes}"
            )
        self.config = config
        self.encoder = VolumeTrunk(config)
        self.decoder = VolumeDecoder(config, deep_supervision)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Volumes ``(b, in_chans, Z, H, W)`` to logits ``(b, num_classes, Z, H, W)``; several where deeply supervised.

        Raises:
            InputError: another number of axes or channels, or sizes that the strides do not divide.
        """
        self._check(x)
        maps = [one.permute(0, 4, 1, 2, 3) for one in self.encoder.maps(x)]
        found: list[Tensor] = self.decoder(maps)
        return found if self.decoder.deep_supervision else found[0]

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must leave alone besides vectors and biases."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}

    def _check(self, x: Tensor) -> None:
        if torch.compiler.is_compiling() or x.dim() != 5:
            return  # the encoder says what is wrong with other axes
        if any(size % stride for size, stride in zip(x.shape[2:], self.config.stride, strict=True)):
            given, stride = ("×".join(map(str, sizes)) for sizes in (x.shape[2:], self.config.stride))
            raise InputError(f"a volume of {given} is not a multiple of the stages' strides, {stride}; pad it")
