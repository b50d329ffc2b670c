"""mambavision as its user sees it: build, train a step, infer; then the same with its scan as a plain loop.

Prints one JSON object: how far outputs and gradients are apart, over their scale, and what it ran.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.nn.functional as F
from mambavision import create_model
from mambavision.models import mamba_vision


def plain_scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False):
    """The recurrence as it is written in the paper (arXiv 2312.00752, Alg. 2)."""
    assert z is None
    assert delta_softplus
    assert not return_last_state
    step = F.softplus(delta + delta_bias[:, None])
    h, ys = torch.zeros(u.shape[0], *A.shape, dtype=u.dtype), []
    for t in range(u.shape[2]):
        h = torch.exp(step[:, :, t, None] * A) * h + (step * u)[:, :, t, None] * B[:, None, :, t]
        ys.append((h * C[:, None, :, t]).sum(-1) + D * u[:, :, t])
    return torch.stack(ys, 2)


def tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    return mamba_vision.MambaVision(
        dim=16, in_dim=8, depths=[1, 1, 2, 2], num_heads=[1, 2, 2, 4], window_size=[8, 8, 4, 2], mlp_ratio=2,
        drop_path_rate=0.0, num_classes=5,
    )  # fmt: skip


def step(model: torch.nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Logits and all gradients of one training step, and the logits behind it."""
    logits = model.train()(images)
    F.cross_entropy(logits, torch.arange(len(images))).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    with torch.no_grad():
        # torch's own optimizers import its compiler, which takes longer than all else here.
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad
        after = model.eval()(images)
    return [logits.detach(), after, *gradients]


def apart(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    """The largest difference; outputs by their own scale, gradients by the largest of all."""
    scales = [t.abs().max() for t in want]
    scales[2:] = [max(scales[2:], default=0)] * len(scales[2:])
    return max(float((a - b).abs().max() / scale) for a, b, scale in zip(got, want, scales, strict=True))


def main() -> None:
    torch.manual_seed(1)
    images = torch.randn(3, 3, 64, 64)
    got = step(tiny(), images)
    own, mamba_vision.selective_scan_fn = mamba_vision.selective_scan_fn, plain_scan
    want = step(tiny(), images)
    mamba_vision.selective_scan_fn = own
    with torch.no_grad():
        public = create_model("mamba_vision_T", pretrained=False).eval()(torch.randn(1, 3, 224, 224))
    print(
        json.dumps(
            {
                "outputs": apart(got[:2], want[:2]),
                "all": apart(got, want),
                "public": list(public.shape),
                "finite": bool(public.isfinite().all()),
                "scan": own.__module__,
                "mamba_ssm": sys.modules["mamba_ssm"].__version__,
                "gradients": len(got) - 2,
            }
        )
    )


main()
