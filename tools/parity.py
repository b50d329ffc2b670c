"""Run this package against numbers that upstream VMamba computed, and print how far apart they are.

    python tools/parity.py FOLDER [--kinds small full] [--match PATTERN]

FOLDER holds ``small/`` and ``full/``, each a ``manifest.json`` and one ``.safetensors`` file a case. Weights and
inputs are not
stored: `parity_fill.fill` draws them from their names. Cases of the Mamba-2 layers are left out.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from parity_fill import fill

import vmamba

#: Errors are relative to the largest value. Upstream's float32 itself is within 4e-6 of float64 (sharp cascade: 2e-5).
OUTPUT_TOLERANCE = 2e-5
CASCADE_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Errors:
    """How far a case is off, relative to the largest value."""

    output: float
    gradient: float | None = None
    stages: float | None = None


def is_mamba2(case: dict[str, Any]) -> bool:
    """Whether a case needs the Mamba-2 layers."""
    return "m0" in case["name"].split("_") or case.get("model", "").endswith("_m2")


def small_cases(folder: Path) -> Iterator[tuple[dict[str, Any], list[tuple[str, list[int]]]]]:
    """Every case of ``small/`` with the ordered keys of its upstream model."""
    manifest = json.loads((folder / "small/manifest.json").read_text())
    for case in manifest["cases"]:
        if not is_mamba2(case):
            yield case, manifest["keysets"][case["keyset"]]


def full_cases(folder: Path) -> list[dict[str, Any]]:
    """Every case of ``full/``."""
    manifest = json.loads((folder / "full/manifest.json").read_text())
    return [case for case in manifest["cases"] if not is_mamba2(case)]


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


def relative(a: Tensor, b: Tensor) -> float:
    """``max|a - b| / max|b|``."""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


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


def main() -> int:
    """Print a row a case; exit 1 if any is off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kinds", nargs="+", choices=["small", "full"], default=["small", "full"])
    parser.add_argument("--match", default="*", help="shell pattern of case names")
    options = parser.parse_args()
    failed = total = 0

    def show(case: dict[str, Any], errors: Errors) -> None:
        nonlocal failed, total
        good = errors.output <= output_tolerance(case) and (errors.gradient or 0.0) <= GRADIENT_TOLERANCE
        total += 1
        failed += not good
        cells = [f"{name} {value:.1e}" for name, value in vars(errors).items() if value is not None]
        print(f"{'ok  ' if good else 'FAIL'} {case['name']:36} {'  '.join(cells)}", flush=True)

    if "small" in options.kinds:
        for case, keyset in small_cases(options.folder):
            if fnmatch.fnmatch(case["name"], options.match):
                show(case, run_small(case, keyset, options.folder))
    if "full" in options.kinds:
        for case in full_cases(options.folder):
            if fnmatch.fnmatch(case["name"], options.match):
                show(case, run_full(case, options.folder, full_state_keys(options.folder, case["model"])))
    print(
        f"{total - failed} of {total} cases within tolerance (outputs {OUTPUT_TOLERANCE:g}, cascade "
        f"{CASCADE_TOLERANCE:g}, gradients {GRADIENT_TOLERANCE:g})"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
