"""What trained weights say about image files: as data, on the terminal and as a sheet, as their task has it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vmamba.data import IMAGE_SUFFIXES
from vmamba.data.batches import batches_of
from vmamba.data.reading.arrays import ARRAY_SUFFIXES
from vmamba.data.reading.tar_index import index_tar
from vmamba.errors import ConfigError, DataError
from vmamba.evaluate.features import watch_head, write_features
from vmamba.evaluate.journal import Journal, Record
from vmamba.evaluate.measure import to_device
from vmamba.evaluate.pictures import save_figure
from vmamba.evaluate.processes import Processes, processes
from vmamba.inference.exported import kind_of
from vmamba.output import check_writable_file, check_writable_folder, create_folder, write_json
from vmamba.tasks.protocol import Answer, Task
from vmamba.tasks.trained import Trained, open_trained

if TYPE_CHECKING:
    from rich.console import Console

SHEET_NAME = "contact_sheet.png"
JSON_NAME = "predictions.json"

ALL_SUFFIXES = IMAGE_SUFFIXES + ARRAY_SUFFIXES


@dataclass(frozen=True)
class PredictConfig:
    """Which images to ask about, with what, and where the answers go.

    Attributes:
        paths: Image files, tar archives of such, and folders that are searched through and through.
        weights: Run folder (its best weights), a weight file that a run wrote, a file of `vmamba export` (.onnx, .xml,
            .pt2), or a model's name or upstream's own file for released weights.
        topk: Classes shown for each image, likeliest first.
        threshold: Probability from which on a label holds, of models with several labels an image; by default each
            label's own, found on the validation images.
        output: Folder for contact_sheet.png and predictions.json.
        json: Another file for the JSON.
        features: An .npz file for what the model's head sees of each image: float32 features (N, c), names (N,).
        sheet: Most images on the contact sheet; 0 = no sheet.
        truth: What tells an image's true class, so that wrong answers can be marked: none, or folder = the name of the
            folder it lies in.
        unreadable: Whether an image that cannot be decoded stops the command, or is left out and counted.
        batch_size: Images in one forward pass; by default 64, for segmentation 1, since sizes differ.
        num_workers: Processes that read images; 0 = none.
        resume: Whether to go on with what a stopped command has left in the output folder, if there is such.
        device: auto, cpu, cuda, mps or xpu.
    """

    paths: tuple[Path, ...]
    weights: Path
    topk: int = 5
    threshold: float | None = None
    output: Path = Path("predictions")
    json: Path | None = None
    features: Path | None = None
    sheet: int = 60
    truth: Literal["none", "folder"] = "none"
    unreadable: Literal["stop", "skip"] = "stop"
    batch_size: int | None = None
    num_workers: int = 0
    resume: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, least in (("topk", 1), ("batch_size", 1), ("sheet", 0), ("num_workers", 0)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}: want a whole number, {least} or more")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold={self.threshold}: a probability, want 0 to 1")
        if not self.paths:
            raise ConfigError("no image or folder given")
        if self.features is not None:
            if self.resume:
                raise ConfigError("features are not kept with what is done: give features or resume, not both")
            if self.features.suffix != ".npz":
                raise ConfigError(
                    f"features={self.features}: give a name that ends in .npz, the format that holds the images' names "
                    "beside their features"
                )
            if kind_of(self.weights) is not None:
                raise ConfigError(
                    f"features={self.features}: {self.weights} is an exported file, which gives a model's last output "
                    "alone; give the run's folder or a weight file"
                )


def predict(config: PredictConfig, console: Console | None = None) -> list[Answer]:
    """Ask about images, print the answers to ``console``, and write the contact sheet and the JSON.

    Several processes (`vmamba.evaluate.processes`) share the images; the main one gets all answers, in the order of the
    images, and the others none. While it goes on, the output folder keeps what is done, for ``resume``.

    Raises:
        CheckpointError: the weights cannot be used.
        DataError: there is no image, or one cannot be read; names it. The results have not been written then.
        OutputError: a place cannot be written; noticed before anything is computed.
    """
    check_writable_folder(config.output)
    for place in (config.json, config.features):
        if place is not None:
            check_writable_file(place)
    with processes(config.device) as group:
        return _predict(config, console if group.is_main else None, group)


def _predict(config: PredictConfig, console: Console | None, group: Processes) -> list[Answer]:
    files = group.from_main(lambda: find_images(config.paths, ALL_SUFFIXES))  # before weights are downloaded
    trained, device = group.main_first(lambda: open_trained(config.weights, config.device))
    if not trained.preprocessing.full_depth and any(path.suffix.lower() in ARRAY_SUFFIXES for path in files):
        files = group.from_main(lambda: find_images(config.paths))
    trained.model.to(group.device(device))
    journal = Journal(config.output, _asked(config, files, trained))
    records = group.from_main(journal.resume) if config.resume else []
    if console is not None and records:
        console.print(f"going on after {len(records):,} of {len(files):,} images", markup=False)
    answers = [trained.task.recall(record.answer) for record in records if record.answer is not None]
    skipped = [record.skipped for record in records if record.skipped is not None]
    seen: list[Tensor] = []
    for found in _rounds(config, files, len(records), trained, group.device(device), group):
        if group.is_main:
            new = [Record(skipped=one) if isinstance(one, str) else Record(one.to_dict()) for one in found.ones]
            journal.add(new)
            answers += [one for one in found.ones if not isinstance(one, str)]
            skipped += [one for one in found.ones if isinstance(one, str)]
            seen += found.features
    if not group.from_main(lambda: len(answers)):
        if group.is_main:
            journal.close()
        raise DataError(f"none of the {len(files)} images can be read; the first: {(skipped or ['?'])[0]}")
    written = group.from_main(lambda: _written(config, answers, trained, skipped, seen))
    if group.is_main:
        journal.close()
    if console is not None:
        trained.task.print_answers(answers, console)
        for error in skipped:
            console.print(f"left out: {error}", soft_wrap=True, markup=False)
        for path in written:
            console.print(f"wrote {path}", soft_wrap=True, markup=False)
    return answers


def _asked(config: PredictConfig, files: Sequence[Path], trained: Trained) -> dict[str, Any]:
    """What must be the same for an unfinished prediction to be gone on with."""
    names = hashlib.sha256(b"\0".join(os.fsencode(path) for path in files)).hexdigest()[:16]
    settings = {name: getattr(config, name) for name in ("topk", "threshold", "truth", "unreadable")}
    return {"images": f"{len(files)}, {names}", "weights": trained.weights_word, **settings}


#: The place of an image, the model's input or None, and why there is none.
_Item = tuple[int, Any, str]


@dataclass(frozen=True)
class _Found:
    """Of a batch: for each image its answer or why it was left out, and the features of those that have answers."""

    ones: list[Any]
    features: list[Tensor]


def _rounds(
    config: PredictConfig, files: Sequence[Path], start: int, trained: Trained, device: torch.device, group: Processes
) -> Iterator[_Found]:
    """Rounds in which each process asks about one batch; in the main process what came of the whole round."""
    batch_size = config.batch_size or trained.task.batch_size
    loader: DataLoader[Any] = DataLoader(
        _Inputs(files, trained.task),
        batch_sampler=group.batches(len(files), batch_size, start),
        num_workers=config.num_workers,
        collate_fn=list,
    )
    batches = batches_of(loader)
    for _ in range(group.rounds(len(files), batch_size, start)):
        batch = next(batches, None)  # the last round may not reach all
        found = _Found([], []) if batch is None else _ask(config, files, batch, trained, device)
        gathered = group.gather(found)
        yield _Found([one for part in gathered for one in part.ones], [f for part in gathered for f in part.features])


def _ask(
    config: PredictConfig,
    files: Sequence[Path],
    batch: list[tuple[int, Any, str]],
    trained: Trained,
    device: torch.device,
) -> _Found:
    for _, inputs, fault in batch:
        if inputs is None and config.unreadable == "stop":
            mend = "leave such images out with unreadable=skip"
            raise DataError(fault if mend in fault else f"{fault}; {mend}")
    good = [(index, inputs) for index, inputs, _ in batch if inputs is not None]
    ones: dict[int, Any] = {index: fault for index, inputs, fault in batch if inputs is None}
    seen: list[Tensor] = []
    if good:
        stacked = to_device(trained.task.stack([inputs for _, inputs in good]), device)
        with torch.inference_mode(), watch_head(trained, seen) if config.features else nullcontext():
            outputs = trained.task.run(trained.model, stacked)
            answers = trained.task.answers(outputs, [files[index] for index, _ in good], config)
        ones |= {index: answer for (index, _), answer in zip(good, answers, strict=True)}
    return _Found([ones[index] for index, _, _ in batch], seen)


class _Inputs(Dataset[_Item]):
    """Image files as the model's inputs."""

    def __init__(self, files: Sequence[Path], task: Task) -> None:
        self.files = files
        self.task = task

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> _Item:
        try:
            return index, self.task.read(self.files[index]), ""
        except DataError as error:
            return index, None, str(error)


