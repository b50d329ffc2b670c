"""SS1D, SS2D and SS3D in orders of their own: symmetry, states, parameters, compiled and exported, mistakes."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vmamba import SS1D, SS2D, SS3D, AxisOrder, ConfigError, IndexOrder, InputError
from vmamba.layers import SS1DState, VSSBlock3D
from vmamba.layers.mixer import ScanMixer
from vmamba.scan.any_order import cross, diagonal, windows

FOUR = [AxisOrder((0, 1)), AxisOrder((1, 0), (0,)), AxisOrder((0, 1), (0,)), AxisOrder((1, 0), (0, 1))]
MAMBA2: dict[str, Any] = {"forward_type": "m0_noz", "initialize": "v2", "dt_rank": 2}
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "SS1D": (lambda **options: SS1D(8, d_state=2, causal=False, **options), (11,)),
    "SS2D": (lambda **options: SS2D(8, d_state=2, forward_type="v05", **{"scan_orders": FOUR, **options}), (5, 6)),
    "SS3D": (lambda **options: SS3D(8, d_state=2, gate=True, **options), (3, 5, 4)),
}


@pytest.fixture(autouse=True)
def _fixed_numbers() -> None:
    torch.manual_seed(0)


def turned(layer: ScanMixer, permutation: tuple[int, ...], flips: tuple[int, ...]) -> ScanMixer:
    """The layer that does to ``x.permute(…).flip(flips)`` what ``layer`` does to ``x``."""
    other = copy.deepcopy(layer)
    assert layer.scan_orders is not None
    other.scan_orders = tuple(order.permuted(*permutation).flipped(*flips) for order in layer.scan_orders)  # type: ignore[union-attr]
    conv: nn.Module = getattr(other, other.CONV)
    axes = [2 + axis for axis in permutation]
    weight = conv.weight.detach().permute(0, 1, *axes).flip([2 + axis for axis in flips])  # type: ignore[operator]
    conv.weight = nn.Parameter(weight.contiguous())
    return other


@pytest.mark.parametrize(
    ("name", "permutation", "flips"),
    [
        ("SS1D", (0,), (0,)),
        ("SS2D", (0, 1), (0,)),
        ("SS2D", (0, 1), (0, 1)),
        ("SS2D", (1, 0), ()),
        ("SS2D", (1, 0), (1,)),
        ("SS3D", (0, 1, 2), (1,)),
        ("SS3D", (2, 0, 1), ()),
        ("SS3D", (1, 0, 2), (0, 2)),
        ("SS3D", (2, 1, 0), (0, 1, 2)),
    ],
)
@pytest.mark.parametrize("backend", ["oflex", "torch"])
def test_axes_of_input_and_orders_turned_together(
    name: str, permutation: tuple[int, ...], flips: tuple[int, ...], backend: str
) -> None:
    make, sizes = LAYERS[name]
    layer = make(selective_scan_backend=backend)
    other = turned(layer, permutation, flips)

    def turn(x: Tensor) -> Tensor:
        ndim = len(sizes)
        return x.permute(0, *(1 + axis for axis in permutation), 1 + ndim).flip([1 + axis for axis in flips])

    x = torch.randn(2, *sizes, 8)
    with torch.no_grad():
        want = turn(layer(x))
        assert (other(turn(x)) - want).abs().max() <= 1e-6 * want.abs().max()


@pytest.mark.parametrize("name", LAYERS)
def test_channels_first_and_backward(name: str) -> None:
    make, sizes = LAYERS[name]
    layer, x = make(), torch.randn(2, *sizes, 8, requires_grad=True)
    first = copy.deepcopy(layer)
    first.channel_first = True
    y = layer(x)
    torch.testing.assert_close(first(x.movedim(-1, 1)).movedim(1, -1), y)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert x.grad is not None
    with pytest.raises(InputError, match=rf"{name} takes \(b, {layer.SIZES}, 8\), given"):
        layer(torch.zeros(2, *sizes, 7))


@pytest.mark.parametrize(
    "orders", ["cross", "diagonal", "windows", windows(2), [AxisOrder((1, 0))], [lambda h, w: range(h * w)]]
)
def test_ss2d_in_orders_of_ones_own(orders: Any) -> None:
    layer = SS2D(8, d_state=1, forward_type="v05_noz", scan_orders=orders)
    k = 1 if isinstance(orders, list) else 4
    assert layer.directions == k
    assert layer.x_proj_weight.shape[0] == layer.dt_projs_weight.shape[0] == k
    assert layer.A_logs.shape[0] == k * layer.d_inner
    for sizes in ((4, 5), (7, 3)):
        y = layer(torch.randn(1, *sizes, 8))
        assert y.shape == (1, *sizes, 8)


@pytest.mark.parametrize("options", [{"forward_type": "v05_noz"}, MAMBA2], ids=["v05", "m0"])
def test_the_default_is_the_cross_scan_with_the_same_keys(options: dict[str, Any]) -> None:
    layer = SS2D(8, d_state=2, **options)
    named = SS2D(8, d_state=2, scan_orders="cross", **options)
    assert list(layer.state_dict()) == list(named.state_dict())
    named.load_state_dict(layer.state_dict())
    x = torch.randn(2, 6, 5, 8)
    assert torch.equal(layer(x), named(x))


@pytest.mark.parametrize("name", LAYERS)
def test_directions_that_share_their_parameters(name: str) -> None:
    make, sizes = LAYERS[name]
    shared, own = make(share_directions=True), make()
    k = own.directions
    state = shared.state_dict()
    assert {key: tuple(t.shape) for key, t in state.items() if key in ("x_proj_weight", "dt_projs_bias")} == {
        "x_proj_weight": (1, *own.x_proj_weight.shape[1:]), "dt_projs_bias": (1, own.d_inner),
    }  # fmt: skip
    for key in ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds"):
        state[key] = state[key].repeat(k, *(1,) * (state[key].dim() - 1))
    own.load_state_dict(state)
    x = torch.randn(1, *sizes, 8)
    y, want = shared(x), own(x)
    torch.testing.assert_close(y, want)
    (got,) = torch.autograd.grad(y.square().sum(), shared.x_proj_weight)
    (each,) = torch.autograd.grad(want.square().sum(), own.x_proj_weight)
    torch.testing.assert_close(got, each.sum(0, keepdim=True), rtol=1e-4, atol=1e-5)


def test_mamba2s_scan_in_orders_of_ones_own() -> None:
    shared = SS2D(8, d_state=2, scan_orders=[*diagonal(), AxisOrder((1, 0))], share_directions=True, **MAMBA2)
    own = SS2D(8, d_state=2, scan_orders=shared.scan_orders, **MAMBA2)
    assert own.A_logs.shape == own.dt_projs_bias.shape == (5, 2)
    assert shared.x_proj_weight.shape[0] == shared.A_logs.shape[0] == shared.Ds.shape[0] == 1
    state = shared.state_dict()
    for key in ("x_proj_weight", "dt_projs_bias", "A_logs", "Ds"):
        state[key] = state[key].repeat(5, *(1,) * (state[key].dim() - 1))
    own.load_state_dict(state)
    x = torch.randn(2, 4, 5, 8)
    y, want = shared(x), own(x)
    torch.testing.assert_close(y, want)
    for parameter, other in ((shared.x_proj_weight, own.x_proj_weight), (shared.A_logs, own.A_logs)):
        (got,), (each,) = (
            torch.autograd.grad(t.square().sum(), p, retain_graph=True) for t, p in ((y, parameter), (want, other))
        )
        torch.testing.assert_close(got, each.sum(0, keepdim=True), rtol=1e-4, atol=1e-5)


def test_a_layer_is_copied_saved_and_loaded_with_its_orders() -> None:
    layer = SS2D(8, d_state=1, forward_type="v05_noz", scan_orders=[*diagonal(), IndexOrder(range(12), (3, 4))])
    x = torch.randn(1, 3, 4, 8)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize(
    "layer",
    [
        SS1D(8, d_state=1, causal=False),
        SS2D(8, d_state=1, forward_type="v05_noz", scan_orders="diagonal"),
        SS2D(8, d_state=1, forward_type="v05_noz", scan_orders=[IndexOrder(range(20), (4, 5))]),
        SS3D(8, d_state=1, share_directions=True),
        SS2D(8, d_state=2, **MAMBA2),
        SS2D(8, d_state=2, scan_orders="diagonal", **MAMBA2),
    ],
    ids=["SS1D", "diagonal", "listed", "SS3D", "m0", "m0 diagonal"],
)
def test_compiled_and_exported(layer: ScanMixer) -> None:
    sizes = (4, 5, 3)[: layer.SIZES.count(",") + 1]
    x = torch.randn(1, *sizes, 8)
    want = layer(x)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), want)
    for backend in ("torch",) if layer.forward_type.family == "m0" else ("torch", "oflex"):
        layer.selective_scan_backend = backend
        with torch.no_grad():
            program = torch.export.export(layer, (x,), strict=False)
            torch.testing.assert_close(program.module()(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("d_conv", "gate"), [(4, True), (1, False)])
@pytest.mark.parametrize("backend", ["oflex", "torch"])
def test_a_sequence_in_pieces_and_place_by_place(d_conv: int, gate: bool, backend: str) -> None:
    layer = SS1D(8, d_state=3, d_conv=d_conv, gate=gate, selective_scan_backend=backend)
    x = torch.randn(2, 9, 8, requires_grad=True)
    whole = layer(x)
    first, state = layer(x[:, :2], return_last_state=True)
    second, last = layer(x[:, 2:], state, return_last_state=True)
    pieces = torch.cat([first, second], 1)
    torch.testing.assert_close(pieces, whole)
    (got,) = torch.autograd.grad(pieces.square().sum(), x, retain_graph=True)
    (want,) = torch.autograd.grad(whole.square().sum(), x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    state, ys = layer.empty_state(x), []
    for t in range(9):
        y, state = layer.step(x[:, t], state)
        ys.append(y)
    torch.testing.assert_close(torch.stack(ys, 1), whole)
    torch.testing.assert_close(tuple(state), tuple(last))


def test_a_causal_layer_knows_nothing_of_what_comes() -> None:
    layer, x = SS1D(8, d_state=2), torch.randn(1, 9, 8)
    changed = x.clone()
    changed[:, 5:] += 1
    assert torch.equal(layer(x)[:, :5], layer(changed)[:, :5])
    assert not torch.equal(SS1D(8, d_state=2, causal=False)(x)[:, :5], layer(changed)[:, :5])


def test_mistakes_with_states() -> None:
    both, causal, x = SS1D(8, causal=False), SS1D(8, d_state=2), torch.zeros(2, 4, 8)
    with pytest.raises(InputError, match="reads both ways"):
        both(x, return_last_state=True)
    with pytest.raises(InputError, match="reads both ways"):
        both.empty_state(x)
    state = causal.empty_state(x)
    with pytest.raises(InputError, match=r"\[\(2, 2, 16\), \(2, 16, 3\)\], want .*\[\(2, 2, 16\), \(2, 16, 2\)\]"):
        causal(x, SS1DState(state.convolution, torch.zeros(2, 16, 3)))
    with pytest.raises(InputError, match=r"step takes \(b, 8\), given \(2, 4, 8\)"):
        causal.step(x, state)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SS1D(8, scan_orders="cross"), "causal=False"),
        (lambda: SS1D(8, out_norm="softmax"), "cannot be causal"),
        (lambda: SS1D(8, d_conv=4, causal=False), "d_conv 4 would shrink"),
        (lambda: SS2D(8, forward_type="v052d", scan_orders="cross"), r"'v052d' names directions.*\(bidi\)"),
        (lambda: SS2D(8, forward_type="v052dc", share_directions=True), "cascade2d"),
        (lambda: SS2D(8, scan_orders=cross(3)), "maps with 3 axes, but the layer's have 2"),
        (lambda: SS3D(8, scan_orders="diagonal"), "not of 3 axes"),
        (lambda: SS3D(8, out_norm="dwconv3"), "out_norm 'dwconv3' is unknown here; legal: ln, none"),
        (lambda: SS3D(8, d_conv=2), "d_conv 2 would shrink the volume"),
        (lambda: SS3D(8, d_state=0), "SS3D needs"),
    ],
)
def test_options_that_cannot_be(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_a_block_of_volumes() -> None:
    block = VSSBlock3D(8, use_checkpoint=True).train()
    x = torch.randn(1, 3, 4, 5, 8, requires_grad=True)
    y = block(x)
    y.sum().backward()
    torch.testing.assert_close(block.eval()(x), y)
    with pytest.raises(InputError, match=r"VSSBlock3D takes \(b, z, h, w, 8\)"):
        block(x[0])
