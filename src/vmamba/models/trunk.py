"""The part that classifier and backbone share: patch embedding, positional embedding and the stages of VSS blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vmamba.architecture.config import VSSMConfig
from vmamba.errors import InputError
from vmamba.layers.downsample import make_downsample
from vmamba.layers.patch_embed import make_patch_embed, resize_pos_embed
from vmamba.layers.vss_block import VSSBlock


class Stage(nn.Module):
    """The blocks of one resolution, then the step down to the next."""

    def __init__(self, blocks: nn.Sequential, downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = blocks
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """``(b, h, w, c) → (b, h', w', c')``."""
        y: Tensor = self.downsample(self.blocks(x))
        return y


class Trunk(nn.Module):
    """Embedding and stages, built from a `VSSMConfig` or from its fields as keywords; all, or the first ``stages``."""

    def __init__(self, config: VSSMConfig | None = None, *, stages: int | None = None, **options: Any) -> None:
        super().__init__()
        self.config = config = VSSMConfig.of(config, options)
        self.dims = list(config.dims)
        self.num_features = self.embed_dim = config.dims[-1]

        if config.posembed:
            grid = config.imgsize // config.patch_size
            self.pos_embed: nn.Parameter | None = nn.Parameter(torch.zeros(1, config.dims[0], grid, grid))
        else:
            self.register_parameter("pos_embed", None)
        self.patch_embed = make_patch_embed(
            config.patchembed_version,
            config.in_chans,
            config.dims[0],
            config.patch_size,
            config.patch_norm,
            config.norm_layer,
        )
        rates = iter(config.drop_path_rates())
        count = len(config.depths) if stages is None else stages
        self.layers = nn.ModuleList(
            self._make_stage(stage, [next(rates) for _ in range(depth)], stage == count - 1)
            for stage, depth in enumerate(config.depths[:count])
        )
        self.apply(init_weights)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def _make_stage(self, stage: int, drop_path: Sequence[float], last: bool) -> Stage:
        config = self.config
        dim = config.dims[stage]
        blocks = nn.Sequential(
            *(
                VSSBlock(
                    hidden_dim=dim,
                    drop_path=rate,
                    norm_layer=config.norm_layer,
                    ssm_d_state=config.ssm_d_state,
                    ssm_ratio=config.ssm_ratio,
                    ssm_dt_rank=config.ssm_dt_rank,
                    ssm_act_layer=config.ssm_act_layer,
                    ssm_conv=config.ssm_conv,
                    ssm_conv_bias=config.ssm_conv_bias,
                    ssm_drop_rate=config.ssm_drop_rate,
                    ssm_init=config.ssm_init,
                    forward_type=config.forward_type,
                    mlp_ratio=config.mlp_ratio,
                    mlp_act_layer=config.mlp_act_layer,
                    mlp_drop_rate=config.mlp_drop_rate,
                    gmlp=config.gmlp,
                    use_checkpoint=config.use_checkpoint,
                    post_norm=config.post_norm,
                    selective_scan_backend=config.selective_scan_backend,
                )
                for rate in drop_path
            )
        )
        downsample: nn.Module = (
            nn.Identity()
            if last
            else make_downsample(config.downsample_version, dim, config.dims[stage + 1], config.norm_layer)
        )
        return Stage(blocks, downsample)

    def stages(self) -> Iterator[Stage]:
        """The stages in order."""
        for stage in self.layers:
            assert isinstance(stage, Stage)
            yield stage

    def embed(self, x: Tensor) -> Tensor:
        """Images ``(b, in_chans, H, W)`` to tokens ``(b, h, w, c)``, positional embedding added where there is one."""
        self._check_images(x)
        x = self.patch_embed(x.permute(0, 2, 3, 1).contiguous())
        if self.pos_embed is not None:
            x = x + resize_pos_embed(self.pos_embed, x.shape[1], x.shape[2]).permute(0, 2, 3, 1)
        return x

    def _check_images(self, x: Tensor) -> None:
        config = self.config
        if isinstance(x, torch.fx.Proxy):
            return  # symbolic tracing has no values to look at
        if x.dim() != 4 or x.shape[1] != config.in_chans:
            mend = f"; build it with in_chans={x.shape[1]}, weights are adapted" if x.dim() == 4 else ""
            raise InputError(f"the model takes images (b, {config.in_chans}, H, W), given {tuple(x.shape)}{mend}")
        if not x.is_floating_point():
            raise InputError(
                f"the model takes floating-point images, given {x.dtype}; convert and normalise them first"
            )
        if torch.compiler.is_compiling():
            return  # the comparisons below would fix the size range of a traced graph
        # Only downsample v2 drops an odd last row; every other step rounds up or needs one place.
        halvings = len(config.depths) - 1 if config.downsample_version == "v2" else 0
        least = config.stem_stride * 2**halvings
        if min(x.shape[2:]) < least:
            why = "a patch" if not halvings else f"its {len(config.depths)} stages need"
            raise InputError(
                f"image of {x.shape[2]}×{x.shape[3]} pixels is smaller than {why}; give at least {least}×{least}, "
                f"or build the model with a smaller patch_size (now {config.patch_size})"
            )

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must leave alone besides vectors and biases."""
        return undecayed(self)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in backward instead of keeping their activations."""
        self.config = self.config.replace(use_checkpoint=enable)
        for module in self.modules():
            if isinstance(module, VSSBlock):
                module.use_checkpoint = enable


def init_weights(module: nn.Module) -> None:
    """Linear layers: truncated normal of std 0.02, zero bias. The scan's own parameters keep theirs."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def undecayed(network: nn.Module) -> set[str]:
    """Names of a network's parameters that weight decay must leave alone besides vectors and biases."""
    tails = ("pos_embed", "A_logs", "Ds", "dt_projs_bias")
    return {name for name, _ in network.named_parameters() if name.rsplit(".", 1)[-1] in tails}
