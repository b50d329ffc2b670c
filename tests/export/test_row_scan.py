"""The scan's form for ONNX against the oracle: hard values, odd maps, every scan mode, and in the runtimes."""

from __future__ import annotations

import math

import pytest
import torch
from map_cases import HARD, map_inputs, map_oracle
from scan_cases import check, inputs
from torch import Tensor, nn

from vmamba.export import block_scan, row_scan
from vmamba.kernels import torch_prefix as torch_scan
from vmamba.scan import selective_scan_reference
from vmamba.scan.dispatch import operators, stand_in
from vmamba.scan.orders import SCAN_MODES

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("mode", SCAN_MODES)
@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 7), (6, 1), (5, 8)])
@pytest.mark.parametrize("n", [1, 3])
def test_it_is_the_scan(mode: str, h: int, w: int, n: int) -> None:
    values = map_inputs(2, h, w, 5, n)
    check(row_scan.ss2d_scan(*values, mode, True), map_oracle(values, mode), 2e-6, "y")


def test_without_skip_bias_and_softplus() -> None:
    values = map_inputs(1, 4, 6, 5, 2)
    values[3] = values[5] = None
    values[2] = values[2].abs()
    values[1] = values[1].abs()
    check(row_scan.ss2d_scan(*values, "cross2d", False), map_oracle(values, "cross2d", False), 2e-6, "y")


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize(("h", "w"), [(1, 1), (9, 7), (8, 8), (5, 13)])
def test_hard_values(name: str, h: int, w: int) -> None:
    step, decay = HARD[name]
    values = map_inputs(1, h, w, 4, 1, step=step, decay=decay)
    check(row_scan.ss2d_scan(*values, "cross2d", True), map_oracle(values, "cross2d"), 4e-6, name)


@pytest.mark.long
@pytest.mark.parametrize("name", HARD)
def test_hard_values_on_a_large_map(name: str) -> None:
    step, decay = HARD[name]
    values = map_inputs(1, 56, 56, 4, 1, step=step, decay=decay)
    check(row_scan.ss2d_scan(*values, "cross2d", True), map_oracle(values, "cross2d"), 1e-5, name)


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("length", [1, 63, 65])
def test_selective_scan(n: int, length: int) -> None:
    values = inputs(2, 2, 3, n, length)
    want = selective_scan_reference(*(v.double() for v in values), True)
    check(row_scan.selective_scan(*values, True), want, 2e-6, "y")


def test_softplus_keeps_small_values() -> None:
    x = torch.linspace(-80, 80, 1601)
    want = nn.functional.softplus(x.double(), threshold=math.inf)
    assert ((block_scan.softplus(x).double() - want).abs() <= 4e-7 * want).all()


def test_it_stands_in_only_inside_the_block() -> None:
    u, A = torch.ones(1, 2, 3), torch.ones(2, 1)
    with stand_in("torch", row_scan):
        assert operators("torch", "selective_scan", u, A) is row_scan
    assert operators("torch", "selective_scan", u, A) is torch_scan


class Scan(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, x: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor) -> Tensor:
        return row_scan.ss2d_scan(x, x_dbl, dt_weight, dt_bias, A, D, self.mode, True)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["tiny", "large"])
def test_runtimes_keep_the_accuracy(runtime: str, name: str, tmp_path) -> None:
    """Also that no optimizer of theirs simplifies away what softplus does for small values."""
    from vmamba.export.onnx_scan import OPSET, translations

    step, decay = HARD[name]
    values = map_inputs(1, 7, 9, 16, 1, step=step, decay=decay)
    values[5] = torch.zeros_like(values[5])  # the skip would hide small values
    program = torch.onnx.export(
        Scan("rot2d").eval(),
        tuple(values),
        dynamo=True,
        opset_version=OPSET,
        custom_translation_table=translations(),
        verbose=False,
    )
    path = tmp_path / "scan.onnx"
    program.save(path)
    if runtime == "onnxruntime":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]
        got = session.run(None, {key: value.numpy() for key, value in zip(names, values, strict=True)})[0]
    else:
        openvino = pytest.importorskip("openvino")
        model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        got = model([value.numpy() for value in values])[0]
    check(torch.from_numpy(got.copy()), map_oracle(values, "rot2d"), 2e-5, runtime)
