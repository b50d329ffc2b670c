"""Scans in windows and in several directions: by the inner function, and by a function over a compiled module.

After the calls of hunto/LocalMamba, classification/lib/models/mamba/multi_mamba.py.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

try:
    from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn_no_out_proj
except ImportError:
    mamba_inner_fn_no_out_proj = None

try:
    import selective_scan_cuda_oflex
except:  # noqa: E722
    selective_scan_cuda_oflex = None


class SelectiveScanOflex(torch.autograd.Function):
    @staticmethod
    @torch.cuda.amp.custom_fwd
    def forward(ctx, u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=False, oflex=True):
        ctx.delta_softplus = delta_softplus
        out, x, *_ = selective_scan_cuda_oflex.fwd(u, delta, A, B, C, D, delta_bias, delta_softplus, 1, oflex)
        ctx.save_for_backward(u, delta, A, B, C, D, delta_bias, x)
        return out

    @staticmethod
    @torch.cuda.amp.custom_bwd
    def backward(ctx, dout, *args):
        u, delta, A, B, C, D, delta_bias, x = ctx.saved_tensors
        if dout.stride(-1) != 1:
            dout = dout.contiguous()
        du, ddelta, dA, dB, dC, dD, ddelta_bias, *_ = selective_scan_cuda_oflex.bwd(
            u, delta, A, B, C, D, delta_bias, dout, x, ctx.delta_softplus, 1
        )
        return du, ddelta, dA, dB, dC, dD, ddelta_bias, None, None


def scan(x, direction, h, w):
    """``(b, d, h·w)`` in another order: rows, columns or windows of 2x2, and back from the end."""
    kind, _, flip = direction.partition("_")
    x = x.unflatten(2, (h, w))
    if kind == "v":
        x = x.transpose(2, 3)
    elif kind == "w2":
        x = x.unflatten(3, (w // 2, 2)).unflatten(2, (h // 2, 2)).transpose(3, 4)
    x = x.flatten(2)
    return x.flip([-1]) if flip else x


def reverse(x, direction, h, w):
    kind, _, flip = direction.partition("_")
    x = x.flip([-1]) if flip else x
    if kind == "v":
        x = x.unflatten(2, (w, h)).transpose(2, 3)
    elif kind == "w2":
        x = x.unflatten(2, (h // 2, w // 2, 2, 2)).transpose(3, 4)
    return x.flatten(2)


class MultiMamba(nn.Module):
    def __init__(self, dim, directions, d_state=4, rank=2):
        super().__init__()
        inner = 2 * dim
        self.directions, self.d_state, self.rank = directions, d_state, rank
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        for i in range(len(directions)):
            self.add_module(f"conv1d_{i}", nn.Conv1d(inner, inner, 4, groups=inner, padding=3))
            self.add_module(f"x_proj_{i}", nn.Linear(inner, rank + 2 * d_state, bias=False))
            self.add_module(f"dt_proj_{i}", nn.Linear(rank, inner))
            A_log = torch.arange(1.0, d_state + 1).log().repeat(inner, 1)
            self.register_parameter(f"A_log_{i}", nn.Parameter(A_log))
            self.register_parameter(f"D_{i}", nn.Parameter(torch.ones(inner)))
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def parts(self, i):
        return [getattr(self, f"{name}_{i}") for name in ("conv1d", "x_proj", "dt_proj", "A_log", "D")]

    def forward(self, hidden_states, h, w):
        xz = self.in_proj(hidden_states).transpose(1, 2)
        outs = []
        for i, direction in enumerate(self.directions):
            conv1d, x_proj, dt_proj, A_log, D = self.parts(i)
            out = mamba_inner_fn_no_out_proj(
                scan(xz, direction, h, w),
                conv1d.weight,
                conv1d.bias,
                x_proj.weight,
                dt_proj.weight,
                -torch.exp(A_log.float()),
                None,
                None,
                D,
                delta_bias=dt_proj.bias.float(),
                delta_softplus=True,
            )
            outs.append(reverse(out, direction, h, w))
        return self.out_proj(torch.stack(outs).sum(0).transpose(1, 2))


class MultiVMamba(MultiMamba):
    """All directions in one call of the compiled module, one group of B and C each."""

    def forward(self, hidden_states, h, w):
        x, z = self.in_proj(hidden_states).transpose(1, 2).chunk(2, 1)
        length, us, deltas, As, Bs, Cs, Ds, biases = h * w, [], [], [], [], [], [], []
        for i, direction in enumerate(self.directions):
            conv1d, x_proj, dt_proj, A_log, D = self.parts(i)
            u = F.silu(conv1d(scan(x, direction, h, w))[..., :length])
            dt, B, C = x_proj(u.transpose(1, 2)).transpose(1, 2).split([self.rank, self.d_state, self.d_state], 1)
            us.append(u)
            deltas.append(dt_proj.weight @ dt)
            As.append(-torch.exp(A_log.float()))
            Bs.append(B)
            Cs.append(C)
            Ds.append(D)
            biases.append(dt_proj.bias.float())
        y = SelectiveScanOflex.apply(
            torch.cat(us, 1), torch.cat(deltas, 1), torch.cat(As), torch.stack(Bs, 1), torch.stack(Cs, 1),
            torch.cat(Ds), torch.cat(biases), True,
        )  # fmt: skip
        ys = y.chunk(len(self.directions), 1)
        ys = [reverse(each, direction, h, w) for each, direction in zip(ys, self.directions, strict=True)]
        return self.out_proj((torch.stack(ys).sum(0) * F.silu(z)).transpose(1, 2))


class Classifier(nn.Module):
    def __init__(self, dim=12, classes=3):
        super().__init__()
        self.embed = nn.Conv2d(3, dim, 4, 4)
        self.mamba = MultiMamba(dim, ("h", "v_flip", "w2"))
        self.vmamba = MultiVMamba(dim, ("h_flip", "v", "w2_flip"))
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        x = self.embed(x)
        h, w = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        x = x + self.mamba(x, h, w)
        x = x + self.vmamba(x, h, w)
        return self.head(x.mean(1))


if __name__ == "__main__":
    from training import train

    torch.manual_seed(0)
    train(Classifier(), torch.randn(3, 3, 24, 16), target=torch.arange(3))
