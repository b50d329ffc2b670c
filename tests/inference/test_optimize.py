"""`vmamba.optimize` and `torch.compile`: no graph breaks, no compilation for each size, and the model's own numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import vmamba
from vmamba.errors import ConfigError, InputError
from vmamba.inference.engines import TOLERANCE, Engine, Optimized, optimize
from vmamba.kernels.native.products import obstacle

ONE_BLOCK = {"dims": [8], "depths": [1]}


def tiny(**options: Any) -> vmamba.VSSM:
    torch.manual_seed(0)
    return vmamba.create_model("vmamba_nano", **{"dims": [8, 16], "depths": [1, 1], "num_classes": 5, **options}).eval()


def images(b: int = 1, h: int = 32, w: int = 48) -> Tensor:
    return torch.randn(b, 3, h, w, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def prefer(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make `optimize` measure the engines as fast as they come here, however slow this machine makes them."""
    monkeypatch.setattr(
        "vmamba.inference.engines._times",
        lambda runs, x: {name: float(names.index(name)) if name in names else 99.0 for name in runs},
    )


def engine(fast: Optimized, name: str) -> Engine:
    (found,) = (one for one in fast.engines if one.name == name)
    return found


def assert_near(got: Tensor, exact: Tensor, tolerance: float) -> None:
    assert got.shape == exact.shape
    assert (got.double() - exact.double()).abs().max() <= tolerance * exact.double().abs().max()


# ---- torch.compile -------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(
    ("backend", "forward_type"),
    [
        ("oflex", "v05_noz"),
        pytest.param("oflex", "v052d", marks=pytest.mark.endless),
        pytest.param("torch", "v05_noz", marks=pytest.mark.endless),
    ],
)
def test_one_graph_for_all_sizes_forward_and_backward(backend: str, forward_type: str) -> None:
    blocks = {} if backend == "oflex" else ONE_BLOCK  # plain operations are many
    model = tiny(forward_type=forward_type, selective_scan_backend=backend, **blocks).train()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    frames = []
    for b, h, w in ((2, 32, 48), (3, 48, 32), (2, 40, 64), (4, 32, 48)):
        x = images(b, h, w)
        gradients = []
        for run in (model, compiled):
            model.zero_grad()
            torch.manual_seed(3)  # stochastic depth
            run(x).square().sum().backward()
            gradients.append({name: p.grad for name, p in model.named_parameters()})
        for name, exact in gradients[0].items():
            assert_near(gradients[1][name], exact, 1e-4)
        frames.append(counter.frame_count)
    assert frames == frames[:1] * 4


# ---- optimize ------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(
    "sizes",
    [
        ((1, 32, 48), (1, 48, 32), (1, 64, 32)),
        pytest.param(((1, 32, 48), (1, 48, 32), (2, 32, 32), (3, 64, 32)), marks=pytest.mark.endless),
    ],
)
def test_compiled_once_for_all_sizes_and_each_model_keeps_its_weights(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[tuple[int, int, int], ...]
) -> None:
    prefer(monkeypatch, "compiled")
    models = [tiny(**ONE_BLOCK), tiny(**ONE_BLOCK)]
    for p in models[1].parameters():
        p.data.mul_(1.1)
    fast = [optimize(model, example=images()) for model in models]
    assert [one.engine for one in fast] == ["compiled", "compiled"]
    for place, (b, h, w) in enumerate(sizes):
        if place and (b > 1) == (sizes[place - 1][0] > 1):
            torch.compiler.set_stance("fail_on_recompile")
        try:
            for one, model in zip(fast, models, strict=True):
                with torch.no_grad():
                    assert_near(one(images(b, h, w)), model(images(b, h, w)), 1e-4)
        finally:
            torch.compiler.set_stance("default")


def test_without_a_compiler_eager_runs_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: nn.Module, inputs: Tensor) -> Any:
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr("vmamba.inference.engines._compiled", broken)
    prefer(monkeypatch, "compiled", "eager")
    model = tiny()
    fast = optimize(model, example=images())
    assert fast.engine == "eager"
    assert engine(fast, "compiled").problem == "not compiled: RuntimeError: no C++ compiler"
    assert "no C++ compiler" in repr(fast)
    with torch.no_grad():
        assert torch.equal(fast(images()), model(images()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_return_the_inputs_dtype(dtype: torch.dtype) -> None:
    model = tiny()
    fast = optimize(model, dtype, images(), compile=False)
    with torch.no_grad():
        y, exact = fast(images(2)), model(images(2))
    assert y.dtype == torch.float32
    assert fast.dtype == dtype
    assert_near(y, exact, TOLERANCE[dtype])
    assert not torch.equal(y, exact)


def test_the_model_given_is_left_alone() -> None:
    model = tiny().train()
    before = copy.deepcopy(model.state_dict())
    optimize(model, torch.bfloat16, images(), compile=False)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_backbone_returns_its_maps() -> None:
    torch.manual_seed(0)
    model = vmamba.Backbone_VSSM(dims=[8, 16], depths=[1, 1], out_indices=(0, 1)).eval()
    fast = optimize(model, example=images(), compile=False)
    with torch.no_grad():
        for one, other in zip(fast(images()), model(images()), strict=True):
            assert_near(one, other, 1e-4)


def test_default_example_is_an_image_of_the_models_size() -> None:
    fast = optimize(tiny(imgsize=32), compile=False)
    assert isinstance(fast, Optimized)
    assert not fast.training


def test_a_wrong_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmamba.inference.engines._compiled", lambda model, inputs: lambda x: model(x) + 1)
    prefer(monkeypatch, "compiled", "eager")
    fast = optimize(tiny(), example=images())
    assert fast.engine == "eager"
    assert engine(fast, "compiled").problem == "off by more than 0.0001"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    prefer(monkeypatch, "packed", "eager")
    model = tiny()
    fast = optimize(model, dtype, images(), compile=False)
    if obstacle(dtype):
        assert fast.engine == "eager"
        assert engine(fast, "packed").problem == f"not packed: {obstacle(dtype)}"
        return
    assert fast.engine == "packed"
    for b, h, w in ((1, 32, 48), (2, 48, 32)):
        with torch.no_grad():
            y, exact = fast(images(b, h, w)), model(images(b, h, w))
        assert y.dtype == torch.float32
        assert_near(y, exact, TOLERANCE[dtype])


def test_a_model_without_a_block_that_can_be_packed_says_so() -> None:
    assert engine(optimize(tiny(post_norm=True), example=images(), compile=False), "packed").problem == (
        "not packed: no block of this model fits the kernels"
    )


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match=r"torch\.int8 is not one to optimize for; legal: torch\.float32"):
        optimize(tiny(), torch.int8)
    with pytest.raises(InputError, match="Linear does not say what it takes; give optimize an example"):
        optimize(nn.Linear(3, 3))
    with pytest.raises(ConfigError, match="for inference; train the model that it was made from"):
        optimize(tiny(), example=images(), compile=False).train()

    with pytest.raises(InputError, match=r"takes floating-point images, given torch\.uint8"):
        optimize(tiny(), example=images(), compile=False)(images().byte())

    class Sharp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean() + (x * 1000 * self.weight).sin()

    with pytest.raises(ConfigError, match=r"in torch\.bfloat16 the model's output differs too much"):
        optimize(Sharp(), torch.bfloat16, images() * 10, compile=False)
