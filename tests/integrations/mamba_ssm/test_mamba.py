"""The stand-in's `Mamba` in all its directions against a plain loop in float64: outputs, gradients, decoding, keys."""

import io

import pytest
import torch
import torch.nn.functional as F
from scan_cases import check

from vmamba import ConfigError, InputError
from vmamba.integrations.mamba_ssm.modules.generation import InferenceParams
from vmamba.integrations.mamba_ssm.modules.mamba_simple import Block, Mamba

#: name: (options of `Mamba`, passes of the loop, factor on their sum)
VARIANTS = {
    "none": ({}, 1),
    "no fast path": ({"use_fast_path": False}, 1),
    "biases": ({"bias": True, "conv_bias": False, "dt_rank": 3, "d_conv": 3, "expand": 1.5}, 1),
    "gamma": ({"init_layer_scale": 0.5}, 1),
    "v1": ({"bimamba_type": "v1"}, 1),
    "v2": ({"bimamba_type": "v2"}, 1),
    "bimamba": ({"bimamba": True, "bias": True}, 1),
    "v2 divided": ({"bimamba_type": "v2", "if_divide_out": True, "init_layer_scale": 2.0}, 0.5),
    "v2 devided": ({"bimamba_type": "v2", "if_devide_out": True}, 0.5),
    "v3": ({"bimamba_type": "v3", "nslices": 3}, 1),
    "v3 of frames": ({"bimamba_type": "v3", "nframes": 3}, 1 / 3),
}
#: float32: sums of a few dozen terms lose some ulp; both relative to the largest value.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}


def make(dtype=torch.float32, **options):
    """A small block whose values are all told apart."""
    torch.manual_seed(0)
    model = Mamba(**{"d_model": 10, "d_state": 4, **options}).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, dtype=torch.float64).to(dtype))
    return model


def tokens(length, batch=2, dtype=torch.float32):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, 10, generator=draw, dtype=torch.float64).to(dtype)


def one_pass(p, x, z, suffix, order, back_A=None):
    """Convolve and scan ``x (b, l, d)`` in the order of ``order``, one position at a time."""
    weight, n = p[f"conv1d{suffix}.weight"][:, 0], p[f"A{suffix}_log"].shape[1]
    width, rank = weight.shape[1], p[f"dt_proj{suffix}.weight"].shape[1]
    u, step, B, C = {}, {}, {}, {}
    for i, t in enumerate(order):
        total = p.get(f"conv1d{suffix}.bias", 0)
        for j in range(width):
            if i - j >= 0:
                total = total + weight[:, width - 1 - j] * x[:, order[i - j]]
        u[t] = F.silu(total)
        low, B[t], C[t] = (u[t] @ p[f"x_proj{suffix}.weight"].T).split([rank, n, n], dim=-1)
        step[t] = F.softplus(low @ p[f"dt_proj{suffix}.weight"].T + p[f"dt_proj{suffix}.bias"])

    def scanned(places, A_log):
        h, y = 0, {}
        for t in places:
            h = torch.exp(-step[t][..., None] * A_log.exp()) * h + (step[t] * u[t])[..., None] * B[t][:, None]
            y[t] = ((h * C[t][:, None]).sum(-1) + p[f"D{suffix}"] * u[t]) * F.silu(z[:, t])
        return torch.stack([y[t] for t in range(len(order))], dim=1)

    y = scanned(order, p[f"A{suffix}_log"])
    return y if back_A is None else y + scanned(order[::-1], back_A)


def loop(p, hidden, kind, slices, factor):
    """`Mamba` as the papers have it, of parameters by name."""
    xz = hidden @ p["in_proj.weight"].T + p.get("in_proj.bias", 0)
    x, z = xz.chunk(2, dim=-1)
    order = list(range(hidden.shape[1]))
    y = one_pass(p, x, z, "", order, p.get("A_b_log") if kind == "v1" else None)
    if kind in ("v2", "v3"):
        y = y + one_pass(p, x, z, "_b", order[::-1])
    if kind == "v3":
        each = len(order) // slices
        y = y + one_pass(p, x, z, "_s", [s * each + i for i in range(each) for s in range(slices)])
    return (factor * y @ p["out_proj.weight"].T + p.get("out_proj.bias", 0)) * p.get("gamma", 1)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_and_gradients_equal_the_plain_loop(name, dtype):
    options, factor = VARIANTS[name]
    model, x = make(dtype, **options), tokens(9, dtype=dtype).requires_grad_()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    names, parameters = zip(*model.named_parameters(), strict=True)
    y = model(x)
    assert y.dtype == dtype
    got = torch.autograd.grad((y.double() * weight).sum(), [x, *parameters])

    exact = {name: p.detach().double().requires_grad_() for name, p in zip(names, parameters, strict=True)}
    x64 = x.detach().double().requires_grad_()
    want = loop(exact, x64, model.bimamba_type, 3, factor)
    check(y, want, TOLERANCES[dtype], "y")
    for what, ours, theirs in zip(
        ("x", *names), got, torch.autograd.grad((want * weight).sum(), [x64, *exact.values()]), strict=True
    ):
        check(ours, theirs, TOLERANCES[dtype], f"d{what}")


