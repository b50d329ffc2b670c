"""A step whose loss or gradient was not finite: kept in ``replay.pt`` as it was, and computed again from there.

The file holds what the step was computed from: the weights before it, the indices of its samples, and the state of
every generator. Samples are read, and changed at random, as they were then; so the losses come out the same, on a CPU
bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vmamba.errors import CheckpointError, ConfigError
from vmamba.output import write_atomically
from vmamba.tasks.protocol import Subsets
from vmamba.train.accelerator import accelerator_for
from vmamba.train.folder.run_folder import RunFolder
from vmamba.train.folder.states import read_tensors, write_tensors
from vmamba.train.loop.guard import Fault
from vmamba.train.loop.rng import restore_rng_state
from vmamba.train.loop.trainer import Trainer
from vmamba.train.loop.update import UpdateGroup


@dataclass(frozen=True)
class Replayed:
    """A step that was computed again.

    Attributes:
        epoch: counted from 1.
        steps: its batches in that epoch, counted from 1; several where gradients are accumulated.
        losses: one for each batch.
        gradient_norm: over all of them; of one process alone where several trained.
        samples: the names of each batch's samples, files where they are files.
        trainer: as it was before the step but for the optimizer's moments, with ``trainer.model`` holding the
            gradient. To look further: hooks, `torch.autograd.detect_anomaly`.
    """

    epoch: int
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    gradient_norm: float
    samples: tuple[tuple[str, ...], ...]
    trainer: Trainer


def write_replay(path: Path, trainer: Trainer, subsets: Subsets, fault: Fault, main: bool) -> None:
    """Keep what ``fault`` was computed from. Call it in every process; ``main`` writes.

    Raises:
        OutputError: the file cannot be written.
    """
    from accelerate.utils import gather_object

    keys = trainer.keys_of(fault.epoch, fault.first, fault.last)
    processes = gather_object([{"keys": keys, "names": _names(subsets.train, keys), "rng": fault.rng}])
    if main:
        content = {
            "said": str(fault),
            "epoch": fault.epoch,
            "first": fault.first,
            "processes": processes,
            "model": trainer.accelerator.unwrap_model(trainer.model).state_dict(),
        }
        write_atomically(path, lambda temporary: write_tensors(temporary, content))


def replay(folder: str | Path, process: int = 0, device: str = "auto") -> Replayed:
    """Compute a run's step whose loss was not finite once more; changes nothing in the folder.

    Args:
        folder: the run's, in which training left ``replay.pt``.
        process: whose batches, where several processes trained.
        device: ``auto``, or where to compute instead.

    Raises:
        CheckpointError: there is no such file, or it is damaged.
        ConfigError: there was no such process.
    """
    run = RunFolder(Path(folder))
    if not run.replay.is_file():
        raise CheckpointError(f"{run.path} has no {run.replay.name}: training writes it when a loss is not finite")
    kept = read_tensors(run.replay)
    if not 0 <= process < len(kept["processes"]):
        raise ConfigError(f"process={process}, but {len(kept['processes'])} trained; give 0 to the last of them")
    own = kept["processes"][process]
    config = replace(run.read_config(), resume=run.path, num_workers=0)
    if device != "auto":
        config = replace(config, device=device)  # type: ignore[arg-type]  # checked by TrainConfig
    with accelerator_for(config) as accelerator:
        task, subsets = config.learnt.load(config.data, config.task_options)
        trainer = Trainer(config, task, subsets, accelerator)
        accelerator.unwrap_model(trainer.model).load_state_dict(kept["model"])
        trainer.begin_epoch(kept["epoch"])
        restore_rng_state(own["rng"])
        losses, norm = _compute(trainer, kept["epoch"], kept["first"], own["keys"])
    steps = tuple(kept["first"] + 1 + i for i in range(len(losses)))
    names = tuple(tuple(batch) for batch in own["names"])
    return Replayed(kept["epoch"] + 1, steps, losses, norm, names, trainer)


def _compute(trainer: Trainer, epoch: int, first: int, keys: list[list[int]]) -> tuple[tuple[float, ...], float]:
    from accelerate.utils import send_to_device

    group = UpdateGroup(trainer.config, trainer.steps_per_epoch)
    losses = []
    for step, indices in enumerate(keys, first):
        samples = trainer.samples.__getitems__([(epoch, index) for index in indices])
        batch = send_to_device(trainer.task.collate(samples), trainer.accelerator.device)
        losses.append(trainer.learn(step, batch, group).item())
    group.finish(trainer.model, trainer.accelerator)
    return tuple(losses), trainer.updater.clip(trainer.model, 0.0).item()


def _names(samples: Any, keys: list[list[int]]) -> list[list[str]]:
    """What messages call the samples: by their own ``name(index)`` where they have that."""
    name_of = getattr(samples, "name", "training sample {}".format)
    return [[str(name_of(index)) for index in batch] for batch in keys]
