"""Detection against upstream's numbers: the single operations, every stage, and the whole way from image to masks.

`rows` yields one `Row` a comparison, `results` gathers them by case. FOLDER holds ``keys.json``, ``cases.json``,
``ops.json`` and ``full_*.json`` with their ``.safetensors``; what is not there is not compared.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from parity_tools import Result, fill
from safetensors.torch import load_file
from torch import Tensor

import vmamba
from vmamba.heads.mask_rcnn import anchors, boxes, losses, mask_head, matching, pasting, preparation, regions, rpn

#: Of maps and logits, relative to the largest value.
STAGE_TOLERANCE = 1e-4
#: Of boxes that were computed from stored inputs, in pixels; from the image on.
BOX_TOLERANCE, FINAL_BOX_TOLERANCE = 1e-3, 1e-2
#: Of scores, from the image on.
SCORE_TOLERANCE = 1e-4
#: Boxes whose scores are nearer than this may change places. Rounding moves scores by 1e-5, amplified by the weights.
GAP = 3e-5
#: Share of the pixels of a case's masks that may fall on the other side of the threshold.
MASK_TOLERANCE = 1e-3
_STDS = (0.1, 0.1, 0.2, 0.2)


@dataclass(frozen=True)
class Row:
    """One comparison: what, how far off, and how far off it may be."""

    name: str
    error: float
    tolerance: float

    @property
    def case(self) -> str:
        """The case that it is of: the first word; ``ops`` of a single operation."""
        return self.name.split(" ")[0] if " " in self.name else "ops"

    @property
    def what(self) -> str:
        """What was compared."""
        return self.name.split(" ", 1)[-1]

    @property
    def good(self) -> bool:
        """Whether it is within its tolerance."""
        return self.error <= self.tolerance


def relative(a: Tensor, b: Tensor) -> float:
    """``max|a - b| / max|b|``, infinite where the shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    return 0.0 if b.numel() == 0 else ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def apart(a: Tensor, b: Tensor) -> float:
    """``max|a - b|``, infinite where the shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    return 0.0 if b.numel() == 0 else (a.double() - b.double()).abs().max().item()


def unlike(a: Tensor, b: Tensor) -> float:
    """The share of entries that differ, infinite where the shapes do."""
    return float("inf") if a.shape != b.shape else (a.long() != b.long()).double().mean().item() if b.numel() else 0.0


# --- single operations


def operations(folder: Path) -> Iterator[Row]:
    """The cases of ``ops.json``."""
    facts, want = json.loads((folder / "ops.json").read_text()), load_file(folder / "ops.safetensors")
    strides, sizes = (4, 8, 16, 32, 64), [(32, 24), (16, 12), (8, 6), (4, 3), (2, 2)]
    bases = [anchors.base_anchors(stride, (8.0,), (0.5, 1.0, 2.0)) for stride in strides]
    yield Row("anchor.base", apart(torch.stack(bases), want["anchor.base"]), 1e-5)
    for i, size in enumerate(facts["anchor_grid_sizes"]):
        grid = anchors.level_anchors(bases[i], tuple(size), strides[i])
        yield Row(f"anchor.grid.{i}", apart(grid, want[f"anchor.grid.{i}"]), 1e-5)
    start, image = want["decode.boxes"], (200, 300)
    yield Row(
        "decode.rpn", apart(boxes.decode(start, want["decode.deltas"], image_size=image), want["decode.rpn"]), 1e-4
    )
    many = want["decode.deltas_3_classes"].reshape(-1, 4)
    moved = boxes.decode(start.repeat_interleave(3, dim=0), many, _STDS, image).reshape(-1, 12)
    yield Row("decode.rcnn_3_classes", apart(moved, want["decode.rcnn_3_classes"]), 1e-4)
    yield Row("encode.rpn", relative(boxes.encode(start, want["encode.gt"]), want["encode.deltas_rpn"]), 1e-5)
    yield Row("encode.rcnn", relative(boxes.encode(start, want["encode.gt"], _STDS), want["encode.deltas_rcnn"]), 1e-5)
    maps = [
        torch.from_numpy(fill("input", (1, 4, 512 // stride, 640 // stride), 1000 + i))
        for i, stride in enumerate(strides[:4])
    ]
    rois = want["roi.rois"][:, 1:]
    yield Row("roi.levels", unlike(regions.levels_of(rois, 4), want["roi.levels"]), 0)
    for name, side in (("box", 7), ("mask", 14)):
        pooled = regions.pool_regions(maps, strides[:4], [rois], side)
        yield Row(f"roi.{name}_features", relative(pooled, want[f"roi.{name}_features"]), 1e-5)
    for threshold in (0.5, 0.7):
        kept = boxes.suppress(want["nms.boxes"], want["nms.scores"], want["nms.groups"].long(), threshold)
        yield Row(f"nms.keep_{threshold}", unlike(kept, want[f"nms.keep_{threshold}"]), 0)
    yield from _pasting(facts, want)
    yield from _preparation(facts, want)
    everywhere = torch.cat(
        [anchors.level_anchors(base, size, stride) for base, size, stride in zip(bases, sizes, strides, strict=True)]
    )
    truth, proposals = want["assign.gt_boxes"], want["assign.proposals"]
    yield Row("assign.rpn", unlike(matching.assign(everywhere, truth, 0.7, 0.3, 0.3), want["assign.rpn"]), 0)
    assigned = matching.assign(proposals, truth, 0.5, 0.5, 0.5)
    yield Row("assign.rcnn", unlike(assigned, want["assign.rcnn"]), 0)
    labels = torch.where(assigned > 0, want["assign.gt_labels"].long()[(assigned - 1).clamp(min=0)], -1)
    yield Row("assign.rcnn_labels", unlike(labels[assigned > 0], want["assign.rcnn_labels"][assigned > 0]), 0)
    targets = losses.mask_targets(
        want["mask_target.gt"], want["mask_target.boxes"], want["mask_target.gt_index"].long(), 28
    )
    yield Row("mask_target", unlike(targets, want["mask_target.targets"]), 0)


def _pasting(facts: Mapping[str, Any], want: Mapping[str, Tensor]) -> Iterator[Row]:
    (h, w), maps, own = facts["paste_size_h_w"], want["paste.masks"][:, 0], want["paste.boxes"]
    whole = torch.stack([pasting.resample_mask(one, box, (0, 0, w, h)) for one, box in zip(maps, own, strict=True)])
    yield Row("paste.probabilities", apart(whole, want["paste.probabilities_whole_image"]), 1e-5)
    yield Row("paste.binary", unlike(pasting.paste_masks(maps, own, (h, w)), want["paste.binary"]), 0)


def _preparation(facts: Mapping[str, Any], want: Mapping[str, Tensor]) -> Iterator[Row]:
    case = facts["prepare"]
    h, w = case["original_h_w"]
    y, x, c = torch.meshgrid(torch.arange(h), torch.arange(w), torch.arange(3), indexing="ij")
    image = ((7 * y + 13 * x + 50 * c + (y * x) // 9) % 256).to(torch.uint8).permute(2, 0, 1).flip(0)
    size = preparation.fitted_size((h, w), tuple(case["scale"]))
    yield Row("prepare.size", unlike(torch.tensor(size), torch.tensor(case["resized_h_w"])), 0)
    resized = preparation.resize(image, size)
    yield Row("prepare.resized", apart(resized.flip(0).permute(1, 2, 0), want["prepare.resized_bgr_hwc"]), 0)
    batch = preparation.prepare([image], tuple(case["scale"]))
    yield Row("prepare.network_input", apart(batch.pixels, want["prepare.network_input"]), 1e-5)


# --- whole networks


def build(case: Mapping[str, Any]) -> vmamba.MaskRCNN:
    """The network of a case with its filled weights."""
    parts = {name: case[name] for name in ("backbone", "neck", "rpn", "box_head", "mask_head")}
    return filled(vmamba.MaskRCNN(**parts), case["keys"], case["seed"])


def filled(model: vmamba.MaskRCNN, keys: list[Any], seed: int) -> vmamba.MaskRCNN:
    """``model``, in evaluation mode, with the weights that the names of ``keys`` give."""
    vmamba.load_weights(model, {key: torch.from_numpy(fill(key, shape, seed)) for key, shape in keys})
    return model.eval()


def network_input(case: Mapping[str, Any]) -> Tensor:
    """The normalised and padded image of a case."""
    image = torch.from_numpy(fill("input", case["input_shape"], case["seed"]))
    h, w = case.get("image_shape") or case["input_shape"][-2:]
    image[:, :, h:], image[:, :, :, w:] = 0, 0
    return image


@dataclass
class Stages:
    """Compares a case's stages; each goes on from what is stored, or, where that is not, from what was computed."""

    want: Mapping[str, Tensor]
    summaries: Mapping[str, Any]
    prefix: str

    def row(self, name: str, value: Tensor, tolerance: float, measure: Any = relative) -> Row:
        """How far off a value is; by its summary where it is not stored itself."""
        if name in self.want:
            return Row(f"{self.prefix}{name}", measure(value, self.want[name]), tolerance)
        # Nothing to start from was stored either: the error of all stages before is in it.
        return Row(f"{self.prefix}{name} (summary)", summary_error(value, self.summaries[name]), max(tolerance, 1e-4))

    def stored(self, name: str, value: Tensor) -> Tensor:
        """What is stored, else ``value``."""
        found = self.want.get(name, value)
        return found.to(value.dtype)


