"""What the GPU kernels do on the GPU of this machine: right or not, how fast, beside the floor and beside others.

    python benchmarks/gpu.py                          # parity, sizes beyond 2³¹, stages, VMamba-T in bfloat16: ≤ 4 minutes
    python benchmarks/gpu.py --parts peers,compiled   # swin_tiny and convnext_tiny too, torch.compile, CUDA graphs

Needs torch ≥ 2.11 with its Triton, timm and this tree on PYTHONPATH; nothing is installed. Every result is a line of JSON
as soon as it is there (``--out FILE`` keeps them); a short table comes last. Without a GPU it says so and claims nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vmamba
from vmamba.kernels.triton import machine_obstacle

STAGES = ((56, 96, 6), (28, 192, 12), (14, 384, 24), (7, 768, 48))  # side, channels, rank of VMamba-T at 224²
PARTS = ("parity", "large", "stages", "model", "peers", "compiled")
DEFAULT = "parity,large,stages,model"

Row = dict[str, Any]


def map_inputs(b: int, h: int, w: int, d: int, r: int, n: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    made = [
        torch.randn(b, h, w, d, device="cuda").to(dtype),
        torch.randn(b, h, w, 4, r + 2 * n, device="cuda").to(dtype),
        torch.randn(4, d, r, device="cuda") / r**0.5,
        torch.randn(4, d, device="cuda"),
        -torch.rand(4 * d, n, device="cuda") - 0.1,
        torch.randn(4 * d, device="cuda"),
    ]
    return [t.requires_grad_() for t in made]


def microseconds(run: Callable[[], object], seconds: float = 0.5) -> float:
    """The median of single calls, by CUDA events, after warm-up."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    times: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times) < 5:
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        run()
        last.record()
        last.synchronize()
        times.append(1e3 * first.elapsed_time(last))
    return sorted(times)[len(times) // 2]


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a large copy on this card."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / (microseconds(lambda: target.copy_(source)) * 1e-6)


def parity() -> Iterator[Row]:
    for mode in ("cross2d", "unidi", "bidi", "rot2d"):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for sizes in ((2, 14, 14, 96, 6, 1), (1, 7, 9, 40, 3, 3), (3, 28, 28, 64, 6, 16), (1, 56, 56, 192, 48, 1)):
                values = map_inputs(*sizes, dtype)
                weight = torch.randn(values[0].shape, device="cuda")

                def run(inputs: list[Tensor], name: str, weight: Tensor = weight, mode: str = mode) -> list[Tensor]:
                    y = vmamba.ss2d_scan(*inputs, mode, backend=name)
                    return [y.detach(), *torch.autograd.grad((y * weight.to(y.dtype)).sum(), inputs)]

                exact = run([v.detach().double().requires_grad_() for v in values], "torch")
                first, second = run(values, "oflex"), run(values, "oflex")
                errors = [
                    float((got.double() - want).abs().max() / want.abs().max().clamp(min=1e-9))
                    for got, want in zip(first, exact, strict=True)
                ]
                yield {
                    "part": "parity",
                    "mode": mode,
                    "dtype": str(dtype),
                    "sizes": sizes,
                    "y": errors[0],
                    "gradients": max(errors[1:]),
                    "same bits twice": all(torch.equal(a, b) for a, b in zip(first, second, strict=True)),
                    "right": errors[0] <= 1e-5
                    and max(errors[1:]) <= (1e-4 if dtype == torch.float32 else 2e-2)
                    and all(bool(t.isfinite().all()) for t in first),
                }


def large() -> Iterator[Row]:
    """A map of more than 2³¹ numbers, whose first and last images are right."""
    h, d, r = 56, 96, 6
    b = 2**31 // (h * h * d) + 2
    with torch.no_grad():
        x = torch.empty(b, h, h, d, device="cuda", dtype=torch.bfloat16).normal_()
        x_dbl = torch.empty(b, h, h, 4, r + 2, device="cuda", dtype=torch.bfloat16).normal_()
        parameters = [t.detach() for t in map_inputs(1, 2, 2, d, r, 1, torch.float32)[2:]]
        y = vmamba.ss2d_scan(x, x_dbl, *parameters, backend="oflex")
        for image in (0, b - 1):
            want = vmamba.ss2d_scan(x[image : image + 1], x_dbl[image : image + 1], *parameters, backend="oflex")
            error = float((y[image] - want[0]).abs().max() / want.abs().max())
            yield {"part": "large", "elements": x.numel(), "image": image, "error": error, "right": error <= 1e-5}


def stages(batch: int) -> Iterator[Row]:
    bandwidth = copy_bandwidth()
    yield {"part": "stages", "copy GB/s": bandwidth / 1e9, "card": torch.cuda.get_device_name()}
    for side, channels, rank in STAGES:
        values = map_inputs(batch, side, side, channels, rank, 1, torch.bfloat16)
        weight = torch.randn(values[0].shape, device="cuda")
        for name in [name for name in ("oflex", "mamba", "torch") if runs(name)]:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

            def forward(values: list[Tensor] = values, name: str = name) -> Tensor:
                return vmamba.ss2d_scan(*values, backend=name)

            def both(values: list[Tensor] = values, weight: Tensor = weight, name: str = name) -> None:
                torch.autograd.grad((vmamba.ss2d_scan(*values, backend=name)), values, weight)

            try:
                with torch.no_grad():
                    once = microseconds(forward)
                twice = microseconds(both)
            except torch.cuda.OutOfMemoryError:
                yield {"part": "stages", "side": side, "backend": name, "problem": "out of memory"}
                continue
            pixels = batch * side * side
            floor = pixels * (channels * 6 + 4 * (rank + 2) * 2)  # x in 16 bits and x_dbl in, y in float32 out
            yield {
                "part": "stages",
                "side": side,
                "channels": channels,
                "backend": name,
                "forward µs": once,
                "forward+backward µs": twice,
                "floor µs": 1e6 * floor / bandwidth,
                "peak MiB": torch.cuda.max_memory_allocated() / 2**20,
            }


def runs(name: str) -> bool:
    return vmamba.scan.dispatch.BACKENDS[name].machine_obstacle("cuda") is None


def images_a_second(model: nn.Module, batch: int, dtype: torch.dtype, how: str, training: bool) -> float:
    images = torch.randn(batch, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), device="cuda")
    call: Any = torch.compile(model) if how == "compile" else model

    def step() -> None:
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            out = call(images)
            if training:
                loss = F.cross_entropy(out, labels)
        if training:
            loss.backward()
            for p in model.parameters():
                p.grad = None

    model.train(training)
    with torch.set_grad_enabled(training):
        if how == "graph":
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                step()  # once before it is captured: kernels are compiled and memory found
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            return batch / microseconds(graph.replay, 3) * 1e6
        return batch / microseconds(step, 3) * 1e6


