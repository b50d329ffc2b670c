"""Parity of the classifiers and the backbone: ``small/`` and ``full/``, each a manifest and one file a case.

Weights and inputs are not stored: `parity_fill.fill` draws them from their names.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from parity_tools import Result, fill, relative
from safetensors.torch import load_file
from torch import Tensor, nn

import vmamba

#: Errors are relative to the largest value. Upstream's float32 itself is within 4e-6 of float64 (sharp cascade: 2e-5).
OUTPUT_TOLERANCE = 2e-5
CASCADE_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3


class Errors(NamedTuple):
    """How far a case is off, relative to the largest value."""

    output: float
    gradient: float | None = None
    stages: float | None = None


def small_cases(folder: Path) -> Iterator[tuple[dict[str, Any], list[tuple[str, list[int]]]]]:
    """Every case of ``small/`` with the ordered keys of its upstream model."""
    manifest = json.loads((folder / "small/manifest.json").read_text())
    for case in manifest["cases"]:
        yield case, manifest["keysets"][case["keyset"]]


def full_cases(folder: Path) -> list[dict[str, Any]]:
    """Every case of ``full/``."""
    cases: list[dict[str, Any]] = json.loads((folder / "full/manifest.json").read_text())["cases"]
    return cases


def filled(key: str, shape: list[int], case: dict[str, Any]) -> Tensor:
    """A weight as upstream's model had it in this case."""
    value = torch.from_numpy(fill(key, shape, case["seed"]))
    for name, factor in (case.get("weight_scale") or {}).items():
        if key.endswith(name):
            value = value * factor
    return value


def build(case: dict[str, Any]) -> nn.Module:
    """The network of a ``small/`` case. Upstream's one file builds LayerNorm for ``bn``, a plain MLP for ``gmlp``."""
    options = dict(case["kwargs"])
    if case["source"] == "single":
        options["gmlp"] = False
        options["norm_layer"] = "ln2d" if options["norm_layer"] == "bn" else options["norm_layer"]
    return getattr(vmamba, case["cls"])(**options)


def run_small(case: dict[str, Any], keyset: list[tuple[str, list[int]]], folder: Path) -> Errors:
    """Load the filled weights strictly, run forward and backward, and compare with what upstream stored."""
    want = load_file(folder / "small" / case["file"])
    model = build(case).eval()
    vmamba.load_weights(model, {key: filled(key, shape, case) for key, shape in keyset})
    image = torch.from_numpy(fill("input", case["input_shape"], case["seed"])).requires_grad_()
    result = model(image)
    if case["cls"] == "VSSM":
        loss = F.cross_entropy(result, torch.tensor(case["targets"]))
        output = relative(result, want["logits"])
    else:
        features = result if isinstance(result, list) else [result]
        names = [name for name in case["outputs"] if name.startswith("feature")]
        loss = torch.stack([feature.square().mean() for feature in features]).sum()
        output = max(_feature_error(f, name, want) for f, name in zip(features, names, strict=True))
    output = max(output, relative(loss, want["loss"]))
    loss.backward()
    return Errors(output, _gradient_error(model, image, case, keyset, want))


def _feature_error(feature: Tensor, name: str, want: dict[str, Tensor]) -> float:
    if name in want:
        return relative(feature, want[name])
    flat = feature.flatten()
    places = (torch.arange(256) * flat.numel()) // 256
    return max(relative(flat[places], want[f"{name}.sample256"]), relative(flat.norm(), want[f"{name}.norm"]))


def _gradient_error(
    model: nn.Module, image: Tensor, case: dict[str, Any], keyset: list[tuple[str, list[int]]], want: dict[str, Tensor]
) -> float:
    """The worst of all gradient norms and first eight entries, in units of the parity data's own tolerances × 1e-3."""
    own = {name: parameter.grad for name, parameter in model.named_parameters()}
    buffers = set(case.get("buffers") or ())
    keys = [key for key, _ in keyset if key not in buffers]
    # The values' order inside a tensor is row-major in either naming, so flattened heads agree.
    names = vmamba.weights.translate_keys({key: torch.zeros(shape) for key, shape in keyset}, model.state_dict())
    of_key = dict(zip([key for key, _ in keyset], names, strict=True))
    gradients = [image.grad, *(own[of_key[key]] for key in keys)]
    norms = want["grad_norms"]
    worst = 0.0
    for gradient, norm, head in zip(gradients, norms, want["grad_heads"], strict=True):
        assert gradient is not None
        flat = gradient.double().flatten()
        if norm > 1e-4 * norms.max():
            worst = max(worst, (abs(flat.norm() - norm) / norm).item())
        first = F.pad(flat[:8], (0, 8 - min(8, flat.numel())))
        allowed = 1e-3 * head.abs().max() + 1e-6 * norms.max()
        worst = max(worst, 1e-3 * ((first - head).abs().max() / allowed).item())
    return worst


def run_full(case: dict[str, Any], folder: Path, state_keys: list[tuple[str, list[int]]]) -> Errors:
    """A named model at 224×224: logits and stage outputs."""
    want = load_file(folder / "full" / case["file"])
    model = vmamba.create_model(case["model"]).eval()
    vmamba.load_weights(model, {key: filled(key, shape, case) for key, shape in state_keys})
    stages: list[Tensor] = []
    for layer in model.layers:
        layer.blocks.register_forward_hook(lambda _module, _inputs, out: stages.append(out.permute(0, 3, 1, 2)))
    with torch.inference_mode():
        logits = model(torch.from_numpy(fill("input", case["input_shape"], case["seed"])))
    worst = 0.0
    for i, (stage, shape) in enumerate(zip(stages, case["stage_shapes"], strict=True)):
        assert list(stage.shape) == shape
        flat = stage.flatten()
        places = (torch.arange(64) * flat.numel()) // 64
        worst = max(
            worst, relative(flat[:32], want[f"stage{i}.head32"]), relative(flat[places], want[f"stage{i}.sample64"])
        )
    return Errors(relative(logits[0], want["logits"].flatten()), stages=worst)


def output_tolerance(case: dict[str, Any]) -> float:
    """The bar for a case's outputs."""
    return CASCADE_TOLERANCE if "v052dc" in case["name"] else OUTPUT_TOLERANCE


def full_state_keys(folder: Path, model: str) -> list[tuple[str, list[int]]]:
    """Upstream's ordered keys of a named model."""
    keys: list[tuple[str, list[int]]] = json.loads((folder / "models.json").read_text())["models"][model]["state_dict"]
    return keys


def has(kind: str, folder: Path) -> bool:
    """Whether a folder holds cases of a kind, ``"small"`` or ``"full"``."""
    return (folder / kind / "manifest.json").is_file()


def small_results(folder: Path, match: str) -> Iterator[Result]:
    """Run every small case whose name matches."""
    for case, keyset in small_cases(folder):
        if fnmatch.fnmatch(case["name"], match):
            yield _result(case, run_small(case, keyset, folder))


def full_results(folder: Path, match: str) -> Iterator[Result]:
    """Run every named model whose case's name matches."""
    for case in full_cases(folder):
        if fnmatch.fnmatch(case["name"], match):
            yield _result(case, run_full(case, folder, full_state_keys(folder, case["model"])))


def _result(case: dict[str, Any], errors: Errors) -> Result:
    allowed = {"output": output_tolerance(case), "gradient": GRADIENT_TOLERANCE, "stages": OUTPUT_TOLERANCE}
    return Result(
        case["name"],
        {name: (error, allowed[name]) for name, error in errors._asdict().items() if error is not None},
    )
