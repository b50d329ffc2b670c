"""Measure trained weights on samples whose truth is known: figures, tables and pictures, as their task has them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from vmamba.data import DataConfig
from vmamba.data.batches import batches_of
from vmamba.data.segmentation.pairs import find_pairs
from vmamba.errors import ConfigError, DataError
from vmamba.evaluate.pictures import save_figure
from vmamba.evaluate.processes import Processes, processes
from vmamba.evaluate.progress import Progress
from vmamba.output import check_writable_file, check_writable_folder, write_json
from vmamba.tasks.protocol import Measurement, Subsets
from vmamba.tasks.run_files import trained_on, unknown_images
from vmamba.tasks.trained import Trained, open_trained

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class EvaluateConfig:
    """What to measure.

    Attributes:
        weights: Run folder (its best weights), a weight file that a run wrote, a file of `vmamba export` (.onnx, .xml,
            .pt2), or a model's name or upstream's own file for released weights.
        data: The images; by default those that the run was trained on.
        split: The part of them to measure on; by default test. For released weights, which have seen none of a folder,
            by default test or else val of train/ val/ test/, and all of a folder that is not so divided.
        batch_size: Images in one forward pass; by default 64, for segmentation 1, since sizes differ.
        num_workers: Processes that load images; 0 = none.
        device: auto, cpu, cuda, mps or xpu.
        json: File for all figures.
        confusion: PNG file for the confusion matrix.
        pictures: Folder for every picture of the result.
        progress: File that keeps what has been measured so far, written twice a minute and removed at the end. Where
            it is there already, the measurement goes on from it.
        options: What the weights' task lets one choose: of segmentation mode (whole or slide), window, stride, blend,
            scales, flip, resize, and distances (whether borders' distances are measured).
    """

    weights: Path
    data: DataConfig | None = None
    split: Literal["train", "val", "test", "all"] | None = None
    batch_size: int | None = None
    num_workers: int = 0
    device: str = "auto"
    json: Path | None = None
    confusion: Path | None = None
    pictures: Path | None = None
    progress: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch_size={self.batch_size}: want a whole number, 1 or more")
        if self.num_workers < 0:
            raise ConfigError(f"num_workers={self.num_workers}: want a whole number, 0 or more")


@dataclass(frozen=True)
class Evaluation:
    """A measurement and what it was taken on; ``images_per_second`` counts loading and preprocessing too."""

    weights: str
    model: str
    dataset: str
    split: str
    device: str
    images_per_second: float
    scores: Measurement

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the scores beside what they were measured on."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "scores"} | self.scores.to_dict()


def evaluate(config: EvaluateConfig, console: Console | None = None) -> Evaluation:
    """Measure trained weights, print a summary to ``console``, and write the files that ``config`` names.

    Raises:
        CheckpointError: the weights cannot be used.
        DataError: the images cannot be used, or show something else than the weights have learnt.
        OutputError: a file cannot be written; noticed before anything is computed.
        ConfigError: a picture is asked for that the weights' task does not have.
    """
    for path in (config.json, config.confusion, config.progress):
        if path is not None:
            check_writable_file(path)
    if config.pictures is not None:
        check_writable_folder(config.pictures)
    with processes(config.device) as group:
        return _evaluate(config, console if group.is_main else None, group)


def _evaluate(config: EvaluateConfig, console: Console | None, group: Processes) -> Evaluation:
    trained, device = group.main_first(lambda: open_trained(config.weights, config.device))
    trained = replace(trained, task=trained.task.configured(config.options))
    device = group.device(device)
    data = config.data or (trained_on(config.weights) if config.weights.exists() else None)
    if data is None:
        raise unknown_images(config.weights)
    subsets = group.from_main(lambda: trained.task.reload(data, trained.weights_path))
    split = config.split or _default_split(trained, data, subsets)
    parts = [getattr(subsets, name) for name in (("train", "val", "test") if split == "all" else (split,))]
    if split != "all" and parts[0] is None:
        raise DataError(f"the data set has no {split} split; choose another with split=val or split=train")
    samples: Dataset[Any] = ConcatDataset([trained.task.dataset(part) for part in parts if part is not None])

    progress = None if config.progress is None else Progress(config.progress, _asked(config, trained, subsets, split))

    started = time.perf_counter()
    batch_size = config.batch_size or trained.task.batch_size
    scores = measure(trained, samples, device, batch_size, config.num_workers, group, progress)
    seconds = time.perf_counter() - started
    skipped = [name for names in group.gather(subsets.skipped) for name in names]
    before = 0 if progress is None else progress.before
    evaluation = Evaluation(
        weights=str(trained.weights_path),
        model=trained.name,
        dataset=data.dataset if data.data_dir is None else f"{data.dataset} {data.data_dir}",
        split=split,
        device=str(device),
        images_per_second=round((scores.count - before) / seconds, 1),
        scores=scores,
    )
    written = group.from_main(lambda: _write(config, evaluation, trained))
    if progress is not None and group.is_main:
        progress.close()
    if console is not None:
        show(evaluation, console)
        if skipped:
            said = f"left out {len(skipped)} unreadable image(s), the first: {skipped[0]}"
            console.print(said, soft_wrap=True, markup=False)
        for path in written:
            console.print(f"wrote {path}", soft_wrap=True, markup=False)
    return evaluation


def _asked(config: EvaluateConfig, trained: Trained, subsets: Subsets, split: str) -> dict[str, Any]:
    """What must be the same for an unfinished measurement to be gone on with."""
    return {"weights": trained.weights_word, "images": subsets.fingerprint(), "split": split, "options": config.options}


def _default_split(trained: Trained, data: DataConfig, subsets: Subsets) -> Literal["val", "test", "all"]:
    if not trained.released or data.data_dir is None:
        return "test"
    if data.dataset == "folder" and data.labels is None and not (data.data_dir / "train").is_dir():
        return "all"
    if data.dataset == "masks" and "" in find_pairs(data.data_dir):
        return "all"
    return "val" if subsets.test is None else "test"


def measure(
    trained: Trained,
    samples: Dataset[Any],
    device: torch.device | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    group: Processes | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Run a trained model over samples.

    Args:
        trained: the model and its task.
        samples: what to measure on, as `Task.dataset` makes it.
        device: where to compute; the CPU by default.
        batch_size: samples in one forward pass.
        num_workers: processes that load samples.
        group: the processes among which the batches are dealt out, each to one; the result comes to all.
        progress: where what is measured is kept, and may have been begun.

    Raises:
        ConfigError: ``progress`` is of something else.
    """
    device, group = device or torch.device("cpu"), group or Processes()
    task, model = trained.task, trained.model.to(device)
    count = len(samples)  # type: ignore[arg-type]  # of map style
    meter, start = task.meter(), 0
    if progress is not None:
        meter, start = group.from_main(lambda: progress.resume(meter))
        progress.before = start
    loader: DataLoader[Any] = DataLoader(
        samples, batch_sampler=group.batches(count, batch_size, start), num_workers=num_workers, collate_fn=task.collate
    )
    batches = batches_of(loader)
    with torch.inference_mode():
        for turn in range(group.rounds(count, batch_size, start)):
            batch = next(batches, None)  # the last round may not reach all
            seen = None
            if batch is not None:
                outputs = task.run(model, to_device(task.inputs(batch), device))
                seen = meter.observe(outputs, batch)
                seen = seen if group.count == 1 else to_device(seen, torch.device("cpu"))
            for one in group.gather(seen):
                if one is not None:
                    meter.update(one)
            if progress is not None and group.is_main:
                progress.note(meter, min(start + (turn + 1) * batch_size * group.count, count))
    return group.from_main(meter.measurement)


def to_device(inputs: Any, device: torch.device) -> Any:
    """Tensors, alone or in lists, tuples and mappings, moved to ``device``."""
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {name: to_device(value, device) for name, value in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        return type(inputs)(to_device(value, device) for value in inputs)
    return inputs


def _write(config: EvaluateConfig, evaluation: Evaluation, trained: Trained) -> list[Path]:
    """Write the files that ``config`` names, and return their paths."""
    pictures: dict[Path, str] = {}
    if config.confusion is not None or config.pictures is not None:
        title = f"{trained.name} on {evaluation.dataset}, {evaluation.split}"
        figures = trained.task.pictures(evaluation.scores, title)
        if config.confusion is not None:
            pictures[config.confusion] = "confusion"
        if config.pictures is not None:
            pictures |= {config.pictures / f"{name}.png": name for name in figures}
        for path, name in pictures.items():
            if name not in figures:
                raise ConfigError(f"{name}={path}: the task {trained.task.name} has no such picture; leave it out")
            save_figure(figures[name], path)
    if config.json is not None:
        write_json(config.json, evaluation.to_dict())
    return [*([] if config.json is None else [config.json]), *pictures]


def show(evaluation: Evaluation, console: Console) -> None:
    """Print what was measured, its tables and its figures."""

    def say(text: str = "") -> None:
        console.print(text, soft_wrap=True, markup=False)

    say(f"{evaluation.model} ({evaluation.weights}) on {evaluation.dataset}, {evaluation.split} split")
    say()
    for table in evaluation.scores.tables(evaluation.split):
        console.print(table, soft_wrap=isinstance(table, str), markup=False)
    say(
        f"{evaluation.scores.summary()}   {evaluation.scores.count:,} images, "
        f"{evaluation.images_per_second:,.0f} a second on {evaluation.device}"
    )
