"""Every private name of torch's that this package uses, each with what serves where a torch does not have it.

Torch moves these between versions. Nothing else in this package may import one: a rename then costs speed, or an error
when the function is called, and never ``import vmamba``. `tests/test_torch_names.py` takes each one away.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as _module
from torch.utils import _python_dispatch
from torch.utils.data import dataloader as _dataloader

_Function = TypeVar("_Function", bound=Callable[..., Any])

_tracing_state: Callable[[], object] = getattr(torch._C, "_get_tracing_state", lambda: None)
_has_storage: Callable[[Tensor], bool] = getattr(torch._C, "_has_storage", lambda t: True)
_transforms_active: Callable[[], bool] | None = getattr(torch._C, "_are_functorch_transforms_active", None)
_peek_interpreter: Callable[[], object] | None = getattr(
    getattr(torch._C, "_functorch", None), "peek_interpreter_stack", None
)
_in_dispatch_mode: Callable[[], bool] | None = getattr(_python_dispatch, "is_in_torch_dispatch_mode", None)
_modes_on_stack: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
_dispatch_modes: Callable[[], list[Any]] = getattr(_python_dispatch, "_get_current_dispatch_mode_stack", list)
_any_global_hook: Callable[[], bool] | None = getattr(_module, "_has_any_global_hook", None)
_LoaderIterator: type | None = getattr(_dataloader, "_MultiProcessingDataLoaderIter", None)
_PLAIN = frozenset({Tensor, nn.Parameter, type(None)})
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

# In graphs of torch.compile, torch 2.11 takes `torch.compiler.is_exporting` for True; the flag behind it is right. A
# torch without either cannot tell an export from torch.compile: there both count as exports.
_HAS_EXPORTING_FLAG = hasattr(torch.compiler, "_is_exporting_flag")
_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def loading_iterators() -> list[tuple[object, list[Any]]]:
    """Each living iterator of a ``DataLoader`` that has processes, with these (`multiprocessing.Process`)."""
    # By type among all objects: those that one holds may be wrappers, such as generators of accelerate's.
    found = [it for it in gc.get_objects() if type(it) is _LoaderIterator]
    return [(it, list(getattr(it, "_workers", ()))) for it in found]


def is_loaders_handler(handler: object) -> bool:
    """Whether this handler of SIGCHLD is the one that ``DataLoader`` puts in place, which raises `RuntimeError`."""
    return getattr(handler, "__module__", None) == "torch.utils.data._utils.signal_handling"


def is_traced() -> bool:
    """Whether operations are being recorded into a graph, by a compiler or an exporter."""
    return torch.compiler.is_compiling() or _tracing_state() is not None


def is_exporting() -> bool:
    """Whether they are recorded by `torch.export`, the ONNX exporter or `torch.jit.trace`."""
    exporting: bool = torch.compiler._is_exporting_flag if _HAS_EXPORTING_FLAG else _is_exporting()
    return exporting or _tracing_state() is not None


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation is on in this thread."""
    return is_functorch_active() or is_forward_mode()


def is_functorch_active() -> bool:
    """Whether a transform of `torch.func` is on in this thread."""
    if _transforms_active is not None:
        return _transforms_active()
    return _peek_interpreter is not None and _peek_interpreter() is not None


def is_forward_mode() -> bool:
    """Whether a level of `torch.autograd.forward_ad` is open."""
    level: int = getattr(forward_ad, "_current_level", -1)
    return level >= 0


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether nobody looks on or rewrites the operations on these tensors.

    Compilers and exporters do, function transforms, forward-mode differentiation, dispatch modes such as a FLOP
    counter, and subclasses of `torch.Tensor`.
    """
    if is_traced() or is_transformed() or (_in_dispatch_mode() if _in_dispatch_mode is not None else _modes_on_stack()):
        return False
    return _PLAIN.issuperset(map(type, tensors))


def is_counted() -> bool:
    """Whether a `torch.utils.flop_counter.FlopCounterMode` is on in this thread."""
    return any(type(mode).__module__ == "torch.utils.flop_counter" for mode in _dispatch_modes())


def has_memory(t: Tensor) -> bool:
    """Whether ``t`` has data of its own to point at, as batched and fake tensors have not."""
    return _has_storage(t)


def is_plain_module(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling ``module`` is ``kind.forward`` and no more: no subclass, no hooks, nothing patched.

    Only then may another piece of code compute what it would in another way.
    """
    if _any_global_hook is not None:
        hooked = _any_global_hook()
    else:
        hooked = any(getattr(_module, name, None) for name in _GLOBAL_HOOKS)
    own = module.__dict__
    return type(module) is kind and "forward" not in own and not hooked and not any(own.get(name) for name in _HOOKS)


def constant_in_graphs(function: _Function) -> _Function:
    """Let a compiler call ``function`` while it traces and keep the result.

    What `torch.compiler.assume_constant_result` does, without its import of the compiler, which takes a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_in_graphs
def is_functorch_traced() -> bool:
    """`is_functorch_active` while `torch.compile` traces, which enters transforms as it goes; no node of the graph."""
    return is_functorch_active()


def without_autocast(device: str) -> AbstractContextManager[object]:
    """A context without autocast on ``device``; nothing at all where there is none, so that no graph holds it."""
    try:
        on = torch.is_autocast_enabled(device)
    except RuntimeError:  # a device that autocast does not know
        on = False
    return torch.autocast(device, enabled=False) if on else contextlib.nullcontext()


def linear_pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN's ``x · weightᵀ + bias``, which inductor emits; raises AttributeError or RuntimeError where it is not."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def frozen_weights() -> AbstractContextManager[Any]:
    """Let inductor put weights, laid out for its products, into graphs that are compiled inside the ``with`` block."""
    import torch._inductor.config

    # `torch.compile(options=…)` takes the option too, but too late to have an effect.
    return torch._inductor.config.patch(freezing=True)  # type: ignore[no-any-return]


def leave_sizes_open(x: Tensor, axes: range) -> None:
    """Ask the compiler for a graph of all sizes along ``axes`` of ``x``, which carries the mark from here on."""
    import torch._dynamo

    for axis in axes:
        torch._dynamo.maybe_mark_dynamic(x, axis)


def move_towards(averages: list[Tensor], values: list[Tensor], share: Tensor) -> None:
    """``averages += share · (values - averages)`` for a share on the device, all in a few kernels where torch can."""
    try:
        steps = torch._foreach_sub(values, averages)
        torch._foreach_mul_(steps, share)
        torch._foreach_add_(averages, steps)
    except AttributeError:
        for average, value in zip(averages, values, strict=True):
            average.lerp_(value, share.to(average.dtype))
