"""How near `vmamba.optimize` comes to the products that a model must do: ``python benchmarks/model_floor.py``.

The floor is the sum over all linear layers and convolutions of the time that oneDNN takes for that layer's product alone,
its weight packed before, its input in the cache as far as it fits. Norms, activations, scans, residuals and Python come
on top in the real model. Both are timed in this run, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vmamba import create_model, optimize
from vmamba.cli.allocator import keep_freed_memory
from vmamba.layers import SS2D


def products(model: nn.Module, x: Tensor, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """For every product of the forward pass the call that does it alone."""
    calls: dict[str, Callable[[], object]] = {}

    def add_linear(name: str, given: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        given, weight = given.detach().to(dtype).contiguous(), weight.detach().to(dtype)
        bias = None if bias is None else bias.detach().to(dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, given.numel() // given.shape[-1])
        calls[name] = lambda: torch.ops.mkldnn._linear_pointwise(given, packed, bias, "none", [], "")

    def add_convolution(name: str, layer: nn.Conv2d, given: Tensor) -> None:
        # Layers of ours take channels-last maps (b, h, w, c).
        given = given.detach().to(dtype).contiguous().permute(0, 3, 1, 2)
        options = [list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups]
        packed = torch.ops.mkldnn._reorder_convolution_weight(layer.weight.detach().to(dtype), *options, given.shape)
        bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        calls[name] = lambda: torch.ops.mkldnn._convolution_pointwise(given, packed, bias, *options, "none", [], "")

    handles = []
    for name, module in model.named_modules():

        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            if isinstance(layer, nn.Linear):
                add_linear(name, inputs[0], layer.weight, layer.bias)
            elif isinstance(layer, nn.Conv2d):
                add_convolution(name, layer, inputs[0])

        handles.append(module.register_forward_pre_hook(hook))
        if isinstance(module, SS2D):

            def scan(x: Tensor, module: SS2D = module, name: str = name) -> Tensor:
                add_linear(f"{name}.x_proj", x, module.x_proj_weight.flatten(0, 1), None)
                return SS2D.scan(module, x)

            module.__dict__["scan"] = scan
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    for module in model.modules():
        module.__dict__.pop("scan", None)
    return calls


def milliseconds(call: Callable[[], object], rounds: int) -> float:
    """The median."""
    times = []
    with torch.no_grad():
        call()
        for _ in range(rounds):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default="vmamba_tiny_s1l8")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = create_model(options.name).eval()
    x = torch.randn(options.batch, 3, options.size, options.size)
    base = None
    for dtype in (torch.float32, torch.bfloat16):
        layers = products(model, x, dtype)
        fast = optimize(model, dtype, x)
        floors, times = [], []
        for _ in range(5):
            floors.append(sum(milliseconds(call, options.rounds) for call in layers.values()))
            times.append(milliseconds(lambda fast=fast: fast(x), options.rounds))
        floor, took = statistics.median(floors), statistics.median(times)
        base = took if base is None else base
        print(
            f"{dtype}: floor {floor:.1f} ms ({len(layers)} products), {fast.engine} {took:.1f} ms, "
            f"floor / time {floor / took:.2f}, float32 / this {base / took:.2f}; {'; '.join(map(str, fast.engines))}"
        )


if __name__ == "__main__":
    main()
