"""Networks over volumes: the stages of SS3D blocks, and a classifier of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vmamba.architecture.volumes import VolumeConfig
from vmamba.errors import InputError
from vmamba.layers.norm import LayerNorm
from vmamba.layers.vss_block3d import VSSBlock3D
from vmamba.models.trunk import init_weights, undecayed
from vmamba.scan.any_order import along


class VolumeStep(nn.Module):
    """A convolution to the next stage's resolution and channels, and a norm."""

    def __init__(self, dim: int, out_dim: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        same = max(stride) == 1
        size = (3, 3, 3) if same else stride
        self.conv = nn.Conv3d(dim, out_dim, size, stride, padding=1 if same else 0)
        self.norm = LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, z, h, w, c) → (b, z', h', w', c')``."""
        y: Tensor = self.norm(self.conv(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1))
        return y


class VolumeStage(nn.Module):
    """The step to a resolution, then the blocks there."""

    def __init__(self, step: VolumeStep, blocks: nn.Sequential) -> None:
        super().__init__()
        self.step = step
        self.blocks = blocks

    def forward(self, x: Tensor) -> Tensor:
        """``(b, z, h, w, c) → (b, z', h', w', c')``."""
        y: Tensor = self.blocks(self.step(x))
        return y


class VolumeTrunk(nn.Module):
    """The stages of a `VolumeConfig`.

    Args:
        config: the network; or leave it out and
        **options: give its fields as keywords.

    Raises:
        ConfigError, BackendError: an option that is unknown or not legal.
    """

    def __init__(self, config: VolumeConfig | None = None, **options: Any) -> None:
        super().__init__()
        self.config = config = VolumeConfig.of(config, options)
        rates = iter(config.drop_path_rates())
        ins = (config.in_chans, *config.dims)
        self.layers = nn.ModuleList(
            VolumeStage(
                VolumeStep(ins[i], dim, config.strides[i]),
                nn.Sequential(*(self._block(dim, next(rates)) for _ in range(config.depths[i]))),
            )
            for i, dim in enumerate(config.dims)
        )

    def _block(self, dim: int, drop_path: float) -> VSSBlock3D:
        config = self.config
        return VSSBlock3D(
            hidden_dim=dim,
            drop_path=drop_path,
            ssm_d_state=config.ssm_d_state,
            ssm_ratio=config.ssm_ratio,
            ssm_dt_rank=config.ssm_dt_rank,
            ssm_act_layer=config.ssm_act_layer,
            ssm_conv=config.ssm_conv,
            ssm_init=config.ssm_init,
            scan_orders=along(config.scan_axes, 3),
            share_directions=config.share_directions,
            mlp_ratio=config.mlp_ratio,
            use_checkpoint=config.use_checkpoint,
            selective_scan_backend=config.selective_scan_backend,
        )

    def maps(self, x: Tensor) -> list[Tensor]:
        """Volumes ``(b, in_chans, Z, H, W)`` to each stage's map ``(b, z_i, h_i, w_i, c_i)``.

        Raises:
            InputError: another number of axes or channels, or a volume smaller than the stages need.
        """
        self._check(x)
        x = x.permute(0, 2, 3, 4, 1)
        found = []
        for stage in self.layers:
            x = stage(x)
            found.append(x)
        return found

    def _check(self, x: Tensor) -> None:
        config = self.config
        if x.dim() != 5 or x.shape[1] != config.in_chans:
            raise InputError(f"the model takes volumes (b, {config.in_chans}, Z, H, W), given {tuple(x.shape)}")
        if not x.is_floating_point():
            raise InputError(f"the model takes floating-point volumes, given {x.dtype}; convert and normalise them")
        if torch.compiler.is_compiling():
            return  # the comparison below would fix the size range of a traced graph
        if any(size < least for size, least in zip(x.shape[2:], config.stride, strict=True)):
            given, least = ("×".join(map(str, sizes)) for sizes in (x.shape[2:], config.stride))
            raise InputError(f"a volume of {given} is smaller than the stages need; give at least {least}")

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must leave alone besides vectors and biases."""
        return undecayed(self)


class VSSM3D(VolumeTrunk):
    """A VMamba network that classifies volumes.

    Args:
        config: a `VolumeConfig`; or leave it out and
        **options: give its fields as keywords.

    Raises:
        ConfigError, BackendError: an option that is unknown or not legal.
    """

    def __init__(self, config: VolumeConfig | None = None, **options: Any) -> None:
        super().__init__(config, **options)
        width, classes = self.config.dims[-1], self.config.num_classes
        self.norm = LayerNorm(width)
        self.head = nn.Linear(width, classes) if classes else nn.Identity()
        self.head.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        """Volumes ``(b, in_chans, Z, H, W)`` to logits ``(b, num_classes)``, or without a head to features ``(b, c)``.

        Raises:
            InputError: as `VolumeTrunk.maps`.
        """
        logits: Tensor = self.head(self.norm(self.maps(x)[-1]).mean((1, 2, 3)))
        return logits
