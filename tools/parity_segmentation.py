"""Parity of the segmenters: ``cases.json`` with small networks, ``full_*.json`` with a summary of a named one each.

A small case's tensors are in its ``.safetensors`` file, or summarised in ``cases.json`` alone.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from parity_tools import Result, dense_weights, fill, relative, summary_error
from safetensors.torch import load_file
from torch import Tensor

import vmamba
from vmamba.heads import Segmenter, segmentation_loss

#: Of the largest value. Upstream's own numbers are float32; 1e-4 is where an error would no longer be rounding.
OUTPUT_TOLERANCE = 2e-5
LOSS_TOLERANCE = 1e-5
AUXILIARY_WEIGHT = 0.4


def here(folder: Path) -> bool:
    """Whether a folder holds such cases."""
    return bool(small_cases(folder)) or bool(full_cases(folder))


def small_cases(folder: Path) -> dict[str, dict[str, Any]]:
    """By name."""
    path = folder / "cases.json"
    cases: dict[str, dict[str, Any]] = json.loads(path.read_text())["cases"] if path.is_file() else {}
    return {name: case for name, case in cases.items() if "decode_head" in case}


def full_cases(folder: Path) -> dict[str, dict[str, Any]]:
    """By name."""
    found = {path.stem: json.loads(path.read_text()).get("case", {}) for path in sorted(folder.glob("full_*.json"))}
    return {name: case for name, case in found.items() if "decode_logits" in case}


def results(folder: Path, match: str) -> Iterator[Result]:
    """Run every case whose name matches."""
    for name, case in small_cases(folder).items():
        if fnmatch.fnmatch(name, match):
            yield run_small(name, case, folder)
    for name, case in full_cases(folder).items():
        if fnmatch.fnmatch(name, match):
            yield run_full(name, case)


def run_small(name: str, case: dict[str, Any], folder: Path) -> Result:
    """Build a case's network of its dicts, load the filled weights strictly, and compare all that upstream stored."""
    model = vmamba.UPerNet(case["backbone"], case["decode_head"], case.get("auxiliary_head")).eval()
    weights = dense_weights(case["keys"], case["seed"])
    if weights.keys() != model.state_dict().keys():
        raise SystemExit(f"{name}: the names of the weights differ from the model's")
    vmamba.load_weights(model, weights)
    got, losses = outputs(model, case)
    path = folder / case.get("file", "")
    stored: Mapping[str, Any] = load_file(path) if path.is_file() else case["tensors"]
    errors = {}
    for kind, want in stored.items():
        if kind == "predict.classes":  # ties apart, what the logits say
            continue
        error = relative(got[kind], want) if isinstance(want, Tensor) else summary_error(got[kind], want)
        errors[kind] = (error, OUTPUT_TOLERANCE)
    for kind, want in case.get("losses_in_eval_mode", {}).items():
        if kind in losses:
            errors[kind] = (abs(losses[kind] / want - 1), LOSS_TOLERANCE)
    return Result(name, errors)


def run_full(name: str, case: dict[str, Any]) -> Result:
    """The named segmenter with filled weights against its summaries."""
    structure = case["structure"]
    vanilla = structure.startswith("vanilla_")
    model = vmamba.create_model(
        f"upernet_vanilla_vmamba_{structure.removeprefix('vanilla_')}" if vanilla else f"upernet_vmamba_{structure}"
    ).eval()
    vmamba.load_weights(model, dense_weights([(k, v.shape) for k, v in model.state_dict().items()], case["seed"]))
    got, _ = outputs(model, case)
    wants = {f"backbone.{i}": want for i, want in enumerate(case["backbone"])}
    wants |= {"decode.logits": case["decode_logits"], "auxiliary.logits": case["auxiliary_logits"]}
    wants["whole.logits_at_input_size"] = case["whole_logits_at_input_size"]
    return Result(name, {kind: (summary_error(got[kind], want), OUTPUT_TOLERANCE) for kind, want in wants.items()})


def outputs(model: Segmenter, case: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Everything that a case stores, by upstream's names: tensors, and weighted losses."""
    got: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: got.__setitem__(name, output)

    hooks = [
        getattr(model.decode_head, part).register_forward_hook(keep(name))
        for part, name in (("bottleneck", "decode.ppm_bottleneck"), ("fpn_bottleneck", "decode.fpn_bottleneck"))
    ]
    hooks.append(model.backbone.register_forward_hook(keep("maps")))
    image = torch.from_numpy(fill("input", case["input_shape"], case["seed"]))
    losses: dict[str, float] = {}
    with torch.no_grad():
        decoded, auxiliary = model.logits(image)
        got["decode.logits"] = decoded
        got |= {f"backbone.{i}": each for i, each in enumerate(got.pop("maps"))}
        label = _label(*image.shape[2:])
        losses["decode.loss_ce"] = float(segmentation_loss(decoded, label))
        if auxiliary is not None:
            got["auxiliary.logits"] = auxiliary
            losses["aux.loss_ce"] = AUXILIARY_WEIGHT * float(segmentation_loss(auxiliary, label))
        whole = got["whole.logits_at_input_size"] = model(image)
        if size := case.get("original_shape"):
            # As upstream does it: the second resize starts from the first one's result.
            got["predict.logits_at_original_size"] = F.interpolate(whole, size, mode="bilinear", align_corners=False)[0]
    for hook in hooks:
        hook.remove()
    return got, losses


def _label(height: int, width: int) -> Tensor:
    """The label that upstream's losses were computed with."""
    label = ((3 * torch.arange(height)[:, None] + 5 * torch.arange(width)) // 16) % 6
    return label.masked_fill(label == 5, 255)[None]