def models(names: list[str], hows: list[str], dtypes: list[torch.dtype], batches: list[int]) -> Iterator[Row]:
    import timm

    torch.set_float32_matmul_precision("high")  # TF32 products for all models alike
    torch.backends.cudnn.allow_tf32 = True
    for name in names:
        make = vmamba.create_model if name.startswith("vmamba") else timm.create_model
        model = make(name).cuda()
        for batch in batches:
            for dtype in dtypes:
                for how in hows:
                    for training in (False, True):
                        if how == "graph" and training:
                            continue
                        torch.compiler.reset()
                        torch.cuda.empty_cache()
                        torch.cuda.reset_peak_memory_stats()
                        row: Row = {"part": "model", "model": name, "batch": batch, "dtype": str(dtype), "how": how}
                        row |= {"training": training}
                        try:
                            row["images/s"] = images_a_second(model, batch, dtype, how, training)
                        except Exception as error:  # one that fails is a result too
                            row["problem"] = f"{type(error).__name__}: {error}"[:300]
                        row["peak MiB"] = torch.cuda.max_memory_allocated() / 2**20
                        yield row


def results(parts: list[str], batch: int) -> Iterator[Row]:
    peers = ["vmamba_tiny_s1l8", "swin_tiny_patch4_window7_224", "convnext_tiny"]
    half, full = torch.bfloat16, torch.float32
    if "parity" in parts:
        yield from parity()
    if "large" in parts:
        yield from large()
    if "stages" in parts:
        yield from stages(batch)
    if "model" in parts:
        yield from models(peers[:1], ["eager"], [half], [batch])
    if "peers" in parts:
        yield from models(peers, ["eager"], [half, full], [batch, 32])
    if "compiled" in parts:
        yield from models(peers, ["compile", "graph"], [half], [batch, 32])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=DEFAULT, help=f"of {', '.join(PARTS)}; {DEFAULT} where not given")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=Path, help="file for the lines of JSON")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    obstacle = machine_obstacle()
    if obstacle is not None:
        print(f"nothing measured: {obstacle}")
        return 1
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    rows: list[Row] = []
    for row in results(parts, options.batch):
        rows.append(row)
        line = json.dumps(row)
        print(line, flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(line + "\n")
    return table(rows)


def table(rows: list[Row]) -> int:
    """Print what matters in a few lines; return 1 where something is not right."""
    checked = [row for row in rows if "right" in row]
    wrong = [row for row in checked if not row["right"] or not row.get("same bits twice", True)]
    print(f"\nchecks: {len(checked) - len(wrong)} of {len(checked)} right")
    for row in rows:
        if row["part"] == "stages" and "side" in row and "problem" not in row:
            print(
                f"{row['side']:>3}² × {row['channels']:<4} {row['backend']:<6} forward {row['forward µs']:8.0f} µs, "
                f"with backward {row['forward+backward µs']:8.0f}, floor of forward {row['floor µs']:6.0f}"
            )
        elif row["part"] == "model":
            speed = f"{row['images/s']:8.0f} images/s" if "images/s" in row else row["problem"]
            way = "training" if row["training"] else "inference"
            print(f"{row['model']:<30} b {row['batch']:<4} {row['dtype'][6:]:<9} {row['how']:<8} {way:<10} {speed}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
