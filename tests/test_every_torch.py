"""What must work with every torch that the package declares; `make test-torch VERSION=2.6.0` runs it with another one.

The other tests run with the newest torch and with 2.11, and these with the oldest too.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.torch_version import TorchVersion

import vmamba
from vmamba.export.exporter import ExportConfig, export
from vmamba.kernels.native import library
from vmamba.train.run import TrainConfig, train

BACKENDS = ["torch"] if library.obstacle() else ["oflex", "torch"]
#: What other tests do with the newest torch, at more length.
WITH_OLDER_TORCH = pytest.mark.long if TorchVersion(torch.__version__) < "2.12" else pytest.mark.endless
SMALL = {"dims": [8, 16], "depths": [1, 1], "num_classes": 5}


def small(**options: object) -> vmamba.VSSM:
    torch.manual_seed(0)
    return vmamba.create_model("vmamba_nano", **{**SMALL, "drop_path_rate": 0.0, **options})


def one_block(**options: object) -> vmamba.VSSM:
    """For graphs with the scan as plain operations, a thousand of them a block, as the oldest torch makes them."""
    return small(dims=[8], depths=[1], **options)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 24, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


def gradients(model: vmamba.VSSM, call: object, x: Tensor) -> list[Tensor]:
    loss = F.cross_entropy(call(x), torch.arange(len(x)))  # type: ignore[operator]
    return list(torch.autograd.grad(loss, list(model.parameters())))


def near(got: Tensor, want: Tensor, tolerance: float = 1e-4) -> None:
    assert (got.double() - want.double()).abs().max() <= tolerance * want.double().abs().max().clamp(min=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_training_step_has_the_gradients_of_float64(backend: str, images: Tensor) -> None:
    with vmamba.backend("torch"):
        exact = small().double()
        want = gradients(exact, exact, images.double())
    model = small()
    with vmamba.backend(backend), vmamba.recorded_runs() as runs:
        for got, one in zip(gradients(model, model, images), want, strict=True):
            near(got, one, 1e-3)
    assert {run.backend for run in runs} == {backend}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_compiles_in_one_graph(backend: str, checkpointing: bool, images: Tensor) -> None:
    model = one_block(use_checkpoint=checkpointing) if backend == "torch" else small(use_checkpoint=checkpointing)
    with vmamba.backend(backend):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        want = gradients(model, model, images)
        for got, one in zip(gradients(model, compiled, images), want, strict=True):
            near(got, one)


@pytest.mark.skipif(len(BACKENDS) < 2, reason="the compiled kernels are not here")
def test_a_compiled_model_follows_the_backend_asked_for(images: Tensor) -> None:
    compiled = torch.compile(one_block().eval(), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for backend in ("oflex", "torch", "oflex"):
            with vmamba.backend(backend), vmamba.recorded_runs() as runs:
                compiled(images)
            # In older graphs the torch backend is plain operations, which leave no record.
            assert ("oflex" in {run.backend for run in runs}) == (backend == "oflex")


@WITH_OLDER_TORCH
def test_the_default_compiler_gives_the_same(images: Tensor) -> None:
    model = small().eval()
    with torch.no_grad():
        near(torch.compile(model, fullgraph=True)(images), model(images))


@WITH_OLDER_TORCH
@pytest.mark.parametrize("dynamic", ["", "batch,height,width"])
def test_export(dynamic: str, tmp_path: Path) -> None:
    model = one_block() if dynamic else small()
    vmamba.save_weights(tmp_path / "model.safetensors", model.state_dict())
    config = ExportConfig(str(tmp_path / "model.safetensors"), "torch-export", tmp_path / "model.pt2", dynamic)
    assert export(config).error <= 1e-4


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_an_export_that_this_torch_is_too_old_for_says_so(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.__version__ >= (2, 9):
        monkeypatch.setattr(torch, "__version__", TorchVersion("2.8.0"))
    with pytest.raises(vmamba.ConfigError, match=rf"torch 2\.9 or newer \(this is 2\.\d.*vmamba\[{target}\]"):
        export(ExportConfig("vmamba_nano", target))


def test_weights_go_to_a_file_and_come_back(images: Tensor, tmp_path: Path) -> None:
    model = small().eval()
    for name in ("model.safetensors", "model.pth"):
        vmamba.save_weights(tmp_path / name, model.state_dict())
        near(vmamba.load(tmp_path / name)(images), model(images))


@WITH_OLDER_TORCH
def test_optimize(images: Tensor) -> None:
    model = small().eval()
    fast = vmamba.optimize(model, example=images[:1])
    near(fast(images), model(images))
    assert {engine.name: engine.problem for engine in fast.engines}["compiled"] == ""


def test_transforms_and_forward_mode(images: Tensor) -> None:
    model = small().eval()
    leaf = images.clone().requires_grad_()
    (want,) = torch.autograd.grad(model(leaf).sum(), leaf)
    near(torch.func.grad(lambda x: model(x).sum())(images), want, 1e-3)
    tangent = torch.func.jvp(model, (images,), (images,))[1]
    near(tangent.sum(), (want * images).sum(), 1e-3)


def test_a_run(tmp_path: Path) -> None:
    options = {"dims": [8, 16], "depths": [1, 1]}
    result = train(TrainConfig(model_options=options, epochs=1, output=tmp_path / "run", device="cpu"))
    assert result.best_val["loss"] < 2.4
