"""What the tests of exports share: small models as weight files, and what is read out of ONNX files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import vmamba
from vmamba.data import Preprocessing
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