@pytest.mark.parametrize("length", [1, 2, 70])
@pytest.mark.parametrize("kind", ["none", "v1", "v2"])
def test_lengths(kind, length):
    model, x = make(bimamba_type=kind), tokens(length)
    exact = {name: p.detach().double() for name, p in model.named_parameters()}
    check(model(x), loop(exact, x.double(), kind, 3, 1), 1e-5, "y")


@pytest.mark.parametrize("kind", ["none", "v1", "v2", "v3"])
def test_both_paths_give_the_same_numbers(kind):
    fast, plain = (make(bimamba_type=kind, nslices=3, use_fast_path=on) for on in (True, False))
    assert torch.equal(fast(tokens(9)), plain(tokens(9)))


# Position by position.


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("options", [{}, {"bias": True, "conv_bias": False, "init_layer_scale": 0.5}], ids=str)
def test_steps_equal_the_whole(options, dtype, tolerance):
    model, x = make(dtype, **options), tokens(11, dtype=dtype)
    states = model.allocate_inference_cache(2, 11)
    assert [tuple(s.shape) for s in states] == [(2, 20, 4), (2, 20, 4)]
    outputs = []
    for t in range(11):
        out, *same = model.step(x[:, t : t + 1], *states)
        assert all(a is b for a, b in zip(same, states, strict=True))
        outputs.append(out)
    check(torch.cat(outputs, dim=1), model(x).double(), tolerance, "steps")


@pytest.mark.parametrize("prompt", [1, 3, 4, 7])
def test_a_prompt_then_steps_equal_the_whole(prompt):
    model, x = make(layer_idx=5), tokens(11)
    params = InferenceParams(max_seqlen=11, max_batch_size=2)
    with torch.inference_mode():
        outputs = [model(x[:, :prompt], inference_params=params)]
        params.seqlen_offset = prompt
        for t in range(prompt, 11):
            outputs.append(model(x[:, t : t + 1], inference_params=params))
            params.seqlen_offset += 1
        whole = model(x)
    assert list(params.key_value_memory_dict) == [5]
    check(torch.cat(outputs, dim=1), whole.double(), 1e-5, "decoded")


def test_a_prompt_with_gradients_leaves_none_in_the_cache():
    model, params = make(layer_idx=0), InferenceParams(4, 2)
    model(tokens(4), inference_params=params).sum().backward()
    assert not any(state.requires_grad for state in params.key_value_memory_dict[0])


# Keys, starts, dtypes.

PASS = ("A{}_log", "D{}", "conv1d{}.weight", "conv1d{}.bias", "x_proj{}.weight", "dt_proj{}.weight", "dt_proj{}.bias")
OWN = {"none": (), "v1": ("A_b_log",), "v2": ("_b",), "v3": ("_b", "_s")}


@pytest.mark.parametrize("kind", OWN)
def test_keys_and_shapes(kind):
    shapes = {key: tuple(t.shape) for key, t in Mamba(32, bimamba_type=kind).state_dict().items()}
    of_pass = [(64, 16), (64,), (64, 1, 4), (64,), (34, 64), (64, 2), (64,)]
    want = {"in_proj.weight": (128, 32), "out_proj.weight": (32, 64)}
    for suffix in ("", *(word for word in OWN[kind] if word in ("_b", "_s"))):
        want.update({key.format(suffix): shape for key, shape in zip(PASS, of_pass, strict=True)})
    if kind == "v1":
        want["A_b_log"] = (64, 16)
    assert shapes == want


def test_optional_keys():
    keys = set(Mamba(16, bias=True, conv_bias=False, init_layer_scale=1e-2).state_dict())
    assert {"in_proj.bias", "out_proj.bias", "gamma"} <= keys
    assert "conv1d.bias" not in keys


