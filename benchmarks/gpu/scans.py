"""The scans: ours, beside the bytes they must move, and beside mamba-ssm's kernel."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timing import Row, copy_bandwidth, kernel_time
from torch import Tensor

import vmamba

#: Side, channels, rank and blocks of VMamba-T's stages at 224² (arXiv 2401.10166, Table 13), one state.
STAGES = ((56, 96, 6, 2), (28, 192, 12, 2), (14, 384, 24, 8), (7, 768, 48, 2))
#: Of vanilla VMamba-T's, sixteen states.
VANILLA = ((56, 192, 6, 2), (28, 384, 12, 2), (14, 768, 24, 9), (7, 1536, 48, 2))


def map_inputs(b: int, side: int, d: int, r: int, n: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    made = [
        torch.randn(b, side, side, d, device="cuda").to(dtype),
        torch.randn(b, side, side, 4, r + 2 * n, device="cuda").to(dtype),
        torch.randn(4, d, r, device="cuda") / r**0.5,
        torch.randn(4, d, device="cuda"),
        -torch.rand(4 * d, n, device="cuda") - 0.1,
        torch.randn(4 * d, device="cuda"),
    ]
    return [t.requires_grad_() for t in made]


def both_ways(run: Callable[..., Tensor], values: list[Tensor]) -> tuple[float, float]:
    """Forward alone, and forward with backward."""
    with torch.no_grad():
        weight = torch.randn_like(run(*values))

        def forward() -> None:
            with torch.no_grad():
                run(*values)

    return kernel_time(forward), kernel_time(lambda: torch.autograd.grad(run(*values), values, weight))


def fused(batch: int) -> Iterator[Row]:
    """`ss2d_scan` in each stage, bfloat16: beside x and x_dbl read and y written once at a copy's bandwidth, and beside
    cross-scan, projection, mamba-ssm's kernel and cross-merge."""
    bandwidth = copy_bandwidth()
    yield {"part": "fused", "copy TB/s": bandwidth / 1e12}
    for n, stages, b in ((1, STAGES, batch), (16, VANILLA, batch // 4)):
        total: Row = {"part": "fused", "states": n, "batch": b, "side": "all"}
        for side, d, r, blocks in stages:
            values = map_inputs(b, side, d, r, n, torch.bfloat16)
            once, twice = both_ways(vmamba.ss2d_scan, values)
            floor = b * side * side * (6 * d + 8 * (r + 2 * n)) / bandwidth * 1e6
            row: Row = {"forward µs": once, "both µs": twice, "floor µs": floor}
            if kernel := mamba_kernel():
                sequence = Sequence(kernel, values)
                row |= {"sequence µs": kernel_time(sequence.forward), "sequence both µs": kernel_time(sequence.both)}
            for name, number in row.items():
                total[name] = total.get(name, 0.0) + blocks * number
            yield {"part": "fused", "states": n, "batch": b, "side": side, "channels": d} | row
        yield total


def alone() -> Iterator[Row]:
    """`selective_scan` by itself and mamba-ssm's kernel on the same tensors."""
    kernel = mamba_kernel()
    for n in (1, 16):
        for dtype in (torch.float32, torch.bfloat16):
            for b, d, length in ((128, 96, 3136), (128, 192, 784), (128, 384, 196), (128, 768, 49)):
                b //= 1 if n == 1 else 8
                u, delta = (torch.randn(b, 4 * d, length, device="cuda").to(dtype) for _ in range(2))
                A = -torch.rand(4 * d, n, device="cuda") - 0.1
                B, C = (torch.randn(b, 4, n, length, device="cuda").to(dtype) for _ in range(2))
                D, bias = (torch.randn(4 * d, device="cuda") for _ in range(2))
                values = [t.requires_grad_() for t in (u, delta, A, B, C, D, bias)]
                once, twice = both_ways(lambda *v: vmamba.selective_scan(*v, delta_softplus=True), values)
                row: Row = {"part": "alone", "states": n, "dtype": str(dtype)[6:], "batch": b, "length": length}
                row |= {"channels": 4 * d, "forward µs": once, "both µs": twice}
                if kernel:
                    args = (u, delta, A, B, C, D, None, bias)
                    dy = torch.randn_like(delta)

                    def theirs(args: Any = args) -> Any:
                        with torch.no_grad():
                            return kernel.fwd(*args, True)

                    def theirs_both(args: Any = args, dy: Tensor = dy) -> None:
                        saved = theirs(args)[1]
                        with torch.no_grad():
                            kernel.bwd(*args, dy, saved, None, None, True, False)

                    row |= {"mamba µs": kernel_time(theirs), "mamba both µs": kernel_time(theirs_both)}
                yield row


def mamba_kernel() -> Any:
    """mamba-ssm's compiled module, or None."""
    try:
        return importlib.import_module("selective_scan_cuda")
    except ImportError:
        return None


class Sequence:
    """What a model runs that has mamba-ssm's kernel only: everything in 16 bits and channels first, as that wants it."""

    def __init__(self, kernel: Any, values: list[Tensor]) -> None:
        x, x_dbl, weight, bias, self.A, self.D = (v.detach() for v in values)
        self.kernel, self.bias = kernel, bias.reshape(-1)
        self.b, self.side, _, self.d = x.shape
        self.rank, self.states = weight.shape[2], self.A.shape[1]
        self.x = x.permute(0, 3, 1, 2).contiguous()
        self.columns = x_dbl.permute(0, 3, 4, 1, 2).flatten(3).contiguous()
        self.weight = weight.to(x.dtype)

    def scan(self, x: Tensor) -> Tensor:
        out = x.new_empty(self.b, 4, self.d, self.side**2)
        out[:, 0], out[:, 1] = x.flatten(2), x.transpose(2, 3).flatten(2)
        out[:, 2:] = out[:, :2].flip(-1)
        return out

    def merge(self, y: Tensor) -> Tensor:
        y = y.view(self.b, 4, self.d, -1)
        rows, columns = (y[:, :2] + y[:, 2:].flip(-1)).unbind(1)
        return rows + columns.view(self.b, self.d, self.side, self.side).transpose(2, 3).flatten(2)

    def forward(self) -> tuple[Tensor, Tensor, tuple[Any, ...], Tensor]:
        low, B, C = (t.contiguous() for t in self.columns.split([self.rank, self.states, self.states], 2))
        steps = torch.einsum("bkrl,kdr->bkdl", low, self.weight).flatten(1, 2)
        args = (self.scan(self.x).flatten(1, 2), steps, self.A, B, C, self.D, None, self.bias)
        y, saved, *_ = self.kernel.fwd(*args, True)
        return self.merge(y), low, args, saved

    def both(self) -> None:
        y, low, args, saved = self.forward()
        dy = self.scan(y.view_as(self.x)).flatten(1, 2)  # any map will do as its gradient
        du, of_steps, *_ = self.kernel.bwd(*args, dy, saved, None, None, True, False)
        of_steps = of_steps.view(self.b, 4, self.d, -1)
        torch.einsum("bkdl,kdr->bkrl", of_steps, self.weight)
        torch.einsum("bkdl,bkrl->kdr", of_steps, low)
        self.merge(du)
