"""Half of the channels read forwards, half backwards, with the short convolution as a call of its own.

After the calls of robflynnyh/long-context-asr, lcasr/components/bidirectional_mamba.py: `causal_conv1d_fn` as it was at
first, with the activation in the fourth place.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

try:
    from causal_conv1d import causal_conv1d_fn, causal_conv1d_update
except ImportError:
    causal_conv1d_fn, causal_conv1d_update = None, None

try:
    from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn, selective_scan_fn
except ImportError:
    selective_scan_fn, mamba_inner_fn = None, None

try:
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update
except ImportError:
    selective_state_update = None

try:
    from mamba_ssm.ops.triton.layernorm import RMSNorm, layer_norm_fn, rms_norm_fn
except ImportError:
    RMSNorm, layer_norm_fn, rms_norm_fn = None, None, None


class Mamba(nn.Module):
    def __init__(self, dim, d_state=8, d_conv=4):
        super().__init__()
        half, self.rank, self.d_state = dim, math.ceil(dim / 16), d_state
        self.activation = "silu"
        self.in_proj = nn.Linear(dim, 4 * half, bias=False)
        self.conv1d_fwd = nn.Conv1d(half, half, d_conv, groups=half, padding=d_conv - 1)
        self.conv1d_rvse = nn.Conv1d(half, half, d_conv, groups=half, padding=d_conv - 1)
        self.x_proj = nn.Linear(half, self.rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.rank, half)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(half, 1))
        self.D = nn.Parameter(torch.ones(half))
        self.out_proj = nn.Linear(2 * half, dim, bias=False)

    def forward(self, hidden_states):
        length = hidden_states.shape[1]
        x, z = self.in_proj(hidden_states).chunk(2, -1)
        x_fwd, x_rvse = x.chunk(2, -1)
        x_fwd, x_rvse = x_fwd.transpose(1, 2), x_rvse.flip(1).transpose(1, 2)
        x_fwd = causal_conv1d_fn(
            x_fwd,
            self.conv1d_fwd.weight.flatten(1),
            self.conv1d_fwd.bias,
            self.activation,
        )
        x_rvse = causal_conv1d_fn(
            x_rvse,
            self.conv1d_rvse.weight.flatten(1),
            self.conv1d_rvse.bias,
            self.activation,
        )
        x_all = torch.cat((x_fwd, x_rvse), dim=0)
        x_dbl = self.x_proj(x_all.transpose(1, 2).flatten(0, 1))
        dt, B, C = x_dbl.split([self.rank, self.d_state, self.d_state], -1)
        dt = (self.dt_proj.weight @ dt.t()).unflatten(1, (-1, length)).transpose(0, 1)
        B, C = (t.unflatten(0, (-1, length)).transpose(1, 2).contiguous() for t in (B, C))
        y = selective_scan_fn(
            x_all,
            dt,
            -torch.exp(self.A_log.float()),
            B,
            C,
            self.D.float(),
            z=None,
            delta_bias=self.dt_proj.bias.float(),
            delta_softplus=True,
            return_last_state=False,
        )
        y_fwd, y_rvse = y.transpose(1, 2).chunk(2, 0)
        return self.out_proj(torch.cat([y_fwd, y_rvse.flip(1)], -1) * F.silu(z))


class Classifier(nn.Module):
    def __init__(self, dim=16, classes=3):
        super().__init__()
        self.embed, self.norm = nn.Conv1d(1, dim, 4, 2), RMSNorm(dim)
        self.mamba, self.head = Mamba(dim), nn.Linear(dim, classes)

    def forward(self, x):
        x = self.embed(x).transpose(1, 2)
        return self.head((x + self.mamba(self.norm(x))).mean(1))


if __name__ == "__main__":
    from training import train

    torch.manual_seed(0)
    train(Classifier(), torch.randn(3, 1, 50), target=torch.arange(3))
