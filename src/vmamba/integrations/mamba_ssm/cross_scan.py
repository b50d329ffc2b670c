"""A project's own ``csm_triton``: VMamba's cross-scan in Triton, which has no branch for the CPU.

Where torch sees no CUDA GPU, a module of that name is adapted as it is imported. Its Triton kernels run on the CPU as
they are written (`triton_on_cpu`), which is slow. Where a class of it then gives on a small map what VMamba's gives,
gradients too, its ``apply`` becomes a call of `vmamba.scan.cross_scan_fn` or `cross_merge_fn`, which are fast. A
project that has changed the orders is thus slow, not wrong.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor

from vmamba.integrations.mamba_ssm.triton_on_cpu import CpuKernel, python_function
from vmamba.scan import cross_merge_fn, cross_scan_fn

_FLAGS = ("in_channel_first", "out_channel_first", "one_by_one", "scans")
_SCANS = (0, 1, 2)  # modes that all of those modules have
#: The adapted modules, what they had, and their classes that are hastened.
_adapted: list[tuple[ModuleType, dict[str, Any], list[Any]]] = []


def is_named(name: str) -> bool:
    """Whether a module's name says that it is such a cross-scan."""
    return name.rpartition(".")[2].startswith("csm_triton")


def adapting(spec: ModuleSpec | None) -> ModuleSpec | None:
    """The spec of such a module, with a loader that adapts it where there is no CUDA GPU."""
    if spec is None or spec.loader is None or torch.cuda.is_available():
        return spec
    spec.loader = _Adapting(spec.loader)
    return spec


def restore() -> None:
    """Give the adapted modules back what was theirs."""
    while _adapted:
        module, before, hastened = _adapted.pop()
        module.__dict__.update(before)
        for own in hastened:
            del own.apply


