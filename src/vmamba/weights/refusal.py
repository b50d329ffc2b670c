"""Weights that do not fit a model are refused, with what does not fit and what would mend it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from vmamba.errors import CheckpointError, ConfigError
from vmamba.weights.detectors import recognise_detector
from vmamba.weights.misfits import Misfits, find_misfits
from vmamba.weights.recognition import Recognised, recognise
from vmamba.weights.segmenters import recognise_segmenter

#: The layers that give the classes: a classifier's, a segmenter's and its auxiliary head's.
CLASS_LAYERS = ("classifier.head", "decode_head.conv_seg", "auxiliary_head.conv_seg")
#: The layers of a detector whose size is the number of classes: in the first, and the background.
DETECTOR_CLASS_LAYERS = ("roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg", "roi_head.mask_head.conv_logits")
_ALL_CLASS_LAYERS = CLASS_LAYERS + DETECTOR_CLASS_LAYERS
#: The classifier's last layer.
HEAD = ("classifier.head.weight", "classifier.head.bias")
_DENSE = ("outnorm", "decode_head.", "auxiliary_head.", "neck.", "rpn_head.", "roi_head.")
_Recognise = Callable[[Mapping[str, Tensor]], Recognised[Any]]
#: By the part that no other network has: what whole dense networks are called, and who recognises their weights.
_WHOLE: Mapping[str, tuple[str, _Recognise]] = {
    "decode_head.": ("segmenter", recognise_segmenter),
    "roi_head.": ("detector", recognise_detector),
}


def refuse_misfits(source: str, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise a `CheckpointError` that lists the misfits, if there are any, and says the mend."""
    if misfits := find_misfits(given, own):
        raise CheckpointError(f"{source} does not fit this model ({misfits}); {_mend(misfits, given, own)}")


def _mend(misfits: Misfits, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    names = {name.split()[0] for name in (*misfits.missing, *misfits.unexpected, *misfits.mis_shaped)}
    if misfits.unusable and not names:
        return "weights must be dense floating-point numbers where the model has such"
    if names and names <= {f"{layer}.{part}" for layer in _ALL_CLASS_LAYERS for part in ("weight", "bias")}:
        classes, there = (_classes(weights) for weights in (own, given))
        return (
            f"only the head differs, {there} classes there and {classes} here: create_model(…, pretrained=…, "
            f"num_classes={classes}) takes the rest and leaves the model's own head"
        )
    if any(name.startswith(_DENSE) for name in misfits.unexpected):
        mend = "Backbone_VSSM(pretrained=…) takes the backbone out of them"
        if (whole := _whole(given)) is None:
            return f"they look like a segmenter's or detector's: {mend}"
        return f"they look like a {whole[0]}'s: {mend}, vmamba.load(…) builds the whole {whole[0]}"
    return f"build the model that the weights belong to{_whose(given)}"


def _classes(weights: Mapping[str, Tensor]) -> int:
    sizes = {layer: len(weights[f"{layer}.weight"]) for layer in _ALL_CLASS_LAYERS if f"{layer}.weight" in weights}
    background = DETECTOR_CLASS_LAYERS[0] in sizes
    return next(iter(sizes.values()), 0) - background


def _whole(weights: Mapping[str, Tensor]) -> tuple[str, _Recognise] | None:
    return next((whole for part, whole in _WHOLE.items() if any(name.startswith(part) for name in weights)), None)


def _whose(given: Mapping[str, Tensor]) -> str:
    """Which model that is, where it shows."""
    whole = _whole(given)
    try:
        found: Recognised[Any] = whole[1](given) if whole else recognise(given)
    except (CheckpointError, ConfigError):
        return ""
    if whole:
        return f", {found}: vmamba.load(…) builds it"
    if found.name is not None:
        return f": they are {found.name}'s, which create_model({found.name!r}, …) and model_config({found.name!r}) know"
    return f", {found}: vmamba.infer_config(…) gives its configuration"
