"""PyPI's Mamba2 beside our stand-in for it: keys, starts, outputs, gradients and steps.

Its layer runs its own code, and its Triton kernels, which need a GPU, are replaced by its own references in PyTorch.
Prints one JSON object of differences over their scale.
"""

from __future__ import annotations

import json
from typing import Any

import mamba_ssm
import torch
from mamba_ssm.modules import mamba2
from mamba_ssm.ops.triton.layernorm_gated import rms_norm_ref
from mamba_ssm.ops.triton.selective_state_update import selective_state_update_ref
from mamba_ssm.ops.triton.ssd_combined import ssd_chunk_scan_combined_ref

from vmamba.integrations.mamba_ssm.mamba2.layer import Mamba2

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "groups": {"ngroups": 2, "bias": True, "conv_init": 0.3, "norm_before_gate": True},
    "skips of channels": {"D_has_hdim": True, "conv_bias": False},
    "MLP beside": {"d_ssm": 16},
    "no norm": {"rmsnorm": False},
}


def scan(*inputs: Any, **options: Any) -> torch.Tensor:
    for name in ("seq_idx", "cu_seqlens", "return_final_states", "return_varlen_states"):
        assert not options.pop(name, None)
    return ssd_chunk_scan_combined_ref(*inputs, **options)


def without_triton(layer: Any) -> Any:
    if layer.rmsnorm:
        norm = layer.norm
        norm.forward = lambda y, z: rms_norm_ref(
            y, norm.weight, None, z, norm.eps, norm.group_size, norm.norm_before_gate
        )
    return layer


def apart(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in zip(got, want, strict=True))


def compared(options: dict[str, Any]) -> dict[str, Any]:
    made = []
    for kind in (Mamba2, mamba2.Mamba2):
        torch.manual_seed(0)
        made.append(kind(24, d_state=8, headdim=8, chunk_size=16, use_mem_eff_path=False, **options))
    states = [layer.state_dict() for layer in made]
    same = list(states[0]) == list(states[1]) and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )
    x = torch.randn(2, 32, 24)
    results, steps = [], []
    for layer in (made[0], without_triton(made[1])):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
        results.append([y.detach(), *torch.autograd.grad((y * weights).sum(), [leaf, *layer.parameters()])])
        if layer.D_has_hdim:  # its own step makes a skip of a wrong shape
            continue
        cache = layer.allocate_inference_cache(2, 4)
        with torch.no_grad():
            steps.append([*(layer.step(x[:, t : t + 1], *cache)[0] for t in range(4)), *cache])
    return {"same start": same, "outputs and gradients": apart(*results), "steps": apart(*steps) if steps else 0.0}


mamba2.mamba_chunk_scan_combined = scan
mamba2.selective_state_update = selective_state_update_ref
report = {name: compared(options) for name, options in VARIANTS.items()}
print(json.dumps({"apart": report, "file": mamba_ssm.__file__}))
