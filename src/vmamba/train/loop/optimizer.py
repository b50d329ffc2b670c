"""How the weights are updated: by which optimizer, which parameters decay, and the learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vmamba.errors import ConfigError
from vmamba.train.loop.muon import MATRICES, Muon, as_matrices
from vmamba.train.settings.config import TrainConfig

#: The scan's own parameters, by the last part of their names: the state's decay, the step's bias, the skip.
SSM = ("A_logs", "dt_projs_bias", "Ds")

#: Rows and columns of a matrix for Muon.
FEWEST = 16


def decays(name: str, parameter: Tensor, decay_ssm: bool = True) -> bool:
    """Whether weight decay holds for a parameter: upstream's rule (``set_weight_decay`` of its utils/optimizer.py).

    Vectors, biases and ``pos_embed`` are exempt. So ``A_logs`` and ``dt_projs_bias``, which are matrices, decay, and
    ``Ds``, a vector (but in Mamba-2's layers), does not.

    Args:
        name: of the parameter, in the model.
        parameter: itself; on any device, meta too.
        decay_ssm: without it the scan's own parameters are exempt too.
    """
    last = name.rpartition(".")[2]
    exempt = parameter.ndim <= 1 or name.endswith(".bias") or last == "pos_embed"
    return not exempt and (decay_ssm or last not in SSM)


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter maps many channels to many, so that Muon updates it by an orthogonal matrix.

    A linear layer's weight, a convolution's or the scan's projection, of at least `FEWEST` inputs and outputs.
    Depthwise kernels and the scan's other parameters are tables of numbers for single channels.
    """
    if parameter.ndim < 2 or name.rpartition(".")[2] in (*SSM, "dt_projs_weight", "pos_embed"):
        return False
    return min(as_matrices(parameter).shape[1:]) >= FEWEST


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """The parameters that learn, in groups of one weight decay and, under layer decay, one ``lr_scale``.

    Groups and their order are timm's: those without decay first, or in the order of the layers; Muon's matrices are
    groups of their own. States of optimizers that were stored rely on it.
    """
    weight_decay = config.weight_decay or 0.0
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, parameter, scale in _learning(model, config.layer_decay):
        if config.undecayed is None:
            decay = weight_decay > 0 and decays(name, parameter, config.decay_ssm)
        else:
            decay = weight_decay > 0 and not any(part in name for part in config.undecayed)
        matrices = config.optimizer == "muon" and is_matrix(name, parameter)
        made = {"weight_decay": weight_decay if decay else 0.0, "params": []}
        if scale is not None:
            made["lr_scale"] = scale
        group = groups.setdefault((scale, decay, matrices), made)
        if matrices:
            group[MATRICES] = True
        group["params"].append(parameter)
    return [groups[key] for key in (sorted(groups) if config.layer_decay == 1.0 else groups)]


def _learning(model: nn.Module, layer_decay: float) -> Iterator[tuple[str, nn.Parameter, float | None]]:
    """Name, parameter, and the factor on its layer's learning rate."""
    layers: dict[str, int] = {}
    if layer_decay != 1.0:
        if not hasattr(model, "group_matcher"):
            raise ConfigError(f"layer_decay={layer_decay} is for classifiers; leave it out for {type(model).__name__}")
        from timm.models import group_parameters

        layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    deepest = max(layers.values(), default=0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter, layer_decay ** (deepest - layers.get(name, deepest)) if layers else None


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (betas 0.9 and 0.999), in one pass over parameter, gradient and moments where it can; or `Muon`."""
    assert config.lr is not None, "a configuration whose learning rate follows the batch: for_processes comes first"
    groups = parameter_groups(model, config)
    fused = {parameter.device.type for group in groups for parameter in group["params"]} <= {"cpu", "cuda"}
    kind = Muon if config.optimizer == "muon" else torch.optim.AdamW
    return kind(groups, lr=config.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True if fused else None)


class PolySchedule:
    """OpenMMLab's ``PolyLR`` behind a linear warm-up: (1 − done / all)^power, from the warm-up's end on.

    timm's counts whole epochs of warm-up, and starts from the rate after it.
    """

    def __init__(self, optimizer: Any, config: TrainConfig, updates_per_epoch: int) -> None:
        self.optimizer = optimizer
        self.power = config.poly_power
        self.updates = (config.epochs or 1) * updates_per_epoch
        self.warmup = min(warmup_updates(config, updates_per_epoch), self.updates)
        lr = config.lr or 0.0
        self.first = (lr / 100 if config.warmup_lr is None else config.warmup_lr) / lr
        self.last = (config.min_lr or 0.0) / lr
        self._rates = [lr * group.get("lr_scale", 1.0) for group in optimizer.param_groups]
        self.step_update(0)

    def factor(self, update: int) -> float:
        """On the learning rate, after so many updates."""
        if update < self.warmup:
            return self.first + (1 - self.first) * update / self.warmup
        left = max(0.0, 1 - (update - self.warmup) / max(1, self.updates - self.warmup))
        share: float = left**self.power
        return (1 - self.last) * share + self.last

    def step_update(self, num_updates: int) -> None:
        """Set the rates for the next update."""
        factor = self.factor(num_updates)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor


class StepSchedule(PolySchedule):
    """A linear warm-up, then the rate, times a tenth after each of ``drop_epochs``, as OpenMMLab's ``MultiStepLR``."""

    def __init__(self, optimizer: Any, config: TrainConfig, updates_per_epoch: int) -> None:
        self.drops = [epoch * updates_per_epoch for epoch in config.drop_epochs]
        super().__init__(optimizer, config, updates_per_epoch)

    def factor(self, update: int) -> float:
        """On the learning rate, after so many updates."""
        dropped: float = 0.1 ** sum(update >= drop for drop in self.drops)
        if update < self.warmup:
            return dropped * (self.first + (1 - self.first) * update / self.warmup)
        return dropped


def warmup_updates(config: TrainConfig, updates_per_epoch: int) -> int:
    """In how many updates the learning rate rises."""
    return (config.warmup_epochs or 0) * updates_per_epoch if config.warmup_updates is None else config.warmup_updates


def make_scheduler(optimizer: Any, config: TrainConfig, updates_per_epoch: int) -> Any:
    """Linear warm-up, then as ``config.schedule`` says, stepped at every update."""
    if config.schedule == "steps":
        return StepSchedule(optimizer, config, updates_per_epoch)
    if config.schedule == "poly":
        return PolySchedule(optimizer, config, updates_per_epoch)
    from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]

    epochs, warmup = config.epochs or 1, config.warmup_epochs or 0
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=epochs - warmup,
        min_lr=config.min_lr or 0.0,
        warmup_lr=(config.lr or 0.0) / 100 if config.warmup_lr is None else config.warmup_lr,
        warmup_epochs=warmup,
        warmup_prefix=True,
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    return scheduler
