"""Mamba-2's norms of groups of channels with a gate: before it and behind it, both kinds, dtypes and gradients."""

import pytest
import torch
import torch.nn.functional as F
from scan_cases import check

from vmamba import InputError
from vmamba.integrations.mamba_ssm.mamba2.layernorm_gated import LayerNorm, RMSNorm, layernorm_fn, rms_norm_ref

c = 12


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(x, weight, bias, z, eps, group, before, rms):
    x = x if z is None or before else x * F.silu(z)
    parts = []
    for part in x.split(group, dim=-1):
        centred = part if rms else part - part.mean(-1, keepdim=True)
        parts.append(centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt())
    y = torch.cat(parts, dim=-1) * weight + bias
    return y * F.silu(z) if z is not None and before else y


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("group", [None, 4])
@pytest.mark.parametrize("gated", [False, True])
def test_it_is_the_norm(rms, before, group, gated):
    values = [normal(2, 5, c), normal(c, seed=1), normal(c, seed=2), normal(2, 5, c, seed=3)]
    leaves = [t.requires_grad_() for t in (values if gated else values[:3])]
    x, weight, bias, z = leaves if gated else (*leaves, None)
    y = layernorm_fn(x, weight, bias, z, 1e-3, group, before, rms)
    want = by_hand(x, weight, bias, z, 1e-3, group or c, before, rms)
    check(y, want, 1e-12, "y")
    got, exact = (torch.autograd.grad(out.pow(3).sum(), leaves) for out in (y, want))
    for ours, theirs in zip(got, exact, strict=True):
        check(ours, theirs, 1e-10, "gradient")


def test_modules():
    x, z = normal(3, c), normal(3, c, seed=1)
    rms, layer = (kind(c, group_size=6, norm_before_gate=False, dtype=torch.float64) for kind in (RMSNorm, LayerNorm))
    assert (list(rms.state_dict()), list(layer.state_dict())) == (["weight"], ["weight", "bias"])
    one, none = torch.ones(c), torch.zeros(c)
    for module, kind in ((rms, True), (layer, False)):
        torch.nn.init.constant_(module.weight, 3)
        module.reset_parameters()
        check(module(x, z), by_hand(x, one, none, z, 1e-5, 6, False, kind), 1e-12, "y")
    assert torch.equal(rms_norm_ref(x, rms.weight, None, z, 1e-5, 6, False), rms(x, z))
    assert rms(x.bfloat16(), z.bfloat16()).dtype == torch.bfloat16


def test_what_does_not_fit():
    with pytest.raises(InputError, match="12 channels cannot be normed in groups of 5"):
        RMSNorm(c, group_size=5)(normal(2, c))
    with pytest.raises(InputError, match=r"z has shape \(12,\)"):
        RMSNorm(c)(normal(2, c), normal(c))
