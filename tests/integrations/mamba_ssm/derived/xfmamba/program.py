"""Two views of a patient fused: a cross-scan in Triton, and B of each view with the C of both.

After the calls of XZheng0427/XFMamba, models/fusion_vmamba.py.
"""

from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F

try:
    from .csm_triton import cross_merge_fn, cross_scan_fn
except:  # noqa: E722
    from csm_triton import cross_merge_fn, cross_scan_fn

try:
    from .csms6s import selective_scan_fn
except:  # noqa: E722
    from csms6s import selective_scan_fn


class CrossSS2D(nn.Module):
    def __init__(self, dim, d_state=1, rank=2, backend=None):
        super().__init__()
        self.sizes = [rank, d_state, d_state]
        self.x_proj_weight = nn.Parameter(torch.randn(4, sum(self.sizes), dim) * dim**-0.5)
        self.dt_projs_weight = nn.Parameter(torch.randn(4 * dim, rank, 1) * 0.1)
        self.dt_projs_bias = nn.Parameter(torch.linspace(-5, -2, 4 * dim).view(4, dim))
        self.A_logs = nn.Parameter(torch.zeros(4 * dim, d_state))
        self.Ds = nn.Parameter(torch.ones(4 * dim))
        self.out_norm = nn.LayerNorm(dim)
        self.selective_scan = partial(selective_scan_fn, backend=backend)

    def sequences(self, x):
        xs = cross_scan_fn(x, in_channel_first=True, out_channel_first=True, scans=0, force_torch=False)
        dts, Bs, Cs = torch.einsum("bkdl,kcd->bkcl", xs, self.x_proj_weight).split(self.sizes, 2)
        dts = F.conv1d(dts.contiguous().flatten(1, 2), self.dt_projs_weight, groups=4)
        return xs.flatten(1, 2), dts.contiguous(), Bs.contiguous(), Cs.contiguous()

    def run(self, xs, dts, Bs, Cs, shape):
        As = -self.A_logs.to(torch.float).exp()
        delta_bias = self.dt_projs_bias.view(-1).to(torch.float)
        ys = self.selective_scan(xs, dts, As, Bs, Cs, self.Ds, delta_bias, True, True)
        b, _, h, w = shape
        y = cross_merge_fn(
            ys.view(b, 4, -1, h, w), in_channel_first=True, out_channel_first=True, scans=0, force_torch=False
        )
        return self.out_norm(y.transpose(1, 2)).transpose(1, 2).view(shape)

    def forward(self, x, x2):
        xs, dts, Bs, Cs = self.sequences((x + x2) / 2)
        y = self.run(xs, dts, Bs, Cs, x.shape)
        for view in (x, x2):
            xs, dts, Bs, _ = self.sequences(view)
            y = y + self.run(xs, dts, Bs, Cs, x.shape)
        return y


class Classifier(nn.Module):
    def __init__(self, dim=4, classes=2):
        super().__init__()
        self.embed = nn.Conv2d(1, dim, 4, 4)
        self.first, self.second = CrossSS2D(dim), CrossSS2D(dim, d_state=4, backend="mamba")
        self.head = nn.Linear(dim, classes)

    def forward(self, x, x2):
        x, x2 = self.embed(x), self.embed(x2)
        x = x + self.first(x, x2)
        x = x + self.second(x, x2)
        return self.head(x.mean((2, 3)))


if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.append(str(Path(__file__).parents[1]))
    from training import train

    torch.manual_seed(0)
    train(Classifier(), torch.randn(2, 1, 16, 12), torch.randn(2, 1, 16, 12), target=torch.arange(2))
