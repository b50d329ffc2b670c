"""A U-shaped segmenter whose SS2D calls mamba-ssm's scan, and the early `selective_scan` package's in its decoder.

After the calls of JCruan519/VM-UNet, models/vmunet/vmamba.py.
"""

import torch
import torch.nn as nn

try:  # noqa: SIM105
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn, selective_scan_ref
except:  # noqa: E722
    pass

# an alternative for mamba_ssm
try:
    from selective_scan import selective_scan_fn as selective_scan_fn_v1
    from selective_scan import selective_scan_ref as selective_scan_ref_v1
except:  # noqa: E722
    pass


class SS2D(nn.Module):
    def __init__(self, channels, d_state=16, early=False):
        super().__init__()
        self.d_state, self.rank, inner = d_state, max(1, channels // 16), 2 * channels
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.x_proj_weight = nn.Parameter(torch.randn(4, self.rank + 2 * d_state, inner) * inner**-0.5)
        self.dt_projs_weight = nn.Parameter(torch.randn(4, inner, self.rank) * 0.1)
        self.dt_projs_bias = nn.Parameter(torch.linspace(-6, -2, 4 * inner).view(4, inner))
        self.A_logs = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(4 * inner, 1))
        self.Ds = nn.Parameter(torch.ones(4 * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self.forward_core = self.forward_corev1 if early else self.forward_corev0

    def prepare(self, x):
        rows = x.flatten(2)
        columns = x.transpose(2, 3).flatten(2)
        xs = torch.stack([rows, columns], 1)
        xs = torch.cat([xs, xs.flip(-1)], 1)
        dts, Bs, Cs = torch.einsum("bkdl,kcd->bkcl", xs, self.x_proj_weight).split(
            [self.rank, self.d_state, self.d_state], 2
        )
        dts = torch.einsum("bkrl,kdr->bkdl", dts, self.dt_projs_weight)
        As = -torch.exp(self.A_logs.float())
        return (
            xs.float().flatten(1, 2),
            dts.contiguous().float().flatten(1, 2),
            As,
            Bs.float(),
            Cs.float(),
            self.Ds.float(),
        )

    def merge(self, ys, h, w):
        ys = ys[:, :2] + ys[:, 2:].flip(-1)
        return (ys[:, 0] + ys[:, 1].unflatten(2, (w, h)).transpose(2, 3).flatten(2)).transpose(1, 2)

    def forward_corev0(self, x):
        b, _, h, w = x.shape
        self.selective_scan = selective_scan_fn
        xs, dts, As, Bs, Cs, Ds = self.prepare(x)
        out_y = self.selective_scan(
            xs, dts,
            As, Bs, Cs, Ds, z=None,
            delta_bias=self.dt_projs_bias.float().view(-1),
            delta_softplus=True,
            return_last_state=False,
        ).view(b, 4, -1, h * w)  # fmt: skip
        assert out_y.dtype == torch.float
        return self.merge(out_y, h, w)

    def forward_corev1(self, x):
        b, _, h, w = x.shape
        self.selective_scan = selective_scan_fn_v1
        xs, dts, As, Bs, Cs, Ds = self.prepare(x)
        out_y = self.selective_scan(
            xs, dts,
            As, Bs, Cs, Ds,
            delta_bias=self.dt_projs_bias.float().view(-1),
            delta_softplus=True,
        ).view(b, 4, -1, h * w)  # fmt: skip
        assert out_y.dtype == torch.float
        return self.merge(out_y, h, w)

    def forward(self, x):
        x, z = self.in_proj(x).chunk(2, -1)
        x = nn.functional.silu(self.conv2d(x.permute(0, 3, 1, 2)))
        y = self.out_norm(self.forward_core(x).view(z.shape))
        return self.out_proj(y * nn.functional.silu(z))


class Block(nn.Module):
    def __init__(self, channels, d_state, early):
        super().__init__()
        self.ln_1 = nn.LayerNorm(channels)
        self.self_attention = SS2D(channels, d_state, early)

    def forward(self, x):
        return x + self.self_attention(self.ln_1(x))


class Merging(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * channels), nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x):
        quarters = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return self.reduction(self.norm(torch.cat(quarters, -1)))


class Expanding(nn.Module):
    """Channels become places: twice as many each way."""

    def __init__(self, channels, scale=2, to=None):
        super().__init__()
        self.scale, self.to = scale, to or channels // 2
        self.expand, self.norm = nn.Linear(channels, scale**2 * self.to, bias=False), nn.LayerNorm(self.to)

    def forward(self, x):
        b, h, w, _ = x.shape
        s = self.scale
        x = self.expand(x).view(b, h, w, s, s, self.to).permute(0, 1, 3, 2, 4, 5)
        return self.norm(x.reshape(b, s * h, s * w, self.to))


class Segmenter(nn.Module):
    """Images ``(b, 3, h, w)`` to logits ``(b, classes, h, w)``; as many stages down as up."""

    def __init__(self, classes, dims, depths, d_state=16, early=True):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dims[0], 4, 4)

        def stage(channels, depth, early=False):
            return nn.Sequential(*(Block(channels, d_state, early) for _ in range(depth)))

        self.down = nn.ModuleList(stage(*each) for each in zip(dims, depths, strict=True))
        self.merging = nn.ModuleList(Merging(channels) for channels in dims[:-1])
        self.up = nn.ModuleList(stage(*each, early) for each in zip(dims[::-1], depths[::-1], strict=True))
        self.expanding = nn.ModuleList(Expanding(channels) for channels in dims[:0:-1])
        self.final_up, self.final_conv = Expanding(dims[0], 4, dims[0]), nn.Conv2d(dims[0], classes, 1)

    def forward(self, x):
        x = self.patch_embed(x).permute(0, 2, 3, 1)
        skips = []
        for i, stage in enumerate(self.down):
            x = stage(x)
            skips.append(x)
            if i < len(self.merging):
                x = self.merging[i](x)
        for i, stage in enumerate(self.up):
            if i:
                x = self.expanding[i - 1](x) + skips[-1 - i]
            x = stage(x)
        return self.final_conv(self.final_up(x).permute(0, 3, 1, 2))


def main():
    from training import train

    torch.manual_seed(0)
    model = Segmenter(classes=3, dims=[8, 16], depths=[1, 1], d_state=4)
    train(model, torch.randn(2, 3, 32, 24), target=torch.randint(3, (2, 32, 24)))
    core = model.down[0][0].self_attention
    with torch.no_grad():
        prepared = core.prepare(torch.randn(1, 16, 3, 5))
        bias = core.dt_projs_bias.view(-1)
        by_loop = selective_scan_ref(*prepared, None, bias, True)
        early = selective_scan_ref_v1(*prepared, bias, True)
        assert torch.allclose(by_loop, early, atol=1e-5)
        assert torch.allclose(by_loop, selective_scan_fn(*prepared, None, bias, True), atol=1e-5)


if __name__ == "__main__":
    main()