def find_images(paths: Sequence[Path], suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    """The files among ``paths`` and the images in its folders and tar archives, hidden ones apart; folders are sorted.

    Raises:
        DataError: a path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(_walk(path, suffixes))
            if not inside:
                raise DataError(f"no images in {path}: no file in it ends in {', '.join(suffixes)}")
            found += inside
        elif path.suffix.lower() == ".tar" and path.is_file():
            inside = [path / name for name in index_tar(path) if name.lower().endswith(suffixes)]
            if not inside:
                raise DataError(f"no images in {path}: no file in it ends in {', '.join(suffixes)}")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"no image or folder {path}")
    return list(dict.fromkeys(found))


def _walk(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"cannot list {error.filename}: {error.strerror}") from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield Path(place) / name


def _written(
    config: PredictConfig, answers: Sequence[Answer], trained: Trained, skipped: Sequence[str], seen: Sequence[Tensor]
) -> list[Path]:
    """Write the contact sheet, the JSON and the features, and return their paths; the sheet is drawn first."""
    sheet = None
    if config.sheet:
        title = f"{trained.name} ({trained.weights_path})"
        sheet = trained.task.sheet(answers[: config.sheet], len(answers), title)
    create_folder(config.output)
    written = []
    if sheet is not None:
        written.append(config.output / SHEET_NAME)
        save_figure(sheet, written[0])
    values = {
        "model": trained.name,
        "weights": str(trained.weights_path),
        "predictions": [answer.to_dict() for answer in answers],
        "skipped": list(skipped),
    }
    for path in (config.output / JSON_NAME, config.json):
        if path is not None:
            written.append(path)
            write_json(path, values)
    if config.features is not None:
        write_features(config.features, seen, [answer.path for answer in answers])
        written.append(config.features)
    return written
