"""A 3-d segmenter whose `Mamba` reads a volume forwards, backwards and across its slices.

After the calls of ge-xing/SegMamba, model_segmamba/segmamba.py.
"""

from __future__ import annotations

import torch
from mamba_ssm import Mamba
from torch import nn


class MambaLayer(nn.Module):
    def __init__(self, dim, d_state=16, d_conv=4, expand=2, num_slices=None):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mamba = Mamba(
            d_model=dim,
            d_state=d_state,
            d_conv=d_conv,
            expand=expand,
            bimamba_type="v3",
            nslices=num_slices,
        )

    def forward(self, x):
        tokens = x.flatten(2).transpose(-1, -2)
        y = self.mamba(self.norm(tokens))
        return y.transpose(-1, -2).reshape(x.shape) + x


class Segmenter(nn.Module):
    def __init__(self, dims=(8, 16), num_slices=(8, 4), classes=2):
        super().__init__()
        self.stem = nn.Conv3d(1, dims[0], 3, 2, 1)
        self.first = MambaLayer(dims[0], num_slices=num_slices[0])
        self.between = nn.Conv3d(dims[0], dims[1], 2, 2)
        self.second = MambaLayer(dims[1], num_slices=num_slices[1])
        self.up = nn.ConvTranspose3d(dims[1], dims[0], 2, 2)
        self.out = nn.ConvTranspose3d(dims[0], classes, 2, 2)

    def forward(self, x):
        first = self.first(self.stem(x))
        return self.out(first + self.up(self.second(self.between(first))))


if __name__ == "__main__":
    from training import train

    torch.manual_seed(0)
    model = Segmenter()
    own = {name.partition("first.mamba.")[2] for name in model.state_dict()}
    assert {"A_log", "A_b_log", "A_s_log", "D_s", "conv1d_s.weight", "dt_proj_s.bias"} <= own
    train(model, torch.randn(1, 1, 16, 8, 8), target=torch.randint(2, (1, 16, 8, 8)))
