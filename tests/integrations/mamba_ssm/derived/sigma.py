"""Two kinds of pictures fused by one scan over both: a function of its own over `selective_scan_cuda_core`.

After the calls of zifuwan/Sigma, models/encoders/vmamba.py.
"""

import torch
import torch.nn as nn

try:  # noqa: SIM105
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
except:  # noqa: E722
    pass

# an alternative for mamba_ssm
try:  # noqa: SIM105
    from selective_scan import selective_scan_fn as selective_scan_fn_v1
except:  # noqa: E722
    pass

import selective_scan_cuda_core as selective_scan_cuda


class SelectiveScan(torch.autograd.Function):
    @staticmethod
    @torch.cuda.amp.custom_fwd(cast_inputs=torch.float32)
    def forward(ctx, u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=False, nrows=1):
        ctx.delta_softplus = delta_softplus
        if u.stride(-1) != 1:
            u = u.contiguous()
        ctx.squeeze = B.dim() == 3
        if ctx.squeeze:
            B, C = B.unsqueeze(dim=1), C.unsqueeze(dim=1)
        assert u.shape[1] % (B.shape[1] * nrows) == 0
        out, x, *_ = selective_scan_cuda.fwd(u, delta, A, B, C, D, delta_bias, delta_softplus, nrows)
        ctx.save_for_backward(u, delta, A, B, C, D, delta_bias, x)
        return out

    @staticmethod
    @torch.cuda.amp.custom_bwd
    def backward(ctx, dout, *args):
        u, delta, A, B, C, D, delta_bias, x = ctx.saved_tensors
        if dout.stride(-1) != 1:
            dout = dout.contiguous()
        du, ddelta, dA, dB, dC, dD, ddelta_bias, *_ = selective_scan_cuda.bwd(
            u, delta, A, B, C, D, delta_bias, dout, x, ctx.delta_softplus, 1
        )
        if ctx.squeeze:
            dB, dC = dB.squeeze(1), dC.squeeze(1)
        return du, ddelta, dA, dB, dC, dD, ddelta_bias, None, None


class Fusion(nn.Module):
    """Reads one picture behind the other, there and back; the state carries over."""

    def __init__(self, dim, d_state=4, rank=2):
        super().__init__()
        self.sizes = [rank, d_state, d_state]
        self.x_proj = nn.Parameter(torch.randn(2, sum(self.sizes), dim) * dim**-0.5)
        self.dt_proj = nn.Parameter(torch.randn(2, dim, rank) * 0.1)
        self.dt_bias = nn.Parameter(torch.linspace(-5, -2, 2 * dim))
        self.A_logs = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(2 * dim, 1))
        self.Ds = nn.Parameter(torch.ones(2 * dim))

    def forward(self, rgb, other):
        xs = torch.cat([rgb.flatten(2), other.flatten(2)], 2)
        xs = torch.stack([xs, xs.flip(-1)], 1)
        dts, Bs, Cs = torch.einsum("bkdl,kcd->bkcl", xs, self.x_proj).split(self.sizes, 2)
        dts = torch.einsum("bkrl,kdr->bkdl", dts, self.dt_proj).contiguous().flatten(1, 2)
        As = -torch.exp(self.A_logs.to(torch.float))
        u = xs.flatten(1, 2)
        y = SelectiveScan.apply(u, dts, As, Bs.contiguous(), Cs.contiguous(), self.Ds, self.dt_bias, True, 2)
        there, back = y.chunk(2, 1)
        first, second = (there + back.flip(-1)).chunk(2, 2)
        return first.reshape(rgb.shape), second.reshape(rgb.shape)


class Segmenter(nn.Module):
    def __init__(self, dim=8, classes=3):
        super().__init__()
        self.rgb, self.other = nn.Conv2d(3, dim, 4, 4), nn.Conv2d(1, dim, 4, 4)
        self.fusion = Fusion(dim)
        self.up = nn.ConvTranspose2d(2 * dim, classes, 4, 4)

    def forward(self, rgb, other):
        return self.up(torch.cat(self.fusion(self.rgb(rgb), self.other(other)), 1))


def check_one_group():
    """B and C with three axes; all three functions agree."""
    u, delta = torch.randn(2, 1, 4, 9).unbind()
    A, B, C, D, bias = -torch.rand(4, 3), torch.randn(1, 3, 9), torch.randn(1, 3, 9), torch.randn(4), torch.randn(4)
    own = SelectiveScan.apply(u, delta, A, B, C, D, bias, True)
    assert torch.allclose(own, selective_scan_fn(u, delta, A, B, C, D, None, bias, True), atol=1e-6)
    assert torch.allclose(own, selective_scan_fn_v1(u, delta, A, B, C, D, bias, True), atol=1e-6)


if __name__ == "__main__":
    from training import train

    torch.manual_seed(0)
    check_one_group()
    pictures = torch.randn(2, 3, 24, 16), torch.randn(2, 1, 24, 16)
    train(Segmenter(), *pictures, target=torch.randint(3, (2, 24, 16)))
