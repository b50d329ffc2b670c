"""Start from other weights instead of fresh ones: load them, hold stages still, let the head learn first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import nn

from vmamba.errors import CheckpointError, ConfigError, nearest
from vmamba.models import VARIANTS, VSSM
from vmamba.weights import WeightFile, adapt_to, fetch_official, read_weights


def load_init(model: VSSM, init: str, classes: Sequence[str], reset_stages: int = 0) -> None:
    """Load the weights that ``init`` names: a model whose released weights are fetched, a run folder, or a file.

    Strict for everything but the head; the first convolution is adapted to the model's input channels and a positional
    embedding to its grid, see `vmamba.weights.adapt_to`. The head stays fresh unless it was learned for
    ``classes``, or, where the weights do not name theirs, for as many: a head that is sure of ten other classes would
    have to be unlearned first. The deepest ``reset_stages`` stages and the classifier's norm must fit too, but keep
    the model's fresh weights: the deepest features are the most bound to the classes they were learned for
    (arXiv 1411.1792).

    Raises:
        CheckpointError: neither a model's name nor a file; or weights that cannot be had or do not fit.
        ConfigError: the model has fewer stages.
    """
    stages = len(model.layers)
    if reset_stages > stages:
        raise ConfigError(f"reset_stages={reset_stages}, but the model has {stages} stages; give 0 to {stages}")
    path = Path(init)
    if path.is_dir():
        path = path / "best.safetensors"
    elif not path.exists() and init in VARIANTS:
        path = fetch_official(init)
    if not path.exists():
        raise CheckpointError(
            f"init={init!r} is neither a run folder, a weight file nor a model with released weights"
            f"{nearest(init, VARIANTS)}; `vmamba weights list` shows those"
        )
    weights = read_weights(path)
    reset = [f"layers.{i}." for i in range(stages - reset_stages, stages)]
    if reset_stages:
        reset.append("classifier.")
    elif _classes(weights) not in (None, list(classes)):
        reset.append("classifier.head.")
    own = model.state_dict()
    adapted = adapt_to(weights.state_dict, model, str(path))
    model.load_state_dict({name: own[name] if name.startswith(tuple(reset)) else adapted[name] for name in own})


def _classes(weights: WeightFile) -> object:
    """The class names that a run of ours wrote into its weights; None elsewhere."""
    try:
        return json.loads(weights.metadata["classes"])
    except (KeyError, ValueError):
        return None


def freeze_stages(model: VSSM, count: int) -> None:
    """Take the patch embedding and the first ``count`` stages out of training; 0 leaves everything in.

    Raises:
        ConfigError: the model has fewer stages.
    """
    stages = len(model.layers)
    if count > stages:
        raise ConfigError(f"freeze_stages={count}, but the model has {stages} stages; give 0 to {stages}")
    for module in _frozen(model, count):
        module.requires_grad_(False)
    if count and model.pos_embed is not None:
        model.pos_embed.requires_grad_(False)


def hold_still(model: VSSM, count: int) -> None:
    """Put the frozen parts into eval mode, so that norms and stochastic depth leave them as they were."""
    for module in _frozen(model, count):
        module.eval()


def train_head_only(model: VSSM, only: bool, freeze: int) -> None:
    """Let nothing but the head learn, or everything that ``freeze`` stages leave."""
    model.requires_grad_(not only)
    model.get_classifier().requires_grad_(True)
    if not only:
        freeze_stages(model, freeze)


def _frozen(model: VSSM, count: int) -> Iterator[nn.Module]:
    if count:
        yield model.patch_embed
        yield from list(model.layers)[:count]
