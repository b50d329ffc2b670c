"""Every kind of file gives the model's logits, says what it is, and runs without this package's operators."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from export_cases import TINIEST, assert_same, node_count, onnx, onnx_logits, weight_file

from vmamba.errors import CheckpointError
from vmamba.export import aoti
from vmamba.export.exporter import TOLERANCES, ExportConfig, Exported, export
from vmamba.inference.exported import METADATA_FILE, open_exported
from vmamba.tasks.trained import Trained, load_trained

openvino = pytest.importorskip("openvino")

pytestmark = pytest.mark.long

EVERY = "batch,height,width"
MAMBA2 = {"forward_type": "m0_noz", "ssm_init": "v2", "ssm_d_state": 4, "ssm_dt_rank": 2}
NAMES = {"onnx": "m.onnx", "openvino": "m.xml", "torch-export": "m.pt2", "aoti": "m.pt2"}
Make = Callable[..., tuple[Exported, Trained]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Export the smallest model; the same again is not exported again."""

    @functools.cache
    def made(to: str, dynamic: str = "", dtype: str = "float32") -> tuple[Exported, Trained]:
        folder = tmp_path_factory.mktemp(to)
        source = weight_file(folder / "w.safetensors", **TINIEST)
        exported = export(ExportConfig(str(source), to, folder / "out" / NAMES[to], dynamic, dtype))
        want = ["m.bin", "m.xml"] if to == "openvino" else [NAMES[to]]
        assert sorted(path.name for path in (folder / "out").iterdir()) == want
        return exported, load_trained(source)

    return made


