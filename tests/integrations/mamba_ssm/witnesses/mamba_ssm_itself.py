"""PyPI's mamba-ssm over whatever compiled modules are found, against itself without them.

Its Python code runs as it is. The reference is its own too: `Mamba` with torch's convolution and `selective_scan_ref`,
which is what it does where causal-conv1d is missing. Prints one JSON object of differences over their scale.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mamba_ssm
import torch
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.modules import mamba_simple
from mamba_ssm.ops.selective_scan_interface import (
    mamba_inner_fn,
    mamba_inner_ref,
    selective_scan_fn,
    selective_scan_ref,
)
from mamba_ssm.utils.generation import InferenceParams


@contextmanager
def without_kernels() -> Iterator[None]:
    names = {
        "causal_conv1d_fn": None, "causal_conv1d_update": None, "selective_state_update": None,
        "selective_scan_fn": selective_scan_ref,
    }  # fmt: skip
    before = {name: getattr(mamba_simple, name) for name in names}
    mamba_simple.__dict__.update(names)
    try:
        yield
    finally:
        mamba_simple.__dict__.update(before)


def apart(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in zip(got, want, strict=True))


def run(call: Callable[[], object], leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    """What a call returns, and the gradients of the leaves."""
    made = call()
    outputs = list(made) if isinstance(made, tuple) else [made]
    y = outputs[0]
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
    return [t.detach() for t in outputs] + list(torch.autograd.grad((y * weights).sum(), leaves))


def scans() -> float:
    b, d, n, length = 2, 8, 4, 33
    worst = 0.0
    for grouped, gated in ((False, True), (True, True), (True, False)):
        shape = (b, 2, n, length) if grouped else (b, n, length)
        u, delta, z = torch.randn(3, b, d, length).requires_grad_().unbind()
        A = -torch.rand(d, n)
        B, C, D, bias = torch.randn(shape), torch.randn(shape), torch.randn(d), torch.randn(d)
        leaves = [t.detach().requires_grad_() for t in (u, delta, A, B, C, D, bias, z)]
        u, delta, A, B, C, D, bias, z = leaves
        leaves = leaves if gated else leaves[:-1]
        arguments = (u, delta, A, B, C, D, z if gated else None, bias, True, True)
        got, want = (run(lambda f=f, a=arguments: f(*a), leaves) for f in (selective_scan_fn, selective_scan_ref))
        worst = max(worst, apart(got, want))
    return worst


def inner() -> float:
    d, n, r, w = 8, 4, 2, 4
    shapes = {
        "xz": (2, 2 * d, 21), "conv": (d, 1, w), "conv_bias": (d,), "x_proj": (r + 2 * n, d), "dt_proj": (d, r),
        "out_proj": (5, d), "A": (d, n), "D": (d,), "bias": (d,),
    }  # fmt: skip
    t = {name: torch.randn(shape) for name, shape in shapes.items()}
    t["A"] = -t["A"].abs()
    leaves = [each.requires_grad_() for each in t.values()]

    def call(f: Callable[..., object]) -> object:
        *front, A, D, bias = leaves
        # Without a bias of the last projection: mamba_inner_fn's gradient of it has a wrong shape.
        return f(*front, None, A, None, None, D, delta_bias=bias, delta_softplus=True)

    got, want = (run(lambda f=f: call(f), leaves) for f in (mamba_inner_fn, mamba_inner_ref))
    return apart(got, want)


def module(use_fast_path: bool) -> float:
    torch.manual_seed(0)
    mamba = mamba_ssm.Mamba(12, d_state=4, use_fast_path=use_fast_path)
    x = torch.randn(2, 19, 12, requires_grad=True)
    leaves = [x, *mamba.parameters()]
    inner, calls = mamba_simple.mamba_inner_fn, []
    mamba_simple.mamba_inner_fn = lambda *a, **k: calls.append(1) or inner(*a, **k)
    got = run(lambda: mamba(x), leaves)
    mamba_simple.mamba_inner_fn = inner
    assert bool(calls) == use_fast_path
    mamba.use_fast_path = False
    with without_kernels():
        want = run(lambda: mamba(x), leaves)
    return apart(got, want)


def language_model() -> tuple[float, float]:
    """Logits and gradients; and logits read word by word, as generation does."""
    torch.manual_seed(0)
    # The norms of sums are Triton kernels, which need a GPU.
    config = MambaConfig(d_model=16, n_layer=2, vocab_size=11, rms_norm=False, fused_add_norm=False)
    model = mamba_ssm.MambaLMHeadModel(config)
    words = torch.arange(22).view(2, 11) % 7
    leaves = list(model.parameters())
    got = run(lambda: model(words).logits, leaves)
    with without_kernels():
        want = run(lambda: model(words).logits, leaves)
    mamba_simple.selective_state_update = None  # Triton's, likewise
    cache = InferenceParams(max_seqlen=11, max_batch_size=2)
    read = []
    with torch.no_grad():
        for t in range(words.shape[1]):
            at = torch.full((2, 1), t)
            read.append(model(words[:, t : t + 1], position_ids=at, inference_params=cache).logits)
            cache.seqlen_offset += 1
    return apart(got, want), apart([torch.cat(read, 1)], want[:1])


def main() -> None:
    torch.manual_seed(0)
    whole, by_word = language_model()
    report = {
        "selective_scan_fn": scans(),
        "mamba_inner_fn": inner(),
        "Mamba, fast path": module(True),
        "Mamba, slow path": module(False),
        "MambaLMHeadModel": whole,
        "MambaLMHeadModel, word by word": by_word,
    }
    print(json.dumps({"apart": report, "mamba_ssm": mamba_ssm.__version__, "file": mamba_ssm.__file__}))


main()