def summary_error(value: Tensor, summary: Mapping[str, Any]) -> float:
    """The largest difference of a summary's figures, relative to the largest value."""
    if list(value.shape) != list(summary["shape"]):
        return float("inf")
    flat = value.double().flatten()
    scale = max(abs(summary["min"]), abs(summary["max"]), 1e-12)
    first = torch.tensor(summary["first"], dtype=torch.float64)
    figures = [
        (flat.mean() - summary["mean"]).abs(),
        (flat.std(unbiased=False) - summary["std"]).abs(),
        (flat.min() - summary["min"]).abs(),
        (flat.max() - summary["max"]).abs(),
        (flat[: len(first)] - first).abs().max(),
    ]
    return float(max(figures)) / scale


@torch.inference_mode()
def stages(name: str, case: Mapping[str, Any], want: Mapping[str, Tensor], model: vmamba.MaskRCNN) -> Iterator[Row]:
    """Every stage of a case from the stored result of the one before."""
    at = Stages(want, case["tensors"], f"{name} ")
    size = tuple(case.get("image_shape") or case["input_shape"][-2:])
    maps = model.backbone(network_input(case))
    for i, x in enumerate(maps):
        yield at.row(f"backbone.{i}", x, STAGE_TOLERANCE)
    levels = model.neck([at.stored(f"backbone.{i}", x) for i, x in enumerate(maps)])
    for i, x in enumerate(levels):
        yield at.row(f"fpn.{i}", x, STAGE_TOLERANCE)
    levels = [at.stored(f"fpn.{i}", x) for i, x in enumerate(levels)]
    scores, deltas = model.rpn_head(levels)
    for kind, values in (("cls", scores), ("bbox", deltas)):
        for i, x in enumerate(values):
            yield at.row(f"rpn.{kind}.{i}", x, STAGE_TOLERANCE)
    scores = [at.stored(f"rpn.cls.{i}", x) for i, x in enumerate(scores)]
    deltas = [at.stored(f"rpn.bbox.{i}", x) for i, x in enumerate(deltas)]
    grid = model.rpn_head.anchors(levels)
    for i, x in enumerate(grid):
        if f"anchors.{i}" in case["tensors"]:
            yield at.row(f"anchors.{i}", x, 1e-5, apart)
    found = model.rpn_head.candidates(
        [x[0, :, 0] for x in rpn.flatten(scores, 1)], [x[0] for x in rpn.flatten(deltas, 4)], grid, size
    )
    for part, tolerance, measure in (("boxes", BOX_TOLERANCE, apart), ("scores", 1e-6, apart), ("levels", 0, unlike)):
        yield at.row(f"rpn.candidates.{part}", getattr(found, part), tolerance or 1e-9, measure)
    found = rpn.Candidates(
        *(at.stored(f"rpn.candidates.{part}", getattr(found, part)) for part in ("boxes", "scores", "levels"))
    )
    kept = model.rpn_head.select(found)
    yield at.row("rpn.keep", kept, 1e-9, unlike)
    yield at.row("proposals.boxes", found.boxes[kept], BOX_TOLERANCE, apart)
    yield at.row("proposals.scores", found.scores[kept], 1e-6, apart)
    yield from _region_stages(at, case, model, levels, at.stored("proposals.boxes", found.boxes[kept]), size)


