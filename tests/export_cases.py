"""What the tests of exports share: small models as weight files, and what is read out of ONNX files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import vmamba
from vmamba.data import Preprocessing
from vmamba.inference.exported import METADATA_FILE, OPENVINO_ENTRY
from vmamba.tasks.classification.task import Classification
from vmamba.tasks.trained import save_trained, weight_metadata

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SMALL = {"dims": [8, 16], "depths": [1, 1], "num_classes": 5}
#: One stage of one block: nothing is exported faster.
TINIEST = {"dims": [8], "depths": [1]}


def small_model(seed: int = 0, **options: object) -> vmamba.VSSM:
    torch.manual_seed(seed)
    return vmamba.create_model("vmamba_nano", **{**SMALL, **options}).eval()


def weight_file(path: Path, size: int = 24, **options: object) -> Path:
    """A weight file as a run writes it, of a small untrained model."""
    model = small_model(**options)
    preprocessing = Preprocessing(size, model.config.in_chans, (0.5,) * 3, (0.25,) * 3)
    task = Classification(tuple("abcde"), preprocessing)
    save_trained(path, model.state_dict(), weight_metadata("vmamba_nano", model, task))
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


class Pooled(torch.nn.Module):
    """A classifier of three classes: which channel is brightest."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) * 3

    def onnx_nodes(self) -> list[onnx.NodeProto]:
        three = onnx.helper.make_tensor("three", onnx.TensorProto.FLOAT, [], [3.0])
        return [
            onnx.helper.make_node("Constant", [], ["c"], value=three),
            onnx.helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
            onnx.helper.make_node("Flatten", ["mean"], ["flat"]),
            onnx.helper.make_node("Mul", ["flat", "c"], ["y"]),
        ]


class Pointwise(torch.nn.Module):
    """A segmenter of three classes: which channel of a pixel is brightest."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x

    def onnx_nodes(self) -> list[onnx.NodeProto]:
        return [onnx.helper.make_node("Add", ["x", "x"], ["y"])]


Shape = tuple[int | None, int, int | None, int | None]


def tiny_file(
    path: Path, metadata: dict[str, str], shape: Shape = (2, 3, 2, 2), network: Pooled | Pointwise | None = None
) -> Path:
    """A file of the kind that its name says, for images of ``shape``; ``metadata`` as given."""
    network = network or Pooled()
    if path.suffix == ".pt2":
        example = torch.zeros([size or 4 + axis for axis, size in enumerate(shape)])
        dims = {axis: torch.export.Dim.AUTO for axis, size in enumerate(shape) if size is None}
        program = torch.export.export(network, (example,), dynamic_shapes=(dims,))
        extra = {METADATA_FILE: json.dumps(metadata)} if metadata else None
        torch.export.save(program, path, extra_files=extra)
        return path
    helper = onnx.helper
    sizes = [size or f"n{axis}" for axis, size in enumerate(shape)]
    sides = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes if name == "x" else None) for name in "xy"
    ]
    graph = helper.make_graph(network.onnx_nodes(), "g", sides[:1], sides[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if path.suffix == ".onnx":
        helper.set_model_props(proto, metadata)
        onnx.save(proto, path)
        return path
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().read_model(proto.SerializeToString())
    for name, text in metadata.items():
        model.set_rt_info(text, [OPENVINO_ENTRY, name])
    openvino.save_model(model, path, compress_to_fp16=False)
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
