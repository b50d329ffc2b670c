"""`optimize`: the fastest way to run a model in this process, checked against the model as it was."""

from __future__ import annotations

import copy
import statistics
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from vmamba import _torch
from vmamba.errors import BackendError, ConfigError, InputError, VMambaError
from vmamba.inference.pack import pack
from vmamba.kernels.interface import recorded_runs
from vmamba.kernels.native.products import obstacle
from vmamba.scan.dispatch import ambient

#: Largest deviation from the model as it was, as a part of the largest value of its output.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
_ROUNDS = 5


@dataclass(frozen=True)
class Engine:
    """One way that was tried.

    Attributes:
        name: ``"eager"``, ``"packed"`` or ``"compiled"``.
        milliseconds: median for the example, None where it did not run.
        error: largest deviation from the model as it was, as a part of the output's largest value.
        problem: why it is out, or empty.
    """

    name: str
    milliseconds: float | None = None
    error: float | None = None
    problem: str = ""

    def __str__(self) -> str:
        if self.milliseconds is None:
            return f"{self.name}: {self.problem}"
        return f"{self.name}: {self.milliseconds:.2f} ms, error {self.error:.1e} of scale" + (
            f"; {self.problem}" if self.problem else ""
        )


class Optimized(nn.Module):
    """A model for inference, as `optimize` returns it: called like the model, returns its output in its dtype.

    Attributes:
        engine: the name of the engine that runs.
        dtype: what it computes in.
        engines: all that were tried, with their times and errors.
    """

    def __init__(
        self,
        model: nn.Module,
        run: Callable[[Any], Any],
        engine: str,
        dtype: torch.dtype,
        engines: tuple[Engine, ...],
        device: torch.device,
        backends: frozenset[str],
    ) -> None:
        super().__init__()
        self.model = model
        self.engine = engine
        self.dtype = dtype
        self.engines = engines
        self._run = (run,)  # in a tuple, so that a module is not registered twice
        self._device = device
        self._backends = backends  # that run its scans

    def forward(self, x: Tensor) -> Any:
        """What the model returns for ``x``, floating-point tensors in the dtype of ``x``.

        Autocast around the call has no effect: what it computes in is `dtype`.

        Raises:
            InputError: ``x`` holds integers, which the conversion to `dtype` would hide from the model, or lies on
                another device.
            ConfigError: a transform of `torch.func`, forward-mode differentiation or a counter of operations is on.
            BackendError: `vmamba.backend` or the environment asks for another scan than the one that is built in.
        """
        if not x.is_floating_point():
            raise InputError(
                f"the model takes floating-point images, given {x.dtype}; convert and normalise them first"
            )
        if x.device != self._device:
            raise InputError(
                f"the optimized model is on {self._device}, given images on {x.device}; move them with .to()"
            )
        if _torch.is_transformed():
            raise ConfigError(
                "an optimized model is for inference: it has no derivatives and no torch.func transforms; "
                "use the model that it was made from"
            )
        if self.engine != "eager" and _torch.is_counted():
            raise ConfigError(
                "the operations of an optimized model are hidden from FlopCounterMode; count the model that it was "
                "made from, or use vmamba.count"
            )
        asked = ambient()
        if self.engine != "eager" and asked is not None and not self._backends <= {asked}:
            raise BackendError(
                f'selective_scan_backend="{asked}" is asked for around an optimized model, whose engine '
                f'"{self.engine}" has {", ".join(sorted(self._backends))} built in; call it outside of '
                "vmamba.backend, or optimize the model inside"
            )
        with _torch.without_autocast(x.device.type):
            return _as(x.dtype, _call(self._run[0], x.to(self.dtype)))

    def train(self, mode: bool = True) -> Optimized:
        """Stay in evaluation mode.

        Raises:
            ConfigError: ``mode`` is True.
        """
        if mode:
            raise ConfigError("an optimized model is for inference; train the model that it was made from")
        return super().train(False)

    def extra_repr(self) -> str:
        """The engine and what was tried."""
        return f"engine={self.engine}, dtype={self.dtype}, tried: {'; '.join(map(str, self.engines))}"