class _Adapting(Loader):
    def __init__(self, real: Loader) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:  # get_source and others, for tracebacks and inspect
        return getattr(self._real, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        try:
            self._real.exec_module(module)
        except ImportError as error:
            if error.name is None or error.name.partition(".")[0] != "triton":
                raise
            with _without_triton():
                self._real.exec_module(module)
        if adapt(module):
            print(
                f"vmamba: {module.__name__}, a cross-scan for CUDA alone, is computed on the CPU by vmamba",
                file=sys.stderr,
            )


def adapt(module: ModuleType) -> bool:
    """Adapt a module that has been executed; returns whether there was something to adapt."""
    before = dict(module.__dict__)
    new: dict[str, Any] = {}
    for name, value in before.items():
        if (kernel := python_function(value)) is not None:
            new[name] = CpuKernel(kernel)
    module.__dict__.update(new)
    classes = [value for value in before.values() if inspect.isclass(value) and value.__module__ == module.__name__]
    hastened = [own for own in classes if issubclass(own, torch.autograd.Function) and _hasten(own)]
    if isinstance(before.get("getCSM"), FunctionType):
        new["getCSM"] = _with_fast_classes(before["getCSM"])
    for name, plain in (("cross_scan_fn", "CrossScan"), ("cross_merge_fn", "CrossMerge")):
        function = before.get(name)
        if isinstance(function, FunctionType) and "cuda" in " ".join(function.__code__.co_names):
            own = module.__dict__.get(f"{plain}F", module.__dict__.get(f"{plain}TritonF"))
            if own is not None and tuple(inspect.signature(function).parameters)[1:5] == _FLAGS:
                new[name] = _without_device(function, own)
    module.__dict__.update(new)
    if new or hastened:
        _adapted.append((module, {name: before[name] for name in new}, hastened))
    return bool(new or hastened)


def _without_device(function: Callable[..., Any], own: Any) -> Callable[..., Any]:
    """``cross_scan_fn`` or ``cross_merge_fn`` of the module, without ``with torch.cuda.device(x.device)``."""
    signature = inspect.signature(function)

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        bound = signature.bind(*arguments, **named)
        bound.apply_defaults()
        return own.apply(*bound.args[:5])

    return call


def _with_fast_classes(function: Callable[..., Any]) -> Callable[..., Any]:
    """``getCSM``, which makes a pair of classes for each mode, with those hastened too."""

    @wraps(function)
    def classes(*arguments: Any, **named: Any) -> Any:
        made = function(*arguments, **named)
        for own in made:
            _hasten(own)
        return made

    return classes


# A class of the module is known by what it computes.


def _hasten(own: Any) -> bool:
    """Have ``own.apply`` computed by `vmamba.scan`; returns whether one of its operators agrees with ``own``."""
    if "apply" in vars(own):
        return False  # hastened already
    flags = tuple(inspect.signature(own.forward).parameters)[2:]
    if flags == _FLAGS:
        return _hasten_with_flags(own)
    for operator, one_by_one, scans in _candidates():
        if flags == ():
            call = _call(operator, True, True, one_by_one, scans)
        elif flags == ("channel_first",):
            call = _of_layout(operator, one_by_one, scans)
        else:
            return False
        given = torch.arange(1.0, 1 + 4 * 2 * 15).view(1, 4, 2, 3, 5)
        maps = given if one_by_one or operator is cross_merge_fn else given[:, 0]
        agrees = _agree(own, call, maps)
        if agrees and flags:
            last = maps if operator is cross_merge_fn else maps.movedim(-2, 1).movedim(-1, 2)  # (b, h, w, …, c)
            agrees = _agree(own, call, last, False)
        if agrees:
            own.apply = staticmethod(call)
            return True
    return False


def _hasten_with_flags(own: Any) -> bool:
    """The same for the later classes, which take the layouts, one_by_one and the mode at each call."""
    original = own.apply
    for operator in (cross_scan_fn, cross_merge_fn):

        def apply(t: Tensor, *flags: Any, operator: Callable[..., Tensor] = operator) -> Tensor:
            known = len(flags) < 4 or flags[3] in _SCANS
            y: Tensor = (operator if known else original)(t, *flags)
            return y

        if all(_agree(own, apply, maps, *flags) for maps, *flags in _with_flags(operator)):
            own.apply = staticmethod(apply)
            return True
    return False


def _with_flags(operator: Callable[..., Tensor]) -> Iterator[tuple[Any, ...]]:
    """A small map and flags, for each layout and mode."""
    for channel_first, one_by_one, scans in itertools.product((True, False), (False, True), _SCANS):
        maps = torch.arange(1.0, 1 + 4 * 2 * 15).view(1, 4, 2, 3, 5)
        if operator is cross_scan_fn and not one_by_one:
            maps = maps[:, 0]
        if not channel_first:
            maps = maps.movedim((-2, -1), (1, 2)).contiguous()
        yield maps, channel_first, channel_first, one_by_one, scans


def _candidates() -> Iterator[tuple[Callable[..., Tensor], bool, int]]:
    for operator in (cross_scan_fn, cross_merge_fn):
        for one_by_one in (False, True):
            for scans in _SCANS:
                yield operator, one_by_one, scans


def _call(operator: Callable[..., Tensor], *flags: Any) -> Callable[..., Tensor]:
    def apply(t: Tensor) -> Tensor:
        return operator(t, *flags)

    return apply


def _of_layout(operator: Callable[..., Tensor], one_by_one: bool, scans: int) -> Callable[..., Tensor]:
    def apply(t: Tensor, channel_first: bool = True) -> Tensor:
        return operator(t, channel_first, True, one_by_one, scans)

    return apply


def _agree(own: Any, call: Callable[..., Tensor], given: Tensor, *flags: bool | int) -> bool:
    results = []
    for function in (own.apply, call):
        t = given.clone().requires_grad_()
        try:
            with torch.enable_grad():
                y = function(t, *flags)
                y.backward(torch.arange(y.numel(), dtype=y.dtype).view(y.shape))
        except Exception:  # whatever a class of another shape raises: it does not agree
            return False
        results.append((y.detach(), t.grad))
    (y, dy), (y_ours, dy_ours) = results
    return torch.equal(y, y_ours) and dy is not None and dy_ours is not None and torch.equal(dy, dy_ours)


@contextmanager
def _without_triton() -> Iterator[None]:
    """Have ``import triton`` succeed where it is missing, with just what such a module calls as it is executed."""
    language = ModuleType("triton.language")
    language.constexpr = int  # type: ignore[attr-defined]
    triton = ModuleType("triton")
    triton.language = language  # type: ignore[attr-defined]
    triton.jit = lambda fn: CpuKernel(fn)  # type: ignore[attr-defined]
    triton.cdiv = lambda a, b: -(-a // b)  # type: ignore[attr-defined]
    triton.next_power_of_2 = lambda n: 1 << (n - 1).bit_length()  # type: ignore[attr-defined]
    sys.modules.update({"triton": triton, "triton.language": language})
    try:
        yield
    finally:
        # Gone at once: torch asks whether Triton is there, and would take this for it.
        del sys.modules["triton"], sys.modules["triton.language"]