def _region_stages(
    at: Stages, case: Mapping[str, Any], model: vmamba.MaskRCNN, levels: list[Tensor], proposals: Tensor, size: Any
) -> Iterator[Row]:
    box_head, masks = model.roi_head.bbox_head, model.roi_head.mask_head
    yield at.row("roi.levels", regions.levels_of(proposals, 4), 1e-9, unlike)
    pooled = model.region_features(levels, [proposals], box_head.config.roi_size)
    yield at.row("roi.box_features_of_first_4", pooled[:4], STAGE_TOLERANCE)
    logits, deltas = box_head(pooled)
    yield at.row("box.cls", logits, STAGE_TOLERANCE)
    yield at.row("box.bbox", deltas, STAGE_TOLERANCE)
    logits, deltas = at.stored("box.cls", logits), at.stored("box.bbox", deltas)
    found = box_head.candidates(proposals, logits, deltas, size)
    yield at.row("det.candidates.count", torch.tensor([len(found.boxes)]), 1e-9, unlike)
    det = box_head.detections(proposals, logits, deltas, size)
    yield at.row("det.boxes", det.boxes, BOX_TOLERANCE, apart)
    yield at.row("det.scores", det.scores, 1e-6, apart)
    yield at.row("det.labels", det.labels, 1e-9, unlike)
    own, labels = at.stored("det.boxes", det.boxes), at.stored("det.labels", det.labels)
    features = model.region_features(levels, [own], masks.config.roi_size)
    yield at.row("roi.mask_features_of_first_2", features[:2], STAGE_TOLERANCE)
    maps = masks(features)
    yield at.row("mask.logits", maps, STAGE_TOLERANCE)
    chosen = mask_head.of_labels(at.stored("mask.logits", maps), labels)
    yield at.row("mask.logits_of_label", chosen, STAGE_TOLERANCE)
    if "final.masks_packed" in at.want:
        original, w_h = _rescaled(case)
        scaled = own / torch.tensor(w_h * 2, dtype=torch.float32)
        yield at.row("final.boxes", scaled, BOX_TOLERANCE, apart)
        pasted = pasting.paste_masks(at.stored("mask.logits_of_label", chosen).sigmoid(), scaled, original)
        yield at.row("final.masks_packed", packed(pasted), 0, unlike)