def optimize(
    model: nn.Module,
    dtype: torch.dtype | None = None,
    example: Tensor | None = None,
    *,
    compile: bool = True,
) -> Optimized:
    """Return the fastest way to run ``model`` in this process that gives its numbers.

    The copy that is run is in evaluation mode, without gradients. Tried are, with the median time for ``example``,

    * ``"eager"``: the model as it is;
    * ``"packed"``: on a CPU in float32 or bfloat16, this package's blocks with their weights packed and their norms,
      activations and residuals inside the compiled products, see `vmamba.inference.packed_layers`. The first call with
      a new shape prepares the calls for it, in milliseconds. The model keeps memory for the last two shapes, at most
      about 200 MB, and no weights that could be saved or trained;
    * ``"compiled"``: `torch.compile` with the weights frozen into the graph and packed. Height and width stay free:
      it is compiled once for one image at a time, and once more when the first batch of several comes. On a GPU it is
      compiled into CUDA graphs, one for each size (not tried on a GPU yet).

    Args:
        model: a model of this package, or any module that takes one tensor.
        dtype: what to compute in, None for the model's own. The scan's states, and sums in norms, stay float32.
        example: an input of the usual size, on the model's device; None for one image of the size in the model's
            configuration.
        compile: whether to try `torch.compile`, which takes up to a minute.

    Returns:
        the model to call; its ``engines`` tell what was tried.

    Raises:
        ConfigError: ``dtype`` is none of float32, bfloat16, float16, or too narrow for this model: no engine gives the
            model's numbers to `TOLERANCE` of the largest.
        InputError: an example is needed.
    """
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    dtype = own if dtype is None else dtype
    if dtype not in TOLERANCE:
        raise ConfigError(f"dtype {dtype} is not one to optimize for; legal: {', '.join(map(str, TOLERANCE))}")
    example = _example(model) if example is None else example
    expected = _call(copy.deepcopy(model).eval(), example.to(own))
    inputs = example.to(dtype)
    eager = copy.deepcopy(model).eval().to(dtype)

    runs: dict[str, Callable[[Any], Any]] = {"eager": eager}
    problems: dict[str, str] = {}
    packed = copy.deepcopy(model).eval().float()
    if pack(packed, dtype):
        runs["packed"] = packed
    else:
        problems["packed"] = f"not packed: {obstacle(dtype) or 'no block of this model fits the kernels'}"
    if compile:
        try:
            runs["compiled"] = _compiled(eager, inputs)
        except VMambaError:
            raise
        except Exception as error:  # a machine without a compiler, a model that cannot be traced: eager still runs
            problems["compiled"] = f"not compiled: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"

    errors = {name: _error(_call(run, inputs), expected) for name, run in runs.items()}
    times = _times(runs, inputs)
    good = [name for name in runs if errors[name] <= TOLERANCE[dtype]]
    engines = tuple(
        Engine(name, times[name], errors[name], "" if name in good else f"off by more than {TOLERANCE[dtype]:g}")
        for name in runs
    ) + tuple(Engine(name, problem=problem) for name, problem in problems.items())
    if not good:
        raise ConfigError(
            f"in {dtype} the model's output differs too much from its own in {own}: {'; '.join(map(str, engines))}. "
            "Keep it in float32, or give an example that is like its real inputs"
        )
    best = min(good, key=lambda name: times[name])
    run = runs[best]
    with recorded_runs() as scans:
        _call(run, inputs)
    backends = frozenset(scan.backend for scan in scans)
    model = run if isinstance(run, nn.Module) else eager
    return Optimized(model, run, best, dtype, engines, inputs.device, backends).eval()


def _example(model: nn.Module) -> Tensor:
    config = getattr(model, "config", None)
    size, channels = getattr(config, "imgsize", None), getattr(config, "in_chans", None)
    if size is None or channels is None:
        raise InputError(f"{type(model).__name__} does not say what it takes; give optimize an example, a tensor")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0), device="cpu").to(device)


def _call(run: Callable[[Any], Any], x: Tensor) -> Any:
    with torch.no_grad():
        return run(x)


def _compiled(model: nn.Module, inputs: Tensor) -> Callable[[Any], Any]:
    def call(x: Tensor) -> Any:
        return model(x)

    # Torch keeps a few graphs for each code object, so every model needs a code object of its own.
    own = types.FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
    if inputs.device.type == "cuda":
        graphs = torch.compile(own, fullgraph=True, mode="reduce-overhead")  # which is: as CUDA graphs

        def replay(x: Tensor) -> Any:
            torch.compiler.cudagraph_mark_step_begin()
            # The next replay writes into the same memory.
            return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, graphs(x.detach()))

        _call(replay, inputs)
        return replay
    compiled = torch.compile(own, fullgraph=True)

    def run(x: Tensor) -> Any:
        # Sizes that are free also make inductor pack weights for oneDNN. For sizes that it knows it packs them for MKL,
        # which is the slower one. The mark goes on a tensor of our own, not on the caller's.
        x = x.detach()
        _torch.leave_sizes_open(x, range(2, x.dim()))
        with _torch.frozen_weights():
            return compiled(x)

    _call(run, inputs)
    return run


def _as(dtype: torch.dtype, output: Any) -> Any:
    def cast(leaf: Any) -> Any:
        return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return tree_map(cast, output)


def _error(got: Any, expected: Any) -> float:
    errors = []
    for one, other in zip(tree_leaves(got), tree_leaves(expected), strict=True):
        if isinstance(other, Tensor) and other.is_floating_point():
            error = (one.double() - other.double()).abs().max() / other.double().abs().max().clamp(min=1e-30)
            errors.append(float(error) if error.isfinite() else float("inf"))
    return max(errors, default=0.0)


def _times(runs: dict[str, Callable[[Any], Any]], x: Tensor) -> dict[str, float]:
    def wait() -> None:
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)

    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(_ROUNDS + 1):
        for name, run in runs.items():
            wait()
            start = time.perf_counter()
            _call(run, x)
            wait()
            if turn:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(each) for name, each in times.items()}
