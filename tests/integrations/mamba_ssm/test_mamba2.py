"""The stand-in's `Mamba2` against a plain loop in float64: outputs, gradients, packed rows, decoding, keys."""

import math

import pytest
import torch
import torch.nn.functional as F
from scan_cases import check

from vmamba import ConfigError, InputError
from vmamba.integrations.mamba_ssm.mamba2.layer import Mamba2
from vmamba.integrations.mamba_ssm.modules.generation import InferenceParams
from vmamba.integrations.mamba_ssm.modules.mixer_seq_simple import MambaLMHeadModel
from vmamba.integrations.mamba_ssm.stand_in import NotProvidedError

c = 12

VARIANTS = {
    "plain": {},
    "groups": {"ngroups": 2},
    "skips of channels": {"D_has_hdim": True},
    "no norm": {"rmsnorm": False},
    "norm before gate": {"norm_before_gate": True, "ngroups": 2},
    "limits": {"dt_limit": (0.01, 0.05)},
    "MLP beside": {"d_ssm": 12, "bias": True},
    "no biases": {"conv_bias": False, "d_conv": 3, "expand": 1, "headdim": 3},
}
#: float32: sums of a few dozen terms lose some ulp; both relative to the largest value.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}


def make(dtype=torch.float32, **options):
    """A small layer whose values are all told apart."""
    torch.manual_seed(0)
    model = Mamba2(**{"d_model": c, "d_state": 5, "headdim": 6, "layer_idx": 3, **options}).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, dtype=torch.float64).to(dtype))
    return model


def tokens(length=9, batch=2, dtype=torch.float32):
    draw = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, c, generator=draw, dtype=torch.float64).to(dtype)


def loop(model, p, hidden, numbers=None):
    """`Mamba2` as the paper has it, of float64 parameters by name: position by position, head by head."""
    b, length, _ = hidden.shape
    h, width, g, n = model.nheads, model.headdim, model.ngroups, model.d_state
    d, m = model.d_ssm, model.d_inner - model.d_ssm
    numbers = torch.zeros(b, length, dtype=torch.long) if numbers is None else numbers
    zxbcdt = hidden @ p["in_proj.weight"].T + p.get("in_proj.bias", 0)
    z0, x0, z, xBC, dt = zxbcdt.split([m, m, d, d + 2 * g * n, h], dim=-1)
    weight, bias = p["conv1d.weight"][:, 0], p.get("conv1d.bias", 0)
    D = p["D"].view(h, width) if model.D_has_hdim else p["D"][:, None].expand(h, width)
    rows = []
    for row in range(b):
        state, outputs = [torch.zeros(width, n, dtype=torch.float64)] * h, []
        for t in range(length):
            window = [
                weight[:, -1 - back] * xBC[row, t - back]
                for back in range(weight.shape[1])
                if back <= t and len(numbers[row, t - back : t + 1].unique()) == 1
            ]
            x, B, C = F.silu(sum(window) + bias).split([d, g * n, g * n])
            x, B, C = x.view(h, width), B.view(g, n), C.view(g, n)
            if t and numbers[row, t] != numbers[row, t - 1]:
                state = [torch.zeros_like(each) for each in state]
            y = []
            for i in range(h):
                step = F.softplus(dt[row, t, i] + p["dt_bias"][i]).clamp(*model.dt_limit)
                group = i // (h // g)
                driven = step * torch.outer(x[i], B[group])
                state = [*state[:i], torch.exp(-step * p["A_log"][i].exp()) * state[i] + driven, *state[i + 1 :]]
                y.append(state[i] @ C[group] + D[i] * x[i])
            outputs.append(torch.cat(y))
        rows.append(torch.stack(outputs))
    y, gate = torch.stack(rows), F.silu(z)
    if model.rmsnorm:
        y = y if model.norm_before_gate else y * gate
        groups = y.unflatten(-1, (g, -1))
        y = (groups / (groups.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(-2) * p["norm.weight"]
        y = y * gate if model.norm_before_gate else y
    else:
        y = y * gate
    y = torch.cat([F.silu(z0) * x0, y], dim=-1)
    return y @ p["out_proj.weight"].T + p.get("out_proj.bias", 0)


def exact(model):
    return {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_and_gradients_equal_the_plain_loop(name, dtype):
    model, x = make(dtype, **VARIANTS[name]), tokens(dtype=dtype).requires_grad_()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = model(x)
    assert y.dtype == dtype
    names, parameters = zip(*model.named_parameters(), strict=True)
    got = torch.autograd.grad((y.double() * weight).sum(), [x, *parameters])
    p, x64 = exact(model), x.detach().double().requires_grad_()
    want = loop(model, p, x64)
    check(y, want, TOLERANCES[dtype], "y")
    gradients = torch.autograd.grad((want * weight).sum(), [x64, *p.values()])
    for what, ours, theirs in zip(("x", *names), got, gradients, strict=True):
        check(ours, theirs, TOLERANCES[dtype], f"d{what}")


@pytest.mark.parametrize("length", [1, 2, 70])
def test_lengths(length):
    model, x = make(), tokens(length)
    check(model(x), loop(model, exact(model), x.double()), 1e-5, "y")
    assert torch.equal(model(x.flatten(0, 1), seqlen=length), model(x).flatten(0, 1))


def test_sequences_in_a_row_do_not_see_each_other():
    model, x = make(torch.float64, ngroups=2), tokens(dtype=torch.float64).requires_grad_()
    numbers = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0, 1, 2, 2]])
    y, want = model(x, seq_idx=numbers), loop(model, exact(model), x, numbers)
    check(y, want, 1e-10, "y")
    ours, theirs = (torch.autograd.grad(out.square().sum(), x)[0] for out in (y, want))
    check(ours, theirs, 1e-10, "dx")
    check(y[:1, 3:5], model(x[:1, 3:5]), 1e-10, "a sequence of its own")


