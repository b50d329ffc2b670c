"""A clip's classifier whose blocks are recomputed in backward.

After the calls of OpenGVLab/VideoMamba, videomamba/video_sm/models/videomamba.py.
"""

from functools import partial

import torch
import torch.nn as nn
import torch.utils.checkpoint as checkpoint
from mamba_ssm.modules.mamba_simple import Mamba

try:
    from mamba_ssm.ops.triton.layernorm import RMSNorm, layer_norm_fn, rms_norm_fn
except ImportError:
    RMSNorm, layer_norm_fn, rms_norm_fn = None, None, None


class Block(nn.Module):
    def __init__(self, dim, mixer_cls, norm_cls):
        super().__init__()
        self.mixer, self.norm = mixer_cls(dim), norm_cls(dim)

    def forward(self, hidden_states, residual=None, inference_params=None, use_checkpoint=False):
        fused_add_norm_fn = rms_norm_fn if isinstance(self.norm, RMSNorm) else layer_norm_fn
        hidden_states, residual = fused_add_norm_fn(
            hidden_states,
            self.norm.weight,
            self.norm.bias,
            residual=residual,
            prenorm=True,
            residual_in_fp32=True,
            eps=self.norm.eps,
        )
        if use_checkpoint:
            hidden_states = checkpoint.checkpoint(self.mixer, hidden_states, inference_params, use_reentrant=False)
        else:
            hidden_states = self.mixer(hidden_states, inference_params=inference_params)
        return hidden_states, residual


class Clip(nn.Module):
    """``(b, 3, t, h, w)`` to logits."""

    def __init__(self, dim=16, depth=2, classes=3):
        super().__init__()
        self.proj = nn.Conv3d(3, dim, (1, 8, 8), (1, 8, 8))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        norm_cls = partial(RMSNorm, eps=1e-5)
        self.layers = nn.ModuleList(
            Block(dim, partial(Mamba, layer_idx=i, bimamba=True, device=None, dtype=None), norm_cls)
            for i in range(depth)
        )
        self.norm_f = norm_cls(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        x = self.proj(x).flatten(2).transpose(1, 2)
        hidden_states, residual = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1), None
        for i, layer in enumerate(self.layers):
            hidden_states, residual = layer(hidden_states, residual, use_checkpoint=i == 0)
        hidden_states = rms_norm_fn(
            hidden_states,
            self.norm_f.weight,
            self.norm_f.bias,
            eps=self.norm_f.eps,
            residual=residual,
            prenorm=False,
            residual_in_fp32=True,
        )
        # The mean beside the class token, which stands first and so knows no decay of the last layer.
        return self.head(hidden_states[:, 0, :] + hidden_states.mean(1))


if __name__ == "__main__":
    from training import train

    torch.manual_seed(0)
    train(Clip(), torch.randn(3, 3, 4, 16, 16), target=torch.arange(3))
