"""Packed products and layers: the numbers of the layers that they stand for, on every instruction set."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vmamba
from vmamba.errors import BackendError, ConfigError
from vmamba.inference import packed_layers
from vmamba.inference.pack import pack
from vmamba.inference.packed_layers import PackedSequence
from vmamba.kernels.interface import recorded_runs
from vmamba.kernels.native import library as native
from vmamba.kernels.native.convolution import PackedConvolution
from vmamba.kernels.native.depthwise import forward_call, taps_of
from vmamba.kernels.native.products import PackedMatrix, obstacle, packed_linear, packed_mlp, rounded
from vmamba.kernels.native.program import Immediate
from vmamba.kernels.native.structs import ACTIVATION_CODES

pytestmark = pytest.mark.skipif(native.obstacle() is not None, reason="the compiled kernels are not here")

DTYPES = (torch.float32, torch.bfloat16)
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
EXACT: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda x: x, "gelu": F.gelu, "silu": F.silu}


@pytest.fixture(params=native.isas()[1] if native.obstacle() is None else [])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with native.forced_isa(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def dtypes_here() -> list[torch.dtype]:
    """Those that the instruction set in force multiplies."""
    return [dtype for dtype in DTYPES if not obstacle(dtype)]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def assert_near(got: Tensor, exact: Tensor, tolerance: float) -> None:
    assert got.shape == exact.shape
    assert (got.double() - exact).abs().max() <= tolerance * exact.abs().max()


# ---- products ------------------------------------------------------------------------------------------------------

SHAPES = [(1, 1, 1), (3, 5, 7), (29, 17, 33), (49, 96, 56), (113, 31, 96), (200, 40, 48), (333, 33, 17)]


@pytest.mark.parametrize(("rows", "c_in", "c_out"), SHAPES)
@pytest.mark.parametrize("activation", ACTIVATION_CODES)
def test_linear(isa: str, rows: int, c_in: int, c_out: int, activation: Any) -> None:
    x, weight, bias = numbers(rows, c_in) * 2 + 1, numbers(c_out, c_in) / c_in**0.5, numbers(c_out)
    residual, z, affine = numbers(rows, c_out), numbers(rows, c_in, seed=1), torch.zeros(2, rounded(c_in))
    affine[:, :c_in] = numbers(2, c_in)
    for dtype, normed, gated in itertools.product(dtypes_here(), (False, True), (False, True)):
        exact = F.layer_norm(x.double(), (c_in,), eps=1e-3) if normed else x.double()
        if gated:
            exact = (exact * affine[0, :c_in] + affine[1, :c_in]) * z
        exact = exact.float().to(dtype).double() if dtype != torch.float32 else exact
        exact = EXACT[activation](exact @ weight.to(dtype).double().t() + bias) + residual
        options: dict[str, Any] = {"norm_eps": 1e-3 if normed else None, "activation": activation}
        if gated:
            options["gate"] = z, affine
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            matrix = PackedMatrix(weight, bias, dtype)
            y = residual.clone()
            packed_linear(Immediate(), x, matrix, y, residual=y, **options)
            results.append(y)
        assert_near(results[0], exact, TOLERANCE[dtype])
        assert all(torch.equal(y, results[0]) for y in results)


@pytest.mark.parametrize(("rows", "c", "hidden"), SHAPES)
@pytest.mark.parametrize("activation", ACTIVATION_CODES)
def test_mlp(isa: str, rows: int, c: int, hidden: int, activation: Any) -> None:
    x = numbers(rows, c)
    weight1, bias1 = numbers(hidden, c) / c**0.5, numbers(hidden)
    weight2, bias2 = numbers(c, hidden) / hidden**0.5, numbers(c)
    for dtype, normed in itertools.product(dtypes_here(), (False, True)):
        exact = F.layer_norm(x.double(), (c,), eps=1e-3) if normed else x.double()
        exact = exact.float().to(dtype).double() if dtype != torch.float32 else exact
        exact = EXACT[activation](exact @ weight1.to(dtype).double().t() + bias1)
        exact = exact.float().to(dtype).double() if dtype != torch.float32 else exact
        exact = exact @ weight2.to(dtype).double().t() + bias2 + x
        first, second = PackedMatrix(weight1, bias1, dtype), PackedMatrix(weight2, bias2, dtype)
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            y = x.clone()
            eps = 1e-3 if normed else None
            packed_mlp(Immediate(), y, first, second, y, norm_eps=eps, activation=activation, residual=y)
            results.append(y)
        assert_near(results[0], exact, TOLERANCE[dtype])
        assert all(torch.equal(y, results[0]) for y in results)


def test_16_bit_rows_strided_rows_and_16_bit_results(isa: str) -> None:
    matrix = PackedMatrix(numbers(20, 24), None, torch.float32)
    wide = numbers(50, 40)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = wide.to(dtype)[:, 8:32]
        exact = F.layer_norm(x.double(), (24,)) @ numbers(20, 24).double().t()
        y = packed_linear(Immediate(), x, matrix, torch.empty(50, 20, dtype=dtype), norm_eps=1e-5)
        assert_near(y, exact, {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype])


@pytest.mark.parametrize(
    ("c_in", "c_out", "kernel", "stride", "padding", "height", "width"),
    [
        (3, 48, 3, 2, 1, 14, 15),
        (48, 96, 3, 2, 1, 9, 7),
        (5, 7, 2, 2, 0, 8, 6),
        (1, 1, 4, 4, 0, 8, 8),
        (16, 33, 5, 3, 2, 4, 1),
        (2, 3, 5, 1, 4, 2, 2),
        (8, 8, 1, 1, 0, 3, 3),
    ],
)
def test_convolution(
    isa: str, c_in: int, c_out: int, kernel: int, stride: int, padding: int, height: int, width: int
) -> None:
    weight, bias = numbers(c_out, c_in, kernel, kernel) / (c_in * kernel**2) ** 0.5, numbers(c_out)
    norm = numbers(c_out, seed=1), numbers(c_out, seed=2)
    for dtype, normed, activation in itertools.product(dtypes_here(), (False, True), ACTIVATION_CODES):
        x = numbers(2, height, width, c_in + 3).to(dtype)[..., 1 : 1 + c_in]
        exact = F.conv2d(
            x.double().permute(0, 3, 1, 2), weight.to(dtype).double(), bias.double(), stride, padding
        ).permute(0, 2, 3, 1)
        if normed:
            exact = F.layer_norm(exact, (c_out,), norm[0].double(), norm[1].double(), 1e-5)
        exact = EXACT[activation](exact)
        packed = PackedConvolution(weight, bias, stride, padding, dtype, (*norm, 1e-5) if normed else None, activation)
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(packed(Immediate(), x))
        # A norm over one channel divides what rounding left of nothing by √eps.
        assert_near(results[0], exact, TOLERANCE[dtype] * (1 if c_out > 1 else 300))
        assert all(torch.equal(y, results[0]) for y in results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 16, 33])
@pytest.mark.parametrize("activation", ACTIVATION_CODES)
def test_depthwise_in_16_bits(isa: str, dtype: torch.dtype, channels: int, activation: Any) -> None:
    x, weight, bias = numbers(2, 5, 6, channels).to(dtype), numbers(channels, 1, 3, 3), numbers(channels)
    exact = F.conv2d(x.double().permute(0, 3, 1, 2), weight.double(), bias.double(), padding=1, groups=channels)
    exact = EXACT[activation](exact).permute(0, 2, 3, 1)
    y = torch.empty_like(x)
    Immediate().add(forward_call(x, taps_of(weight), bias, activation, y))
    assert_near(y, exact, {torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}[dtype])


def test_dtypes_that_cannot_be_packed() -> None:
    assert obstacle(torch.float16) == "there are none for torch.float16"
    with native.forced_isa("portable"):
        assert "'portable' does not multiply bfloat16" in obstacle(torch.bfloat16)
        with pytest.raises(BackendError, match=r"packed products cannot run: .* does not multiply bfloat16"):
            PackedMatrix(numbers(2, 2), None, torch.bfloat16)


# ---- layers --------------------------------------------------------------------------------------------------------


def tiny(**options: Any) -> vmamba.VSSM:
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_nano", **{"dims": [16, 32], "depths": [2, 1], "num_classes": 5, **options})
    for name, t in itertools.chain(model.named_parameters(), model.named_buffers()):
        if "norm" in name or name.endswith("bias"):
            t.data = t.data + 0.2 * torch.rand_like(t) if t.is_floating_point() else t.data
    return model.eval()


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        ({}, 3),
        ({"forward_type": "v2", "ssm_d_state": 4, "ssm_ratio": 2.0}, 3),
        ({"forward_type": "v052d_nozact"}, 3),
        ({"forward_type": "v051d_noz", "ssm_conv": 3, "ssm_conv_bias": False}, 3),
        ({"forward_type": "v0", "ssm_d_state": 3}, 3),
        ({"forward_type": "v05_onnone"}, 3),
        ({"norm_layer": "bn"}, 3),
        ({"downsample_version": "v1", "patchembed_version": "v1"}, 3),
        ({"downsample_version": "v2", "patch_norm": False, "posembed": True}, 3),
        ({"mlp_act_layer": "silu", "dims": [17, 34]}, 3),
        ({"forward_type": "v2", "ssm_act_layer": "gelu"}, 3),
        ({"forward_type": "m0_noz", "ssm_d_state": 5, "ssm_dt_rank": 4, "ssm_init": "v2"}, 3),
        ({"forward_type": "m0_noz", "ssm_act_layer": "gelu", "dims": [8, 24], "ssm_dt_rank": 8, "ssm_init": "v2"}, 3),
        ({"ssm_ratio": 0.0}, 3),
        ({"mlp_ratio": 0.0}, 3),
        # What the packed layers do not compute stays as it is.
        ({"gmlp": True}, 0),
        ({"post_norm": True}, 0),
        ({"forward_type": "v052dc"}, 0),
        ({"forward_type": "v05_noz_onsigmoid"}, 0),
        ({"forward_type": "v05_noz_oact"}, 0),
        ({"ssm_act_layer": "relu"}, 0),
        ({"ssm_conv": 5}, 0),
        ({"selective_scan_backend": "torch"}, 0),
    ],
    ids=str,
)
def test_models(isa: str, options: dict[str, Any], blocks: int) -> None:
    model = tiny(**options)
    for dtype in dtypes_here():
        packed = copy.deepcopy(model)
        assert pack(packed, dtype) == blocks
        for shape in ((1, 3, 32, 48), (3, 3, 40, 32), (1, 3, 32, 48)):
            with torch.no_grad():
                exact, y = model(images(*shape)), packed(images(*shape).to(dtype))
            assert y.dtype == dtype
            assert_near(y, exact.double(), {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype])


def packed_tiny() -> tuple[vmamba.VSSM, vmamba.VSSM]:
    model = tiny()
    packed = copy.deepcopy(model)
    assert pack(packed, torch.float32) == 3
    return model, packed


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = model(x)
    return y


def test_calls_at_once_or_as_a_program_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    _, packed = packed_tiny()
    together = run(packed, images(2, 3, 32, 48))
    sequences = [m for m in packed.modules() if isinstance(m, PackedSequence)]
    assert len(sequences) == 4  # embedding, blocks, downsampling, blocks
    assert all(program is not None for s in sequences for program in s._programs.values())
    _, packed = packed_tiny()
    monkeypatch.setattr(packed_layers, "_MOST_BYTES", 0)
    assert torch.equal(run(packed, images(2, 3, 32, 48)), together)
    sequences = [m for m in packed.modules() if isinstance(m, PackedSequence)]
    assert all(program is None for s in sequences for program in s._programs.values())


def test_few_programs_are_kept_and_threads_have_their_own() -> None:
    _, packed = packed_tiny()
    for size in range(32, 32 + 8 * 6, 8):
        run(packed, images(1, 3, size, size))
    torch.set_num_threads(torch.get_num_threads() + 1)
    run(packed, images(1, 3, size, size))
    for sequence in packed.modules():
        if isinstance(sequence, PackedSequence):
            assert len(sequence._programs) == packed_layers._SHAPES_KEPT
            assert sequence._programs.popitem()[0] != sequence._programs.popitem()[0]


def test_results_are_the_callers_own_and_inputs_stay() -> None:
    _, packed = packed_tiny()
    x = images(1, 3, 32, 32)
    before = x.clone()
    first = run(packed, x)
    kept = first.clone()
    run(packed, images(1, 3, 32, 32) + 1)
    assert torch.equal(first, kept)
    assert torch.equal(x, before)
    map_in = numbers(1, 8, 8, 16)
    map_before = map_in.clone()
    for sequence in (packed.layers[0].blocks, next(iter(packed.layers[0].blocks.children())).layers[0]):
        run(sequence, map_in)
        assert torch.equal(map_in, map_before)


def test_from_several_threads_of_python() -> None:
    model, packed = packed_tiny()
    batches = [images(1, 3, 32, 32 + 16 * (i % 3)) + i for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: run(packed, x), batches))
    for x, y in zip(batches, results, strict=True):
        assert_near(y, run(model, x).double(), 1e-5)


def test_an_empty_batch() -> None:
    model, packed = packed_tiny()
    assert run(packed, images(0, 3, 32, 32)).shape == run(model, images(0, 3, 32, 32)).shape == (0, 5)


def test_scans_are_recorded() -> None:
    _, packed = packed_tiny()
    run(packed, images(1, 3, 32, 32))
    with recorded_runs() as runs:
        run(packed, images(1, 3, 32, 32))
    assert [(r.backend, r.op, r.detail) for r in runs] == [("oflex", "ss2d_scan", native.isa())] * 3


def test_weights_stay_on_the_instruction_set_that_they_were_laid_out_for() -> None:
    model, packed = packed_tiny()
    with native.forced_isa("portable"):
        assert_near(run(packed, images(1, 3, 32, 32)), run(model, images(1, 3, 32, 32)).double(), 1e-5)


def test_what_was_hooked_patched_or_replaced_stays() -> None:
    def hooked(model: vmamba.VSSM) -> None:
        model.layers[0].blocks[0].op.out_proj.register_forward_hook(lambda module, inputs, y: 2 * y)

    def patched(model: vmamba.VSSM) -> None:
        block = model.layers[0].blocks[0]
        block.mlp.forward = lambda x: 3 * x

    def replaced(model: vmamba.VSSM) -> None:
        class Doubled(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return 2 * super().forward(x)

        mlp = model.layers[0].blocks[0].mlp
        mlp.fc1 = Doubled(mlp.fc1.in_features, mlp.fc1.out_features).requires_grad_(False)

    for change in (hooked, patched, replaced):
        model = tiny()
        change(model)
        packed = copy.deepcopy(model)
        assert pack(packed, torch.float32) == 2
        assert_near(run(packed, images(1, 3, 32, 32)), run(model, images(1, 3, 32, 32)).double(), 1e-5)


def test_under_another_backend_nothing_is_packed() -> None:
    model = tiny()
    with vmamba.backend("torch"):
        assert pack(model, torch.float32) == 0


def test_copies_share_weights_and_nothing_is_saved() -> None:
    model, packed = packed_tiny()
    run(packed, images(1, 3, 32, 32))
    twin = copy.deepcopy(packed)
    del packed
    assert_near(run(twin, images(1, 3, 32, 32)), run(model, images(1, 3, 32, 32)).double(), 1e-5)
    with pytest.raises(ConfigError, match="packed weights fit this machine only; save the model"):
        pickle.dumps(twin)


def test_backbone_maps() -> None:
    torch.manual_seed(0)
    model = vmamba.Backbone_VSSM(dims=[16, 32], depths=[1, 1], out_indices=(0, 1)).eval()
    packed = copy.deepcopy(model)
    assert pack(packed, torch.float32) == 2
    with torch.no_grad():
        for one, other in zip(packed(images(1, 3, 32, 48)), model(images(1, 3, 32, 48)), strict=True):
            assert_near(one, other.double(), 1e-5)
