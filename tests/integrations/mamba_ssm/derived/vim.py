"""A classifier of bidirectional blocks with a fused sum and norm, and a class token in the middle.

After the calls of hustvl/Vim, vim/models_mamba.py.
"""

import math
from functools import partial

import torch
from mamba_ssm.modules.mamba_simple import Mamba
from mamba_ssm.utils.generation import GenerationMixin  # noqa: F401 — imported there, and not used either
from mamba_ssm.utils.hf import load_config_hf, load_state_dict_hf  # noqa: F401
from torch import nn

try:
    from mamba_ssm.ops.triton.layernorm import RMSNorm, layer_norm_fn, rms_norm_fn
except ImportError:
    RMSNorm, layer_norm_fn, rms_norm_fn = None, None, None


class Block(nn.Module):
    def __init__(self, dim, mixer_cls, norm_cls=nn.LayerNorm, fused_add_norm=False, residual_in_fp32=False):
        super().__init__()
        self.residual_in_fp32 = residual_in_fp32
        self.fused_add_norm = fused_add_norm
        self.mixer = mixer_cls(dim)
        self.norm = norm_cls(dim)
        if self.fused_add_norm:
            assert RMSNorm is not None
            assert isinstance(self.norm, (nn.LayerNorm, RMSNorm))

    def forward(self, hidden_states, residual=None, inference_params=None):
        if self.fused_add_norm:
            fused_add_norm_fn = rms_norm_fn if isinstance(self.norm, RMSNorm) else layer_norm_fn
            hidden_states, residual = fused_add_norm_fn(
                hidden_states,
                self.norm.weight,
                self.norm.bias,
                residual=residual,
                prenorm=True,
                residual_in_fp32=self.residual_in_fp32,
                eps=self.norm.eps,
            )
        else:
            residual = hidden_states if residual is None else residual + hidden_states
            hidden_states = self.norm(residual.to(dtype=self.norm.weight.dtype))
        return self.mixer(hidden_states, inference_params=inference_params), residual


def create_block(dim, layer_idx, rms_norm, fused_add_norm, bimamba_type):
    mixer_cls = partial(
        Mamba, d_state=8, layer_idx=layer_idx, bimamba_type=bimamba_type, if_divide_out=True, init_layer_scale=0.5,
        device=None, dtype=None,
    )  # fmt: skip
    norm_cls = partial(RMSNorm if rms_norm else nn.LayerNorm, eps=1e-5, device=None, dtype=None)
    return Block(dim, mixer_cls, norm_cls, fused_add_norm, residual_in_fp32=True)


class VisionMamba(nn.Module):
    def __init__(self, dim=24, classes=4):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, 8, 8)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, dim) * 0.02)
        # All that the published models are made of, and a layer norm.
        kinds = [(True, True, "v2"), (False, True, "v1"), (True, False, "none")]
        self.layers = nn.ModuleList(create_block(dim, i, *kind) for i, kind in enumerate(kinds))
        self.norm_f = RMSNorm(dim, eps=1e-5, device=None, dtype=None)
        self.head = nn.Linear(dim, classes)
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, nn.Linear) and module.bias is not None and not getattr(module.bias, "_no_reinit", False):
            nn.init.zeros_(module.bias)
        for name, p in module.named_parameters():
            if name in ["out_proj.weight", "fc2.weight"]:
                nn.init.kaiming_uniform_(p, a=math.sqrt(5))
                with torch.no_grad():
                    p /= math.sqrt(len(self.layers))

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        middle = x.shape[1] // 2
        x = torch.cat([x[:, :middle], self.cls_token.expand(len(x), -1, -1), x[:, middle:]], 1) + self.pos_embed
        residual = None
        for layer in self.layers:
            x, residual = layer(x, residual, inference_params=None)
        fused_add_norm_fn = rms_norm_fn if isinstance(self.norm_f, RMSNorm) else layer_norm_fn
        x = fused_add_norm_fn(
            x,
            self.norm_f.weight,
            self.norm_f.bias,
            eps=self.norm_f.eps,
            residual=residual,
            prenorm=False,
            residual_in_fp32=True,
        )
        return self.head(x[:, middle])


if __name__ == "__main__":
    from training import train

    torch.manual_seed(0)
    train(VisionMamba(), torch.randn(4, 3, 32, 32), target=torch.arange(4))
