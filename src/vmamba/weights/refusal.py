"""Weights that do not fit a model are refused, with what does not fit and what would mend it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vmamba.errors import CheckpointError, ConfigError
from vmamba.weights.misfits import Misfits, find_misfits
from vmamba.weights.recognition import recognise

#: The layers that give the classes: a classifier's, a segmenter's and its auxiliary head's.
CLASS_LAYERS = ("classifier.head", "decode_head.conv_seg", "auxiliary_head.conv_seg")
#: The classifier's last layer.
HEAD = ("classifier.head.weight", "classifier.head.bias")
_DENSE = ("outnorm", "decode_head.", "auxiliary_head.", "neck.", "rpn_head.", "roi_head.")


def refuse_misfits(source: str, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise a `CheckpointError` that lists the misfits, if there are any, and says the mend."""
    if misfits := find_misfits(given, own):
        raise CheckpointError(f"{source} does not fit this model ({misfits}); {_mend(misfits, given, own)}")


def _mend(misfits: Misfits, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    names = {name.split()[0] for name in (*misfits.missing, *misfits.unexpected, *misfits.mis_shaped)}
    if misfits.unusable and not names:
        return "weights must be dense floating-point numbers where the model has such"
    if names and names <= {f"{layer}.{part}" for layer in CLASS_LAYERS for part in ("weight", "bias")}:
        classes, there = (_classes(weights) for weights in (own, given))
        return (
            f"only the head differs, {there} classes there and {classes} here: create_model(…, pretrained=…, "
            f"num_classes={classes}) takes the rest and leaves the model's own head"
        )
    if any(name.startswith(_DENSE) for name in misfits.unexpected):
        return "they look like a segmenter's or detector's: Backbone_VSSM(pretrained=…) takes the backbone out of them"
    return f"build the model that the weights belong to{_whose(given)}"


def _classes(weights: Mapping[str, Tensor]) -> int:
    return next((len(weights[f"{layer}.weight"]) for layer in CLASS_LAYERS if f"{layer}.weight" in weights), 0)


def _whose(given: Mapping[str, Tensor]) -> str:
    """Which model that is, where it shows."""
    try:
        found = recognise(given)
    except (CheckpointError, ConfigError):
        return ""
    if found.name is not None:
        return f": they are {found.name}'s, which create_model({found.name!r}, …) and model_config({found.name!r}) know"
    return f", {found}: vmamba.infer_config(…) gives its configuration"
