"""The command: its options and sources, and that nothing wrong is left behind; the targets are played by a fake."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import os
from pathlib import Path

import pytest
import torch
from export_cases import TINIEST, small_model, weight_file
from rich.console import Console

from vmamba.cli.table import COMMANDS
from vmamba.errors import CheckpointError, ConfigError, ExportError, OutputError
from vmamba.export import exporter as export_module
from vmamba.export import source as export_source
from vmamba.export import targets as export_targets
from vmamba.export.exporter import ExportConfig, export
from vmamba.export.graph import Graph


def test_bfloat16_is_refused_for_onnx() -> None:
    with pytest.raises(ConfigError, match=r"dtype=bfloat16 is not for onnx: .*--to openvino"):
        ExportConfig("vmamba_nano", "onnx", dtype="bfloat16")


def fake_target(
    monkeypatch: pytest.MonkeyPatch, offset: float = 0.0, fails: BaseException | None = None, to: str = "openvino"
) -> None:
    """Let a target be two text files, run by the model itself, off by a share of the scale."""

    written: list[torch.nn.Module] = []

    def write(graph: Graph, path: Path) -> list[Path]:
        written.append(graph.model)
        path.write_text("graph")
        path.with_suffix(".bin").write_text("weights")
        if fails is not None:
            raise fails
        return [path, path.with_suffix(".bin")]

    def run(path: Path) -> export_targets.Runner:
        def logits(pixels: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                out = written[-1](pixels)
            return out + offset * out.abs().max()

        return logits

    target = export_targets.TARGETS[to]
    values = {**vars(target), "write": write, "open": run, "packages": ()}
    monkeypatch.setattr(export_module, "TARGETS", {**export_targets.TARGETS, to: type(target)(**values)})


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
    source = weight_file(tmp_path / "w.safetensors", **TINIEST)

    def write(graph: Graph, path: Path) -> list[Path]:
        other = dataclasses.replace(graph, model=small_model(seed=1, **TINIEST))
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
    assert len(source.task.classes) == source.model.config.num_classes
    again = export_source.load_source("vmamba_nano")
    assert torch.equal(source.model.classifier.head.weight, again.model.classifier.head.weight)
    assert "vmamba weights get vmamba_tiny_s1l8" in (export_source.load_source("vmamba_tiny_s1l8").warning or "")


def test_a_runs_own_images_are_used(colour_run: Path) -> None:
    source = export_source.load_source(str(colour_run))
    assert source.task.classes == ("blue", "green", "red")
    assert source.pixels.shape == (4, 3, 16, 16)
    assert "4 validation images of folder" in source.described
    assert source.warning is None


@pytest.mark.parametrize(
    ("dynamic", "library", "warned"), [("height", None, True), ("height", "a", False), ("", None, False)]
)
def test_without_the_scans_library_it_says_how_long_aoti_takes(
    dynamic: str, library: str | None, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = weight_file(tmp_path / "w.safetensors", **TINIEST)
    fake_target(monkeypatch, to="aoti")
    monkeypatch.setattr(export_module, "kernel_library", lambda: library and Path(library))
    said = io.StringIO()
    export(ExportConfig(str(source), "aoti", tmp_path / "m.pt2", dynamic), Console(file=said))
    assert ("more than ten minutes" in said.getvalue()) == warned


def test_of_mamba2_too_it_says_how_long_aoti_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = weight_file(tmp_path / "w.safetensors", **TINIEST, forward_type="m0_noz", ssm_init="v2", ssm_d_state=4)
    fake_target(monkeypatch, to="aoti")
    said = io.StringIO()
    export(ExportConfig(str(source), "aoti", tmp_path / "m.pt2", "height"), Console(file=said, width=200))
    assert "inductor compiles Mamba-2's scan for all sizes itself" in said.getvalue()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[ExportConfig] = []
    monkeypatch.setattr(export_module, "export", lambda config, console: seen.append(config))
    words = ["runs/a", "--to", "onnx", "--dynamic", "batch,height", "--output", "x.onnx"]
    assert COMMANDS["export"]("export", words) == 0
    assert seen == [ExportConfig("runs/a", "onnx", Path("x.onnx"), "batch,height")]
    assert seen[0].axes == ("batch", "height")