@pytest.mark.parametrize("kind", OWN)
def test_state_dicts_go_round(kind):
    model, file = make(bimamba_type=kind, nslices=3), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = Mamba(10, d_state=4, bimamba_type=kind, nslices=3)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(model(tokens(9)), other(tokens(9)))


def test_initial_values():
    torch.manual_seed(0)
    model = Mamba(64, d_state=8, dt_min=0.01, dt_max=0.02, dt_scale=0.5, bimamba_type="v3", init_layer_scale=1e-5)
    for suffix in ("", "_b", "_s"):
        A_log, D = getattr(model, f"A{suffix}_log"), getattr(model, f"D{suffix}")
        torch.testing.assert_close(A_log.exp(), torch.arange(1.0, 9.0).repeat(128, 1))
        assert torch.equal(D, torch.ones(128))
        assert A_log._no_weight_decay
        assert D._no_weight_decay
    assert model.dt_proj.bias._no_reinit
    steps = F.softplus(model.dt_proj.bias)
    assert 0.00999 <= steps.min() < 0.0105
    assert 0.0195 < steps.max() <= 0.02001
    assert 0.24 < model.dt_proj.weight.abs().max() <= 0.25  # 0.5 · r^-½ with r = 4
    assert (model.gamma == 1e-5).all()
    assert (Mamba(64, dt_init="constant").dt_proj.weight == 0.5).all()


def test_dtype_and_device_of_the_parameters():
    model = Mamba(16, dtype=torch.bfloat16, device="cpu")
    kept = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert kept == {"A_log", "D"}
    assert model(torch.randn(1, 5, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert Mamba(16, device="meta").in_proj.weight.is_meta


@pytest.mark.parametrize("kind", OWN)
def test_autocast(kind):
    model, x = make(bimamba_type=kind, nslices=3), tokens(9)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    check(y, model(x).double(), 2**-6, "y under autocast")
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_a_step_under_autocast():
    model, x = make(), tokens(1)
    with torch.autocast("cpu", torch.bfloat16):
        y, _, _ = model.step(x, *model.allocate_inference_cache(2, 1))
    check(y, model(x).double(), 2**-6, "step under autocast")


# Mistakes.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bimamba_type": "v22"}, r"'v22' is unknown; legal: none, v1, v2, v3; did you mean 'v2'"),
        ({"dt_init": "randm"}, "did you mean 'random'"),
        ({"dt_rank": "full"}, "legal: a number, or 'auto'"),
        ({"dt_min": 1.0, "dt_max": 0.5}, "dt_min=1.0, dt_max=0.5"),
    ],
)
def test_unknown_words(options, words):
    with pytest.raises(ConfigError, match=words):
        Mamba(16, **options)


def test_shapes_that_do_not_fit():
    with pytest.raises(InputError, match=r"\(2, 3, 7\), want \(b, l, c\) with c = 10"):
        make()(torch.zeros(2, 3, 7))
    with pytest.raises(InputError, match="length 7 is no multiple of nslices = 5"):
        make(bimamba_type="v3")(tokens(7))
    model = make()
    states = model.allocate_inference_cache(2, 1)
    with pytest.raises(InputError, match=r"a step takes .*\(b, 1, 10\), given \(2, 2, 10\)"):
        model.step(tokens(2), *states)


@pytest.mark.parametrize("kind", ["v1", "v2", "v3"])
def test_bidirectional_blocks_have_no_steps(kind):
    model = make(bimamba_type=kind, layer_idx=0)
    with pytest.raises(InputError, match="reads the sequence from its end"):
        model(tokens(5), inference_params=InferenceParams(5, 2))
    with pytest.raises(InputError, match="has no step"):
        model.step(tokens(1), *model.allocate_inference_cache(2, 1))


def test_a_cache_needs_a_place():
    with pytest.raises(ConfigError, match="give Mamba a layer_idx"):
        make()(tokens(5), inference_params=InferenceParams(5, 2))


def test_the_early_block():
    block = Block(10, lambda dim: Mamba(dim, d_state=4))
    x = tokens(5)
    y, residual = block(x)
    assert torch.equal(residual, x)
    torch.testing.assert_close(y, block.mixer(block.norm(x)))
    y, residual = block(x, residual)
    assert torch.equal(residual, 2 * x)
    assert set(dict(block.named_children())) == {"mixer", "norm"}
    with pytest.raises(ConfigError, match="given BatchNorm1d"):
        Block(10, Mamba, torch.nn.BatchNorm1d, fused_add_norm=True)
