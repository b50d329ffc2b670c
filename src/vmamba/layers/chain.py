"""`chain`: modules one after the other, where some that follow each other have one kernel together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from vmamba._torch import is_plain_module
from vmamba.functional import gpu
from vmamba.functional.cpu import takes_kernels
from vmamba.functional.depthwise import depthwise3x3
from vmamba.functional.mlp import mlp_gelu
from vmamba.layers.basic import Conv2d, DropPath, Pointwise

_Step = Callable[[Tensor], Tensor]


def chain(x: Tensor, *modules: nn.Module) -> Tensor:
    """``modules[-1](… modules[0](x))``.

    In an ordinary call, float32 on a CPU, modules that a function of `vmamba.functional` computes together are computed
    by it. Modules with hooks, patched ones and subclasses are always called themselves.
    """
    for step in _fused(modules) if takes_kernels(x) or gpu.takes_kernels(x) else modules:
        x = step(x)
    return x


def _fused(modules: Sequence[nn.Module]) -> list[_Step]:
    rest = [module for module in modules if not _is_idle(module)]
    steps: list[_Step] = []
    while rest:
        step = _mlp(rest[:3]) or _convolution(rest[:2])
        if step is None:
            steps.append(rest.pop(0))
        else:
            function, count = step
            steps.append(function)
            del rest[:count]
    return steps


def _is_idle(module: nn.Module) -> bool:
    """Whether it gives back what it is given, and nobody looks on."""
    if isinstance(module, nn.Dropout | DropPath):
        return (module.p == 0.0 or not module.training) and is_plain_module(module, type(module))
    return is_plain_module(module, nn.Identity)


def _mlp(modules: Sequence[nn.Module]) -> tuple[_Step, int] | None:
    if len(modules) < 3:
        return None
    fc1, act, fc2 = modules
    fits = (
        is_plain_module(fc1, Pointwise)
        and is_plain_module(act, nn.GELU)
        and act.approximate == "none"
        and is_plain_module(fc2, Pointwise)
    )
    return (lambda x: mlp_gelu(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias), 3) if fits else None  # type: ignore[arg-type]


def _convolution(modules: Sequence[nn.Module]) -> tuple[_Step, int] | None:
    if len(modules) < 2:
        return None
    conv, act = modules
    if not (is_plain_module(conv, Conv2d) and is_plain_module(act, nn.SiLU) and conv.is_depthwise3x3()):  # type: ignore[operator]
        return None
    return lambda x: depthwise3x3(x, conv.weight, conv.bias, silu=True), 2  # type: ignore[arg-type]