def pixels_of(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# v052d3 reads in rotations and v052dc in two passes, both with a gate; vmamba_nano's own has neither gate nor n > 1.
@pytest.mark.parametrize(
    ("forward_type", "n"),
    [
        ("v05_noz", 2),
        pytest.param("v05_noz", 1, marks=pytest.mark.endless),
        pytest.param("v052d3", 2, marks=pytest.mark.endless),
        pytest.param("v052dc", 2, marks=pytest.mark.endless),
    ],
)
def test_onnx_gives_the_models_logits_at_any_size(forward_type: str, n: int, tmp_path: Path) -> None:
    size = {} if n == 1 else TINIEST  # what is between blocks is seen once
    source = weight_file(tmp_path / "w.safetensors", forward_type=forward_type, ssm_d_state=n, **size)
    path = tmp_path / "m.onnx"
    exported = export(ExportConfig(str(source), "onnx", path, dynamic=EVERY))
    assert exported.files == (path,)
    assert exported.error <= 1e-4
    proto = onnx.load(path)
    assert {opset.domain for opset in proto.opset_import} == {""}
    assert proto.opset_import[0].version >= 18
    assert {node.domain for node in proto.graph.node} == {""}
    names = [dim.dim_param for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    assert names == ["batch", "", "height", "width"]
    model = load_trained(source).model
    for shape in ((1, 3, 16, 16), (3, 3, 33, 50), (2, 3, 64, 17)):
        pixels = pixels_of(*shape)
        with torch.inference_mode():
            assert_same(onnx_logits(path, pixels), model(pixels))


@pytest.mark.parametrize(
    ("to", "dynamic"),
    [
        ("onnx", ""),
        ("torch-export", ""),
        *(pytest.param(to, EVERY, marks=pytest.mark.endless) for to in NAMES),  # minutes each
    ],
)
def test_a_model_that_scans_as_mamba2(to: str, dynamic: str, tmp_path: Path) -> None:
    source = weight_file(tmp_path / "w.safetensors", **TINIEST, **MAMBA2)
    # `export` itself compares the logits, at a second size too where that is open.
    assert export(ExportConfig(str(source), to, tmp_path / NAMES[to], dynamic)).error <= 1e-4


def test_the_node_count_does_not_depend_on_the_image_size(make: Make, tmp_path: Path) -> None:
    source = weight_file(tmp_path / "w.safetensors", size=56, **TINIEST)
    large = export(ExportConfig(str(source), "onnx", tmp_path / "m.onnx")).files[0]
    small = make("onnx")[0].files[0]
    assert node_count(small) == node_count(large)
    assert (
        Counter(node.op_type for node in onnx.load(small).graph.node)["Scan"] == 2
    )  # along pieces, from piece to piece


def test_openvino_at_any_size(make: Make) -> None:
    exported, trained = make("openvino", EVERY)
    assert exported.error <= 1e-4
    model = openvino.Core().read_model(exported.files[0])
    assert json.loads(model.get_rt_info(["vmamba", "classes"]).astype(str)) == list(trained.task.classes)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    pixels = pixels_of(2, 3, 40, 33)
    with torch.inference_mode():
        assert_same(compiled([pixels.numpy()])[0], trained.model(pixels))


@pytest.mark.parametrize("dynamic", ["", EVERY])
def test_torch_export(make: Make, dynamic: str) -> None:
    exported, trained = make("torch-export", dynamic)
    assert exported.error <= 1e-4
    extra = {METADATA_FILE: ""}
    program = torch.export.load(exported.files[0], extra_files=extra)
    assert json.loads(json.loads(extra[METADATA_FILE])["classes"]) == list(trained.task.classes)
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [operator for operator in operators if "vmamba" in operator or "mkldnn" in operator]
    shapes = [(1, 3, 8, 8), (2, 3, 40, 33), (1, 3, 9, 300)] if dynamic else [(1, 3, 24, 24)]
    module = program.module()  # takes seconds where sizes are open
    for shape in shapes:
        pixels = pixels_of(*shape)
        with torch.inference_mode():
            assert_same(module(pixels).detach().numpy(), trained.model(pixels))


# v052dc scans by `selective_scan`, the others by `ss2d_scan`.
@pytest.mark.parametrize(
    ("forward_type", "dynamic", "dtype"),
    [
        ("v05_noz", "", "float32"),
        pytest.param("v05_noz", EVERY, "float32", marks=pytest.mark.endless),
        pytest.param("v052dc", "", "bfloat16", marks=pytest.mark.endless),
    ],
)
def test_aoti(forward_type: str, dynamic: str, dtype: str, tmp_path: Path) -> None:
    source = weight_file(tmp_path / "w.safetensors", **TINIEST, forward_type=forward_type, ssm_d_state=2)
    path = tmp_path / "m.pt2"
    tolerance = TOLERANCES[dtype]
    assert aoti.kernel_library() is not None
    assert export(ExportConfig(str(source), "aoti", path, dynamic, dtype)).error <= tolerance
    trained = load_trained(source)
    shapes = [(1, 3, 8, 8), (2, 3, 40, 33), (1, 3, 9, 300), (3, 3, 4, 4)] if dynamic else [(1, 3, 24, 24)]
    images = [pixels_of(*shape) for shape in shapes]
    torch.save(images, tmp_path / "images.pt")
    subprocess.run([sys.executable, "-c", ALONE, str(tmp_path)], check=True)
    got = torch.load(tmp_path / "logits.pt")
    for pixels, logits in zip(images, got, strict=True):
        with torch.inference_mode():
            assert_same(logits.numpy(), trained.model(pixels), tolerance)
    with pytest.raises(CheckpointError, match=r"--to aoti.*; export to onnx, openvino, torch-export"):
        open_exported(path)
    loaded = torch._inductor.aoti_load_package(str(path))
    assert json.loads(loaded.get_metadata()["classes"]) == list(trained.task.classes)


ALONE = """
import sys
import torch
folder = sys.argv[1]
model = torch._inductor.aoti_load_package(folder + "/m.pt2")
with torch.no_grad():
    torch.save([model(pixels) for pixels in torch.load(folder + "/images.pt")], folder + "/logits.pt")
assert "vmamba" not in sys.modules
"""


@pytest.mark.endless
def test_aoti_without_the_kernels_library(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aoti, "kernel_library", lambda: None)
    assert make("aoti")[0].error <= 1e-4


@pytest.mark.parametrize("to", ["openvino", "torch-export"])
def test_bfloat16(make: Make, to: str) -> None:
    full, half = make(to, EVERY)[0], make(to, "", "bfloat16")[0]
    assert full.error < half.error <= 5e-2
    model, metadata = open_exported(half.files[0])
    pixels = pixels_of(3, 3, 24, 24)  # of a file for one
    with torch.inference_mode():
        assert_same(model(pixels).numpy(), make(to, EVERY)[1].model(pixels), 5e-2)
    if to == "openvino":
        assert metadata["dtype"] == "bfloat16"
        constants = [
            op for op in openvino.Core().read_model(half.files[0]).get_ops() if "Constant" in op.get_type_name()
        ]
        wide = [op.get_byte_size() for op in constants if op.get_element_type() == openvino.Type.f32]
        assert sum(wide) < 0.01 * sum(op.get_byte_size() for op in constants)
    else:
        dtypes = {t.dtype for t in torch.export.load(half.files[0]).state_dict.values()}
        assert dtypes == {torch.bfloat16}
