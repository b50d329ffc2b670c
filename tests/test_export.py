"""Export: every kind of file gives the model's logits, nothing wrong is left behind, and ONNX files can be used."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import vmamba
from vmamba.app import COMMANDS
from vmamba.errors import CheckpointError, ConfigError, ExportError, OutputError
from vmamba.ops.backends import recorded_runs
from vmamba.tasks import export as export_module
from vmamba.tasks import export_source, export_targets, onnx_model
from vmamba.tasks.evaluate import EvaluateConfig, evaluate
from vmamba.tasks.export import ExportConfig, export
from vmamba.tasks.export_graph import Graph
from vmamba.tasks.onnx_model import load_onnx
from vmamba.tasks.predict import PredictConfig, predict
from vmamba.tasks.run_folder import load_trained, save_trained, weight_metadata

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")

SMALL = {"dims": [8, 16], "depths": [1, 1], "num_classes": 5}


def small_model(seed: int = 0, **options: object) -> vmamba.VSSM:
    torch.manual_seed(seed)
    return vmamba.create_model("vmamba_nano", **{**SMALL, **options}).eval()


def weight_file(path: Path, size: int = 24, **options: object) -> Path:
    """A weight file as a run writes it, of a small untrained model."""
    from vmamba.data import Preprocessing

    model = small_model(**options)
    preprocessing = Preprocessing(size, model.config.in_chans, (0.5,) * 3, (0.25,) * 3)
    classes = tuple("abcde")
    save_trained(path, model.state_dict(), weight_metadata("vmamba_nano", model.config, classes, preprocessing))
    return path


def node_count(path: Path) -> int:
    def count(graph: object) -> int:
        inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
        return len(graph.node) + sum(map(count, inner))

    return count(onnx.load(path).graph)


def onnx_logits(path: Path, pixels: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: pixels.numpy()})[0]


def assert_same(got: np.ndarray, want: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert np.abs(got - want.numpy()).max() <= tolerance * want.abs().max()


# v052d3 reads in rotations, v052dc in two passes, v2 has a gate; vmamba_nano's own has neither gate nor n > 1.
FORMS = [("v05_noz", 1), ("v052d", 4), ("v052d3", 2), ("v052dc", 2), ("v2", 1), ("v051d_noz", 1)]


@pytest.mark.long
@pytest.mark.parametrize(("forward_type", "n"), FORMS)
def test_onnx_gives_the_models_logits_at_any_size(forward_type: str, n: int, tmp_path: Path) -> None:
    source = weight_file(tmp_path / "w.safetensors", forward_type=forward_type, ssm_d_state=n)
    path = tmp_path / "m.onnx"
    exported = export(ExportConfig(str(source), "onnx", path, dynamic="batch,height,width"))
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
        pixels = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            assert_same(onnx_logits(path, pixels), model(pixels))


@pytest.mark.long
def test_the_node_count_does_not_depend_on_the_image_size(tmp_path: Path) -> None:
    counts = []
    for size in (16, 56):
        source = weight_file(tmp_path / f"{size}.safetensors", size=size)
        path = tmp_path / f"{size}.onnx"
        export(ExportConfig(str(source), "onnx", path))
        counts.append(node_count(path))
    assert counts[0] == counts[1]
    assert Counter(node.op_type for node in onnx.load(path).graph.node)["Scan"] == 2 * 4 * 2  # blocks, ways, levels


@pytest.mark.long
@pytest.mark.parametrize("dynamic", ["", "batch,height,width"])
@pytest.mark.parametrize(("to", "name"), [("openvino", "m.xml"), ("torch-export", "m.pt2")])
def test_other_targets(to: str, name: str, dynamic: str, tmp_path: Path) -> None:
    source = weight_file(tmp_path / "w.safetensors", dims=[8], depths=[1])
    exported = export(ExportConfig(str(source), to, tmp_path / "out" / name, dynamic=dynamic))
    assert exported.error <= 1e-4
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == (["m.bin", "m.xml"] if to == "openvino" else ["m.pt2"])
    trained = load_trained(source)
    pixels = torch.randn(*((2, 3, 40, 33) if dynamic else (1, 3, 24, 24)))
    with torch.inference_mode():
        want = trained.model(pixels)
    if to == "openvino":
        model = openvino.Core().read_model(exported.files[0])
        classes = json.loads(model.get_rt_info(["vmamba", "classes"]).astype(str))
        compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        assert_same(compiled([pixels.numpy()])[0], want)
    else:
        extra = {export_targets.METADATA_FILE: ""}
        program = torch.export.load(exported.files[0], extra_files=extra)
        classes = json.loads(json.loads(extra[export_targets.METADATA_FILE])["classes"])
        operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert not [operator for operator in operators if "vmamba" in operator or "mkldnn" in operator]
        assert_same(program.module()(pixels).detach().numpy(), want)
    assert classes == list(trained.classes)


@pytest.mark.long
def test_aoti(tmp_path: Path) -> None:
    source = weight_file(tmp_path / "w.safetensors", depths=[1], dims=[8])
    exported = export(ExportConfig(str(source), "aoti", tmp_path / "m.pt2"))
    loaded = torch._inductor.aoti_load_package(str(exported.files[0]))
    pixels = torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        assert_same(loaded(pixels).numpy(), load_trained(source).model(pixels))
    assert json.loads(loaded.get_metadata()["classes"]) == list("abcde")


@pytest.mark.long
@pytest.mark.parametrize(("to", "name"), [("openvino", "m.xml"), ("torch-export", "m.pt2")])
def test_bfloat16(to: str, name: str, tmp_path: Path) -> None:
    source = weight_file(tmp_path / "w.safetensors")
    full = export(ExportConfig(str(source), to, tmp_path / f"full-{name}"))
    half = export(ExportConfig(str(source), to, tmp_path / name, dtype="bfloat16"))
    assert full.error < half.error <= 5e-2
    if to == "openvino":
        assert half.files[1].stat().st_size < 0.6 * full.files[1].stat().st_size
    else:
        dtypes = {t.dtype for t in torch.export.load(half.files[0]).state_dict.values()}
        assert dtypes == {torch.bfloat16}


def test_bfloat16_is_refused_for_onnx() -> None:
    with pytest.raises(ConfigError, match=r"dtype=bfloat16 is not for onnx: .*--to openvino"):
        ExportConfig("vmamba_nano", "onnx", dtype="bfloat16")


def fake_target(monkeypatch: pytest.MonkeyPatch, offset: float = 0.0, fails: BaseException | None = None) -> None:
    """Let the target "openvino" be two text files, run by the model itself, off by a share of the scale."""

    def write(graph: Graph, path: Path) -> list[Path]:
        path.write_text("graph")
        path.with_suffix(".bin").write_text("weights")
        if fails is not None:
            raise fails
        return [path, path.with_suffix(".bin")]

    def run(path: Path, graph: Graph) -> export_targets.Runner:
        def logits(pixels: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                out = graph.model(pixels)
            return out + offset * out.abs().max()

        return logits

    target = export_targets.TARGETS["openvino"]
    values = {**vars(target), "write": write, "open": run, "packages": ()}
    monkeypatch.setattr(export_module, "TARGETS", {**export_targets.TARGETS, "openvino": type(target)(**values)})


@pytest.mark.parametrize("offset", [2e-4, float("nan")])
def test_a_file_that_is_off_is_removed(offset: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = weight_file(tmp_path / "w.safetensors")
    fake_target(monkeypatch, offset)
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match=r"openvino file is off by .* allowed 1e-04; it was removed"):
        export(ExportConfig(str(source), "openvino", tmp_path / "out/m.xml"))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.long
def test_a_real_file_of_wrong_weights_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = weight_file(tmp_path / "w.safetensors")

    def write(graph: Graph, path: Path) -> list[Path]:
        other = Graph(small_model(seed=1), graph.size, graph.axes, graph.dtype, graph.metadata)
        return export_targets._write_onnx(other, path)

    target = export_targets.TARGETS["onnx"]
    changed = type(target)(**{**vars(target), "write": write})
    monkeypatch.setattr(export_module, "TARGETS", {**export_targets.TARGETS, "onnx": changed})
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="onnx file is off by"):
        export(ExportConfig(str(source), "onnx", tmp_path / "out/m.onnx"))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError("exporter's own\n\ntrouble"), OSError(28, "No space left on device")])
def test_a_failed_export_leaves_what_was_there(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = weight_file(tmp_path / "w.safetensors")
    fake_target(monkeypatch, fails=error)
    (tmp_path / "out").mkdir()
    for name in ("m.xml", "m.bin"):
        (tmp_path / "out" / name).write_text("old")
    with pytest.raises((ExportError, OutputError), match=r"exporter's own|No space left"):
        export(ExportConfig(str(source), "openvino", tmp_path / "out/m.xml"))
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {"m.xml": "old", "m.bin": "old"}


@pytest.mark.parametrize("before", [True, False])
def test_of_two_files_both_are_placed_or_none(before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = weight_file(tmp_path / "w.safetensors")
    fake_target(monkeypatch)
    out = tmp_path / "out"
    out.mkdir()
    if before:
        (out / "m.xml").write_text("old")
        (out / "m.bin").write_text("old")
    replace = os.replace

    def refuse(here: Path, there: Path) -> None:
        if Path(there) == out / "m.xml" and not str(here).endswith(".old"):
            raise PermissionError(13, "Permission denied")
        replace(here, there)

    monkeypatch.setattr(export_module.os, "replace", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        export(ExportConfig(str(source), "openvino", out / "m.xml"))
    want = {"m.xml": "old", "m.bin": "old"} if before else {}
    assert {path.name: path.read_text() for path in out.iterdir()} == want
    monkeypatch.setattr(export_module.os, "replace", replace)
    export(ExportConfig(str(source), "openvino", out / "m.xml"))
    assert {path.name: path.read_text() for path in out.iterdir()} == {"m.xml": "graph", "m.bin": "weights"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "onyx"}, r"to='onyx': want .*did you mean 'onnx'"),
        ({"dynamic": "batch,depth"}, r"'depth' is not one of batch, height, width"),
        ({"dtype": "float16"}, r"dtype='float16': want float32 or bfloat16"),
        ({"output": Path("m.pt2")}, r"output m\.pt2: a file for onnx ends in \.onnx"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExportConfig(**{"source": "vmamba_nano", "to": "onnx", **options})


def test_wrong_sources(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'vmamba_nanno' is neither .*did you mean 'vmamba_nano'"):
        export(ExportConfig("vmamba_nanno", "onnx", tmp_path / "m.onnx"))
    with pytest.raises(CheckpointError, match="there is no run or weight file"):
        export(ExportConfig(str(tmp_path / "runs/a"), "onnx", tmp_path / "m.onnx"))
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'onnx needs onnx, onnxscript, onnxruntime: pip install "vmamba\[onnx\]"'):
        export(ExportConfig("vmamba_nano", "onnx", tmp_path / "m.onnx"))
    with pytest.raises(ConfigError, match=r'pip install "vmamba\[openvino\]"'):
        export(ExportConfig("vmamba_nano", "openvino", tmp_path / "m.xml"))


def test_a_named_model_has_fresh_weights_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    source = export_source.load_source("vmamba_nano")
    assert "fresh, random weights" in (source.warning or "")
    assert source.pixels.shape == (2, 3, 224, 224)
    assert len(source.classes) == source.model.config.num_classes
    again = export_source.load_source("vmamba_nano")
    assert torch.equal(source.model.classifier.head.weight, again.model.classifier.head.weight)
    assert "vmamba weights get vmamba_tiny_s1l8" in (export_source.load_source("vmamba_tiny_s1l8").warning or "")


def test_a_runs_own_images_are_used(colour_run: Path) -> None:
    source = export_source.load_source(str(colour_run))
    assert source.classes == ("blue", "green", "red")
    assert source.pixels.shape == (4, 3, 16, 16)
    assert "4 validation images of folder" in source.described
    assert source.warning is None


@pytest.mark.long
def test_predict_and_eval_take_an_onnx_file(colour_run: Path, colour_images: Path, tmp_path: Path) -> None:
    path = tmp_path / "colours.onnx"
    text = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    export(ExportConfig(str(colour_run), "onnx", path), text)
    said = text.export_text()
    assert re.search(r"largest error against the model.*: \d\.\de-0\d \(allowed 1e-04; 6 images\)", said)
    assert f"wrote {path}" in said

    images = (colour_images / "red", colour_images / "blue")
    own = predict(PredictConfig(images, colour_run, output=tmp_path / "a", sheet=0))
    with recorded_runs() as runs:
        got = predict(PredictConfig(images, path, output=tmp_path / "b", sheet=0))
    assert runs == []  # ONNX Runtime computed, not we
    for one, other in zip(own, got, strict=True):
        assert one.path == other.path
        assert one.classes == other.classes
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)

    from vmamba.data import DataConfig

    data = DataConfig("folder", colour_images)
    want = evaluate(EvaluateConfig(colour_run, split="val")).scores
    scores = evaluate(EvaluateConfig(path, data, split="val")).scores
    assert scores.confusion == want.confusion
    assert scores.loss == pytest.approx(want.loss, abs=1e-4)


def tiny_onnx(path: Path, metadata: dict[str, str], batch: int | str = 2) -> Path:
    """A file that flattens and multiplies; ``metadata`` as given."""
    helper, types = onnx.helper, onnx.TensorProto
    weight = onnx.numpy_helper.from_array(np.arange(36, dtype=np.float32).reshape(12, 3), "w")
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", types.FLOAT, [batch, 3, 2, 2])],
        [helper.make_tensor_value_info("y", types.FLOAT, [batch, 3])],
        [weight],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(proto, metadata)
    onnx.save(proto, path)
    return path


META = {
    "format": "vmamba",
    "model": "m",
    "classes": '["a", "b", "c"]',
    "preprocessing": json.dumps(
        {
            "image_size": 2,
            "in_chans": 3,
            "mean": [0.0, 0.0, 0.0],
            "std": [1.0, 1.0, 1.0],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
        }
    ),
}


@pytest.mark.parametrize("batch", [1, 2, 4, "n"])
def test_a_fixed_batch_takes_any_number_of_images(batch: int | str, tmp_path: Path) -> None:
    model = load_onnx(tiny_onnx(tmp_path / "m.onnx", META, batch)).model
    pixels = torch.randn(5, 3, 2, 2)
    want = pixels.flatten(1) @ torch.arange(36.0).reshape(12, 3)
    torch.testing.assert_close(model(pixels), want)
    with pytest.raises(vmamba.InputError, match=r"takes images .* given \(1, 3, 4, 2\).*--dynamic"):
        model(torch.zeros(1, 3, 4, 2))


def test_foreign_and_broken_onnx_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "i.png")

    def use(path: Path, device: str = "auto") -> None:
        predict(PredictConfig((tmp_path / "i.png",), path, output=tmp_path / "out", device=device))

    with pytest.raises(CheckpointError, match=r"missing: model, classes, preprocessing.*vmamba export --to onnx"):
        use(tiny_onnx(tmp_path / "foreign.onnx", {}))
    with pytest.raises(CheckpointError, match=r"missing: format"):
        use(tiny_onnx(tmp_path / "other.onnx", {**META, "format": "theirs"}))
    with pytest.raises(CheckpointError, match=r"description cannot be read.*export it again"):
        use(tiny_onnx(tmp_path / "bad.onnx", {**META, "classes": "["}))
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=r"broken\.onnx cannot be run by ONNX Runtime"):
        use(tmp_path / "broken.onnx")
    with pytest.raises(CheckpointError, match="no such file"):
        use(tmp_path / "none.onnx")
    good = tiny_onnx(tmp_path / "good.onnx", META)
    with pytest.raises(ConfigError, match="on the CPU; give device=cpu"):
        use(good, "cuda")
    use(good)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r'pip install "vmamba\[onnx\]"'):
        onnx_model.load_onnx(good)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[ExportConfig] = []
    monkeypatch.setattr(export_module, "export", lambda config, console: seen.append(config))
    words = ["runs/a", "--to", "onnx", "--dynamic", "batch,height", "--output", "x.onnx"]
    assert COMMANDS["export"]("export", words) == 0
    assert seen == [ExportConfig("runs/a", "onnx", Path("x.onnx"), "batch,height")]
    assert seen[0].axes == ("batch", "height")
