"""A bottleneck of `Mamba` on a flattened volume, outside autocast.

After the calls of bowang-lab/U-Mamba, umamba/nnunetv2/nets/UMambaBot_3d.py.
"""

import torch
from mamba_ssm import Mamba
from torch import nn
from torch.cuda.amp import autocast


class MambaLayer(nn.Module):
    def __init__(self, dim, d_state=16, d_conv=4, expand=2):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mamba = Mamba(
            d_model=dim,
            d_state=d_state,
            d_conv=d_conv,
            expand=expand,
        )

    @autocast(enabled=False)
    def forward(self, x):
        if x.dtype == torch.float16:
            x = x.type(torch.float32)
        volume = x.shape[2:]
        y = self.mamba(self.norm(x.flatten(2).transpose(-1, -2)))
        return y.transpose(-1, -2).reshape(*x.shape[:2], *volume)


class Segmenter(nn.Module):
    def __init__(self, channels=12, classes=2):
        super().__init__()
        self.down = nn.Sequential(nn.Conv3d(1, channels, 2, 2), nn.InstanceNorm3d(channels, affine=True), nn.GELU())
        self.bottleneck = MambaLayer(channels)
        self.up = nn.ConvTranspose3d(channels, classes, 2, 2)

    def forward(self, x):
        skip = self.down(x)
        return self.up(skip + self.bottleneck(skip))


if __name__ == "__main__":
    from training import train

    torch.manual_seed(0)
    train(Segmenter(), torch.randn(2, 1, 8, 6, 10), target=torch.randint(2, (2, 8, 6, 10)))