def test_bfloat16_and_autocast():
    model, x = make(torch.bfloat16), tokens(40, dtype=torch.bfloat16)
    y = model(x)
    assert y.dtype == torch.bfloat16
    check(y, loop(model, exact(model), x.double()), 3e-2, "bfloat16")
    wide = make()
    with torch.autocast("cpu", torch.bfloat16):
        y = wide(x.float())
    assert y.dtype == torch.bfloat16
    check(y, loop(wide, exact(wide), x.double()), 3e-2, "autocast")


# Position by position.


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_steps_equal_the_whole(name, dtype, tolerance):
    model, x = make(dtype, **VARIANTS[name]), tokens(7, dtype=dtype)
    states = model.allocate_inference_cache(2, 7)
    rows = model.d_ssm + 2 * model.ngroups * 5
    assert [tuple(s.shape) for s in states] == [(2, rows, model.d_conv), (2, model.nheads, model.headdim, 5)]
    outputs = []
    for t in range(7):
        out, *same = model.step(x[:, t : t + 1], *states)
        assert all(a is b for a, b in zip(same, states, strict=True))
        outputs.append(out)
    check(torch.cat(outputs, dim=1), model(x).double(), tolerance, "steps")


@pytest.mark.parametrize("prompt", [1, 3, 4, 7])
def test_a_prompt_then_steps_equal_the_whole(prompt):
    model, x = make(), tokens(11)
    params = InferenceParams(max_seqlen=11, max_batch_size=2)
    outputs = []
    with torch.inference_mode():
        for piece in (x[:, :prompt], *x[:, prompt:].split(1, dim=1)):
            outputs.append(model(piece, inference_params=params))
            params.seqlen_offset += piece.shape[1]
    check(torch.cat(outputs, dim=1), model(x).double(), 1e-5, "decoded")


