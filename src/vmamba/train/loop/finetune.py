"""Start from other weights instead of fresh ones: load them, hold stages still, let the head learn first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import nn

from vmamba.architecture.segmenter_variants import SEGMENTERS
from vmamba.errors import CheckpointError, ConfigError, nearest
from vmamba.models import VARIANTS
from vmamba.tasks.protocol import ModelParts, Task
from vmamba.tasks.run_files import RunFiles
from vmamba.weights import fetch_official, read_weights

#: What a trunk consists of beside its stages.
_STEM = ("patch_embed.", "pos_embed")


def init_file(init: str) -> Path:
    """The file that ``init`` names: a model's released weights, which are fetched, a run folder's best, or itself.

    Raises:
        CheckpointError: neither a model's name nor a file; or weights that cannot be had.
    """
    path = Path(init)
    if path.is_dir():
        path = RunFiles(path).best
    elif not path.exists() and (init in VARIANTS or init in SEGMENTERS):
        path = fetch_official(init)
    if not path.exists():
        raise CheckpointError(
            f"init={init!r} is neither a run folder, a weight file nor a model with released weights"
            f"{nearest(init, VARIANTS)}; `vmamba weights list` shows those"
        )
    return path


def load_init(model: nn.Module, init: str, task: Task, reset_stages: int = 0) -> None:
    """Load the weights that ``init`` names, see `init_file`.

    What of them is of use, and fits, the task decides (`Task.adapt`). The deepest ``reset_stages`` stages and all that
    comes after them must fit too, but keep the model's fresh weights: the deepest features are the most bound to what
    they were learned for (arXiv 1411.1792).

    Raises:
        CheckpointError: as `init_file`, or the weights do not fit.
        ConfigError: the model has fewer stages.
    """
    trunk = task.parts(model).trunk
    stages = len(trunk.layers)
    if reset_stages > stages:
        raise ConfigError(f"reset_stages={reset_stages}, but the model has {stages} stages; give 0 to {stages}")
    path = init_file(init)
    adapted = task.adapt(model, read_weights(path), str(path))
    if reset_stages:
        prefix = next(f"{name}." if name else "" for name, module in model.named_modules() if module is trunk)
        kept = [*_STEM, *(f"layers.{i}." for i in range(stages - reset_stages))]
        taken = tuple(prefix + name for name in kept)
        own = model.state_dict()
        adapted = {name: adapted[name] if name.startswith(taken) else own[name] for name in own}
    model.load_state_dict(adapted)


def freeze_stages(parts: ModelParts, count: int) -> None:
    """Take the patch embedding and the first ``count`` stages out of training; 0 leaves everything in.

    Raises:
        ConfigError: the model has fewer stages.
    """
    if count == 0:
        return
    stages = len(parts.trunk.layers)
    if count > stages:
        raise ConfigError(f"freeze_stages={count}, but the model has {stages} stages; give 0 to {stages}")
    for module in _frozen(parts, count):
        module.requires_grad_(False)
    if parts.trunk.pos_embed is not None:
        parts.trunk.pos_embed.requires_grad_(False)


def hold_still(parts: ModelParts, count: int) -> None:
    """Put the frozen parts into eval mode, so that norms and stochastic depth leave them as they were."""
    for module in _frozen(parts, count):
        module.eval()


def train_head_only(parts: ModelParts, only: bool, freeze: int) -> None:
    """Let nothing but the head learn, or everything that ``freeze`` stages leave."""
    parts.model.requires_grad_(not only)
    parts.head.requires_grad_(True)
    if not only:
        freeze_stages(parts, freeze)


def _frozen(parts: ModelParts, count: int) -> Iterator[nn.Module]:
    if count:
        yield parts.trunk.patch_embed
        yield from list(parts.trunk.layers)[:count]
