"""mamba-ssm's norms with residuals: both generations, their options, their dtypes."""

import pytest
import torch
import torch.nn.functional as F

from vmamba import InputError
from vmamba.integrations.mamba_ssm.modules import layer_norm, layernorm
from vmamba.integrations.mamba_ssm.stand_in import NotProvidedError

c = 12


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def by_hand(total, weight, bias, eps, rms):
    total = total.double()
    centred = total if rms else total - total.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_norms(rms, biased, residual):
    x, weight = normal(2, 5, c), normal(c, seed=1)
    bias = normal(c, seed=2) if biased or not rms else None
    rest = normal(2, 5, c, seed=3) if residual else None
    total = x if rest is None else x + rest
    y, kept = layer_norm.layer_norm_fn(x, weight, bias, rest, eps=1e-3, prenorm=True, is_rms_norm=rms)
    torch.testing.assert_close(y.double(), by_hand(total, weight, bias, 1e-3, rms), rtol=1e-5, atol=1e-5)
    assert torch.equal(kept, total)
    plain = (layer_norm.rms_norm_ref if rms else layer_norm.layer_norm_ref)(x, weight, bias, rest, eps=1e-3)
    torch.testing.assert_close(plain, y, rtol=1e-5, atol=1e-5)
    if rms:
        assert torch.equal(layer_norm.rms_norm_fn(x, weight, bias, rest, eps=1e-3), y)


def test_gradients():
    torch.manual_seed(0)
    given = [t.double().requires_grad_() for t in (normal(3, c), normal(c), normal(c), normal(3, c))]
    for rms in (False, True):
        assert torch.autograd.gradcheck(
            lambda *v, rms=rms: layer_norm.layer_norm_fn(*v, prenorm=True, is_rms_norm=rms), given
        )


@pytest.mark.parametrize("given", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_fp32", [False, True])
def test_dtype_of_the_residual(given, in_fp32):
    x = normal(2, c, dtype=torch.bfloat16)
    rest = None if given is None else normal(2, c, seed=1, dtype=given)
    y, kept = layer_norm.rms_norm_fn(x, torch.ones(c), None, rest, prenorm=True, residual_in_fp32=in_fp32)
    assert y.dtype == torch.bfloat16
    assert kept.dtype == (given or (torch.float32 if in_fp32 else torch.bfloat16))


def test_16_bits_are_summed_in_float32():
    x, rest = normal(4, c, dtype=torch.bfloat16), normal(4, c, seed=1, dtype=torch.bfloat16)
    weight = normal(c, seed=2)
    y = layer_norm.rms_norm_fn(x, weight, None, rest)
    want = by_hand(x.float() + rest.float(), weight, None, 1e-6, True)
    assert torch.equal(y, want.float().bfloat16())


def test_two_inputs_and_two_norms():
    x, x1, rest = (normal(2, 3, c, seed=i) for i in range(3))
    w, b, w1, b1 = (normal(c, seed=3 + i) for i in range(4))
    y, y1, kept = layer_norm.layer_norm_fn(x, w, b, rest, x1, w1, b1, prenorm=True)
    total = x + x1 + rest
    torch.testing.assert_close(kept, total)
    torch.testing.assert_close(y, F.layer_norm(total, (c,), w, b, 1e-6))
    torch.testing.assert_close(y1, F.layer_norm(total, (c,), w1, b1, 1e-6))
    for ours, plain in zip(
        (y, y1, kept), layer_norm.layer_norm_ref(x, w, b, rest, x1, w1, b1, prenorm=True), strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_scales_of_rows():
    x, scales = normal(2, 3, c), normal(2, 3, seed=1)
    y, kept = layer_norm.rms_norm_fn(x, torch.ones(c), None, rowscale=scales, prenorm=True)
    assert torch.equal(kept, x * scales[..., None])
    torch.testing.assert_close(layer_norm.rms_norm_ref(x, torch.ones(c), None, rowscale=scales), y)
    with pytest.raises(InputError, match="rowscale and x1 exclude each other"):
        layer_norm.rms_norm_fn(x, torch.ones(c), None, x1=x, rowscale=scales)


def test_dropout():
    torch.manual_seed(0)
    x = torch.ones(50, c)
    _, kept = layer_norm.layer_norm_fn(x, torch.ones(c), None, residual=3 * x, dropout_p=0.75, prenorm=True)
    assert set(kept.unique().tolist()) == {3.0, 7.0}  # the residual, and with it 1 / (1 - 0.75)
    mask = normal(50, c) > 0
    _, plain = layer_norm.layer_norm_ref(x, torch.ones(c), None, 3 * x, dropout_p=0.75, dropout_mask=mask, prenorm=True)
    assert torch.equal(plain, torch.where(mask, 7.0, 3.0))
    norm = layer_norm.RMSNorm(c, dropout_p=0.5)
    assert not torch.equal(norm(x), norm.eval()(x))
    with pytest.raises(NotProvidedError, match="return_dropout_mask"):
        layer_norm.layer_norm_fn(x, torch.ones(c), None, return_dropout_mask=True)


def test_the_module():
    norm = layer_norm.RMSNorm(c, eps=1e-3, dtype=torch.float64)
    assert {key: tuple(t.shape) for key, t in norm.state_dict().items()} == {"weight": (c,)}
    assert norm.bias is None
    x = normal(2, c).double()
    torch.testing.assert_close(norm(x), F.rms_norm(x, (c,), None, 1e-3))
    y, kept = norm(x, x, prenorm=True, residual_in_fp32=True)
    assert torch.equal(kept, 2 * x)
    norm.weight.data.zero_()
    norm.reset_parameters()
    torch.testing.assert_close(norm(2 * x), y)


def test_norm_and_projection():
    x, w, projection, bias = normal(2, c), normal(c, seed=1), normal(5, c, seed=2), normal(5, seed=3)
    out, kept = layer_norm.layer_norm_linear_fn(x, w, None, projection, bias, x, prenorm=True, is_rms_norm=True)
    torch.testing.assert_close(out, F.linear(layer_norm.rms_norm_fn(x, w, None, x), projection, bias))
    assert torch.equal(kept, 2 * x)


def test_the_early_order_of_arguments():
    x, w, b, rest = normal(2, c), normal(c, seed=1), normal(c, seed=2), normal(2, c, seed=3)
    for rms in (False, True):
        y, kept = layernorm.layer_norm_fn(x, w, b, rest, 1e-3, True, True, rms)
        late = layer_norm.layer_norm_fn(x, w, b, rest, eps=1e-3, is_rms_norm=rms)
        assert torch.equal(y, late)
        assert torch.equal(kept, x + rest)
        plain = (layernorm.rms_norm_ref if rms else layernorm.layer_norm_ref)(x, w, b, rest, 1e-3, False, True)
        torch.testing.assert_close(plain, late, rtol=1e-5, atol=1e-5)
    assert torch.equal(layernorm.rms_norm_fn(x, w, b, rest, True, False, 1e-3)[0], late)
    assert layernorm.RMSNorm is layer_norm.RMSNorm