def test_prompts_in_one_row_fill_a_cache_of_several():
    model, x = make(torch.float64), tokens(9, batch=1, dtype=torch.float64)
    ends, numbers = torch.tensor([0, 2, 9]), torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1]])
    packed, apart = (InferenceParams(max_seqlen=9, max_batch_size=2) for _ in range(2))
    with torch.no_grad():
        y = model(x, seq_idx=numbers, cu_seqlens=ends, inference_params=packed)
        states = []
        for part in (x[:, :2], x[:, 2:]):
            apart.key_value_memory_dict.clear()
            check(y[:, :2] if part.shape[1] == 2 else y[:, 2:], model(part, inference_params=apart), 1e-12, "y")
            states.append(apart.key_value_memory_dict[3])
    for ours, theirs in zip(packed.key_value_memory_dict[3], zip(*states, strict=True), strict=True):
        check(ours, torch.cat(theirs), 1e-12, "state")


def test_a_language_model_of_it():
    torch.manual_seed(0)
    cfg = {"layer": "Mamba2", "d_state": 4, "headdim": 4}
    lm = MambaLMHeadModel(d_model=8, n_layer=2, vocab_size=13, ssm_cfg=cfg, rms_norm=True)
    assert type(lm.backbone.layers[1].mixer) is Mamba2
    ids = torch.arange(14).view(2, 7) % 13
    params = InferenceParams(max_seqlen=7, max_batch_size=2)
    logits = []
    with torch.inference_mode():
        for piece in (ids[:, :3], *ids[:, 3:].split(1, dim=1)):
            logits.append(lm(piece, inference_params=params).logits)
            params.seqlen_offset += piece.shape[1]
    check(torch.cat(logits, dim=1), lm(ids).logits.double(), 1e-5, "logits")


# What it is made of.


def test_keys_shapes_and_starts():
    torch.manual_seed(0)
    model = Mamba2(16, d_state=8, headdim=4, ngroups=2, conv_init=0.2, dtype=torch.float64)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes == {
        "dt_bias": (8,), "A_log": (8,), "D": (8,), "in_proj.weight": (104, 16), "conv1d.weight": (64, 1, 4),
        "conv1d.bias": (64,), "norm.weight": (32,), "out_proj.weight": (16, 32),
    }  # fmt: skip
    assert list(shapes)[:3] == ["dt_bias", "A_log", "D"]
    assert (model.D.dtype, model.A_log.dtype) == (torch.float32, torch.float64)
    assert model.conv1d.weight.abs().max() <= 0.2
    step, decay = F.softplus(model.dt_bias), model.A_log.exp()
    assert ((step > 1e-3 - 1e-9) & (step < 0.1 + 1e-9)).all()
    assert ((decay >= 1) & (decay <= 16)).all()
    assert all(getattr(p, "_no_weight_decay", False) for p in (model.dt_bias, model.A_log, model.D))
    assert (model.norm.group_size, math.isinf(model.dt_limit[1])) == (16, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"headdim": 64}, "24 scanned channels .* no multiple of headdim = 64"),
        ({"ngroups": 3}, "4 heads .* no multiple of ngroups = 3"),
        ({"d_ssm": 36}, "d_ssm = 36 must be from 1 to the 24 inner"),
        ({"dt_min": 0.2}, "0 < dt_min ≤ dt_max"),
        ({"A_init_range": (0, 2)}, "A_init_range needs"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(ConfigError, match=words):
        make(**options)


def test_wrong_calls():
    model, x = make(), tokens()
    with pytest.raises(NotProvidedError, match="process_group is not provided"):
        make(process_group=object())
    with pytest.raises(InputError, match=r"u has shape \(2, 9, 11\), want \(b, l, c\) c = 12"):
        model(x[..., 1:])
    with pytest.raises(InputError, match=r"u has shape \(2, 9, 12\), want \(b·l, c\)"):
        model(x, seqlen=9)
    with pytest.raises(InputError, match="a step takes"):
        model.step(x, *model.allocate_inference_cache(2, 9))
    with pytest.raises(InputError, match="give cu_seqlens too"):
        model(x, seq_idx=torch.zeros(2, 9, dtype=torch.int32), inference_params=InferenceParams(9, 2))
    with pytest.raises(ConfigError, match="give Mamba2 a layer_idx"):
        make(layer_idx=None)(x, inference_params=InferenceParams(9, 2))
