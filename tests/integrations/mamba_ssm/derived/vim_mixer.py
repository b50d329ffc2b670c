"""A mixer of its own that reads a sequence both ways by mamba-ssm's inner functions, as the vision fork's does.

After the calls of hustvl/Vim, mamba-1p1p1/mamba_ssm/modules/mamba_simple.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

try:
    from causal_conv1d import causal_conv1d_fn, causal_conv1d_update
except ImportError:
    causal_conv1d_fn, causal_conv1d_update = None, None

try:
    from mamba_ssm.ops.selective_scan_interface import (
        bimamba_inner_fn,
        mamba_inner_fn,
        mamba_inner_fn_no_out_proj,
        selective_scan_fn,
    )
except ImportError:
    selective_scan_fn, mamba_inner_fn, bimamba_inner_fn, mamba_inner_fn_no_out_proj = None, None, None, None

try:
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update
except ImportError:
    selective_state_update = None


class Mixer(nn.Module):
    def __init__(self, dim, kind, d_state=4, width=4):
        super().__init__()
        inner, rank = 2 * dim, math.ceil(dim / 16)
        self.kind, self.d_state, self.rank = kind, d_state, rank
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, width, groups=inner, padding=width - 1)
        self.x_proj = nn.Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        if kind in ("v1", "v2"):
            self.A_b_log = nn.Parameter(self.A_log.detach().clone())
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def shared(self):
        return self.conv1d.weight, self.conv1d.bias, self.x_proj.weight, self.dt_proj.weight

    def forward(self, hidden_states):
        length = hidden_states.shape[1]
        xz = self.in_proj(hidden_states).transpose(1, 2)
        A = -torch.exp(self.A_log.float())
        rest = {"delta_bias": self.dt_proj.bias.float(), "delta_softplus": True}
        out = (self.out_proj.weight, self.out_proj.bias)
        if self.kind == "v1":
            A_b = -torch.exp(self.A_b_log.float())
            return bimamba_inner_fn(xz, *self.shared(), *out, A, A_b, None, None, self.D.float(), **rest)
        if self.kind == "v2":
            A_b = -torch.exp(self.A_b_log.float())
            y = mamba_inner_fn_no_out_proj(xz, *self.shared(), A, None, None, self.D.float(), **rest)
            back = mamba_inner_fn_no_out_proj(xz.flip([-1]), *self.shared(), A_b, None, None, self.D.float(), **rest)
            return F.linear((y + back.flip([-1])).transpose(1, 2) / 2, *out)
        if self.kind == "none":
            return mamba_inner_fn(xz, *self.shared(), *out, A, None, None, self.D.float(), **rest)
        # The slow path.
        x, z = xz.chunk(2, dim=1)
        x = causal_conv1d_fn(
            x=x,
            weight=self.conv1d.weight.flatten(1),
            bias=self.conv1d.bias,
            activation="silu",
        )
        x_dbl = self.x_proj(x.transpose(1, 2).reshape(-1, x.shape[1]))
        dt, B, C = x_dbl.split([self.rank, self.d_state, self.d_state], -1)
        dt = (self.dt_proj.weight @ dt.t()).unflatten(1, (-1, length)).transpose(0, 1)
        B, C = (t.unflatten(0, (-1, length)).transpose(1, 2).contiguous() for t in (B, C))
        y, last_state = selective_scan_fn(x, dt, A, B, C, self.D.float(), z=z, **rest, return_last_state=True)
        assert last_state.shape == (len(x), x.shape[1], self.d_state)
        return self.out_proj(y.transpose(1, 2))


class Classifier(nn.Module):
    def __init__(self, dim=16, classes=3):
        super().__init__()
        self.embed = nn.Conv1d(2, dim, 4, 4)
        kinds = ("none", "v1", "v2", "slow")
        self.mixers = nn.ModuleList(Mixer(dim, kind) for kind in kinds)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in kinds)
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        x = self.embed(x).transpose(1, 2)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x))
        return self.head(x.mean(1))


if __name__ == "__main__":
    from training import train

    assert causal_conv1d_update is not None
    assert selective_state_update is not None
    torch.manual_seed(0)
    train(Classifier(), torch.randn(3, 2, 60), target=torch.arange(3))