def _rescaled(case: Mapping[str, Any]) -> tuple[tuple[int, int], list[float]]:
    """The size that results are given for, and the factor of width and height from there to the network's input."""
    w_h = list(case.get("scale_factor_w_h", [1.0, 1.0]))
    h, w = case.get("original_shape") or case["input_shape"][-2:]
    return ((h, w), w_h) if case.get("rescale") else ((round(h * w_h[1]), round(w * w_h[0])), [1.0, 1.0])


def packed(masks: Tensor) -> Tensor:
    """``(n, h, w)`` as bits, eight pixels a byte, the first pixel the highest bit: ``(n, ceil(h·w / 8))``."""
    flat = masks.flatten(1)
    flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % 8)).reshape(len(flat), -1, 8)
    return (flat.int() * torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.int32)).sum(dim=2).to(torch.uint8)


def match(found: tuple[Tensor, Tensor, Tensor], want: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """For each wanted box the nearest one found of its label: its index, and its distance in pixels."""
    distance = (found[0][None] - want[0][:, None]).abs().amax(dim=2)
    distance = distance.masked_fill(found[2][None] != want[2][:, None], float("inf"))
    nearest = distance.min(dim=1)
    return nearest.indices, nearest.values


@torch.inference_mode()
def whole(name: str, case: Mapping[str, Any], want: Mapping[str, Tensor], model: vmamba.MaskRCNN) -> Iterator[Row]:
    """From the image to the final boxes and masks. Boxes are compared as sets, their order where scores are apart."""
    size = tuple(case.get("image_shape") or case["input_shape"][-2:])
    original, _ = _rescaled(case)
    (found,) = model(network_input(case), [size], [original])
    boxes_, scores, labels = want["final.boxes"], want["final.scores"], want["final.labels"].long()
    yield Row(f"{name} whole: count", abs(len(found) - len(boxes_)), 0)
    index, distance = match((found.boxes, found.scores, found.labels), (boxes_, scores, labels))
    yield Row(f"{name} whole: boxes, px", distance.max().item(), FINAL_BOX_TOLERANCE)
    yield Row(f"{name} whole: each once", len(index) - len(index.unique()), 0)
    yield Row(f"{name} whole: scores", apart(found.scores[index], scores), SCORE_TOLERANCE)
    clear = scores[:-1] - scores[1:] > GAP
    yield Row(f"{name} whole: order", (index[1:] < index[:-1])[clear].sum().item(), 0)
    pixels = want["final.masks_pixels"].long()
    own = found.masks[index].flatten(1).sum(dim=1)
    off = (own - pixels).abs().sum().item() / max(pixels.sum().item(), 1)
    yield Row(f"{name} whole: mask pixels", off, MASK_TOLERANCE)
    if "final.masks_packed" in want:
        bits = packed(found.masks[index])
        yield Row(f"{name} whole: masks", unlike(bits, want["final.masks_packed"]), MASK_TOLERANCE)


def full(path: Path, keys: Mapping[str, Any]) -> Iterator[Row]:
    """An official model by its summaries and final boxes; its keys and configuration are in ``keys.json``."""
    stored = json.loads(path.read_text())
    case = stored["case"]
    final = case.get("final") or stored.get("final")
    official = keys["models"][case["structure"]]
    case = {**case, "tensors": case.get("tensors") or stored["tensors"]}
    model = filled(vmamba.MaskRCNN(backbone=official["backbone"]), official["keys"], case["seed"])
    yield from stages(path.stem, case, {}, model)
    want = {f"final.{name}": torch.tensor(final[name]) for name in ("boxes", "scores", "labels")}
    yield from whole(path.stem, case, {**want, "final.masks_pixels": torch.tensor(final["mask_pixels"])}, model)


def keys_row(name: str, state: Mapping[str, Tensor], want: list[Any]) -> Row:
    """How many keys or shapes differ, or stand elsewhere; SS2D and patch merging keep an order of their own."""
    own = [(key, list(value.shape)) for key, value in state.items()]
    wanted = [(key, list(shape)) for key, shape in want]
    differ = sum(pair not in wanted for pair in own) + sum(pair not in own for pair in wanted)
    outside = [[pair for pair in pairs if not {"op", "downsample"} & {*pair[0].split(".")}] for pairs in (own, wanted)]
    return Row(name, differ + (outside[0] != outside[1]), 0)


def key_lists(keys: Mapping[str, Any]) -> Iterator[Row]:
    """The ordered keys and shapes of every official configuration, and of the named model of the same structure."""
    for name, official in keys["models"].items():
        with torch.device("meta"):
            state = vmamba.MaskRCNN(backbone=official["backbone"]).state_dict()
        yield keys_row(f"keys {name}", state, official["keys"])


def rows(folder: Path, pattern: str = "*") -> Iterator[Row]:
    """All comparisons of a folder's cases that match a pattern, among them ``keys`` and ``ops``, single operations."""
    keys = json.loads((folder / "keys.json").read_text()) if (folder / "keys.json").exists() else None
    if keys is not None and fnmatch.fnmatch("keys", pattern):
        yield from key_lists(keys)
    if (folder / "ops.json").exists() and fnmatch.fnmatch("ops", pattern):
        yield from operations(folder)
    if (folder / "cases.json").exists():
        for name, case in json.loads((folder / "cases.json").read_text())["cases"].items():
            if not fnmatch.fnmatch(name, pattern):
                continue
            want, model = load_file(folder / case["file"]), build(case)
            yield keys_row(f"{name} keys", model.state_dict(), case["keys"])
            yield from stages(name, case, want, model)
            yield from whole(name, case, want, model)
    if keys is not None:
        for path in sorted(p for p in folder.glob("full_*.json") if fnmatch.fnmatch(p.stem, pattern)):
            yield from full(path, keys)


def here(folder: Path) -> bool:
    """Whether a folder holds detection cases."""
    cases = folder / "cases.json"
    return (cases.is_file() and '"box_head"' in cases.read_text()) or (
        (folder / "ops.json").is_file() and '"mask_target.targets"' in (folder / "ops.json").read_text()
    )


def results(folder: Path, pattern: str) -> Iterator[Result]:
    """The comparisons of a folder by case: the worst of each kind, and by its full name what is off."""
    gathered: dict[str, list[Row]] = {}
    for row in rows(folder, pattern):
        gathered.setdefault(row.case, []).append(row)
    for case, own in gathered.items():
        errors: dict[str, tuple[float, float]] = {}
        for row in own:
            kind = row.what if not row.good else row.what.split(".")[0].split(":")[0]
            worst = errors.get(kind)
            if worst is None or row.error * worst[1] >= worst[0] * row.tolerance:
                errors[kind] = (row.error, row.tolerance)
        yield Result(f"detection {case}", errors)
