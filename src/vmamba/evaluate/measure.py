"""Measure trained weights on a labelled split: accuracy, a row for each class, and the confusion counts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from vmamba.data import DataConfig, LabelledImages, TransformedImages, load_splits
from vmamba.errors import ConfigError, DataError
from vmamba.evaluate.predictor import Classifier, load_classifier
from vmamba.output import check_writable_file, write_json
from vmamba.tasks.classification.scores import ScoreCounter, Scores
from vmamba.train.run_folder import RunFolder

if TYPE_CHECKING:
    from rich.console import Console

#: With more classes than this the terminal shows only the worst; the JSON file always has all.
MAX_ROWS = 40


@dataclass(frozen=True)
class EvaluateConfig:
    """What to measure.

    Attributes:
        weights: Run folder (its best weights), a weight file that a run wrote, or an ONNX file of `vmamba export`.
        data: The images; by default those that the run was trained on.
        split: The part of them to measure on.
        batch_size: Images in one forward pass.
        num_workers: Processes that load images; 0 = none.
        device: auto, cpu, cuda, mps or xpu.
        json: File for all figures.
        confusion: PNG file for the confusion matrix.
    """

    weights: Path
    data: DataConfig | None = None
    split: Literal["train", "val", "test"] = "test"
    batch_size: int = 64
    num_workers: int = 0
    device: str = "auto"
    json: Path | None = None
    confusion: Path | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size={self.batch_size}: want a whole number, 1 or more")
        if self.num_workers < 0:
            raise ConfigError(f"num_workers={self.num_workers}: want a whole number, 0 or more")


@dataclass(frozen=True)
class Evaluation:
    """`Scores` and what they were measured on; ``images_per_second`` counts loading and preprocessing too."""

    weights: str
    model: str
    dataset: str
    split: str
    device: str
    images_per_second: float
    scores: Scores

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the scores beside what they were measured on."""
        values = asdict(self)
        scores = values.pop("scores")
        return {**values, **scores}


def evaluate(config: EvaluateConfig, console: Console | None = None) -> Evaluation:
    """Measure trained weights, print a summary to ``console``, and write the files that ``config`` names.

    Raises:
        CheckpointError: the weights cannot be used.
        DataError: the images cannot be used, or their classes are not the weights'.
        OutputError: a file cannot be written; noticed before anything is computed.
    """
    for path in (config.json, config.confusion):
        if path is not None:
            check_writable_file(path)
    trained, device = load_classifier(config.weights, config.device)
    data = config.data or trained_on(config.weights)
    if data is None:
        raise unknown_images(config.weights)
    splits = load_splits(replace(data, in_chans=trained.preprocessing.in_chans))
    images: LabelledImages | None = getattr(splits, config.split)
    if images is None:
        raise DataError(f"the data set has no {config.split} split; choose another with split=val or split=train")
    order = _label_order(splits.classes, trained)

    started = time.perf_counter()
    scores = score(trained, images, order, device, config.batch_size, config.num_workers)
    seconds = time.perf_counter() - started
    evaluation = Evaluation(
        weights=str(trained.weights_path),
        model=trained.name,
        dataset=data.dataset if data.data_dir is None else f"{data.dataset} {data.data_dir}",
        split=config.split,
        device=str(device),
        images_per_second=round(scores.images / seconds, 1),
        scores=scores,
    )
    if config.json is not None:
        write_json(config.json, evaluation.to_dict())
    if config.confusion is not None:
        from vmamba.evaluate.pictures import confusion_figure, save_figure

        title = f"{trained.name} on {evaluation.dataset}, {config.split}"
        save_figure(confusion_figure(scores.confusion, trained.classes, title), config.confusion)
    if console is not None:
        show(evaluation, console)
        for path in (config.json, config.confusion):
            if path is not None:
                console.print(f"wrote {path}", soft_wrap=True, markup=False)
    return evaluation


def trained_on(weights: Path) -> DataConfig | None:
    """The images of the run that ``weights`` is (its folder) or lies in (a file); None outside of a run."""
    folder = RunFolder(weights if weights.is_dir() else weights.parent)
    return folder.read_config().data if folder.config.is_file() else None


def unknown_images(weights: Path) -> ConfigError:
    """The error for weights outside of a run where no images were named."""
    return ConfigError(
        f"{weights} does not lie in a run's folder, so the images it was trained on are not known: "
        "name some with data.dataset and data.data_dir"
    )


def score(
    trained: Classifier,
    images: LabelledImages,
    order: Sequence[int] | None = None,
    device: torch.device | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
) -> Scores:
    """Run a trained model over labelled images.

    Args:
        trained: the model and its preprocessing.
        images: what to measure on.
        order: for each of the images' labels, the model's index of that class; None where they are the same.
        device: where to compute; the CPU by default.
        batch_size: images in one forward pass.
        num_workers: processes that load images.
    """
    device = device or torch.device("cpu")
    model = trained.model.to(device)
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        TransformedImages(images, trained.preprocessing.eval_transform()),
        batch_size=batch_size,
        num_workers=num_workers,
    )
    to_model = None if order is None else torch.tensor(order)
    counter = ScoreCounter(trained.classes)
    with torch.inference_mode():
        for pixels, labels in loader:
            counter.update(model(pixels.to(device)), labels if to_model is None else to_model[labels])
    return counter.scores()


def _label_order(classes: Sequence[str], trained: Classifier) -> list[int] | None:
    """Where each of the data's classes is among the model's; the same names in another order are fine."""
    if tuple(classes) == trained.classes:
        return None
    if sorted(classes) != sorted(trained.classes):
        raise DataError(
            f"the data has {_named(classes)}, but {trained.weights_path} was trained on {_named(trained.classes)}; "
            "measure on images of those classes"
        )
    return [trained.classes.index(name) for name in classes]


def _named(classes: Sequence[str]) -> str:
    more = f", … {len(classes) - 10} more" if len(classes) > 10 else ""
    return f"{len(classes)} classes ({', '.join(classes[:10])}{more})"


def show(evaluation: Evaluation, console: Console) -> None:
    """Print the summary, the table of classes, and the commonest confusions."""
    from rich.table import Table

    scores = evaluation.scores
    rows = scores.classes
    title = f"Each class of the {evaluation.split} split"
    if len(rows) > MAX_ROWS:
        rows = tuple(sorted(rows, key=lambda row: row.f1)[:MAX_ROWS])
        title = f"The {MAX_ROWS} worst of {len(scores.classes)} classes, {evaluation.split} split"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("class")
    for column in ("precision", "recall", "F1", "images"):
        table.add_column(column, justify="right")
    for row in rows:
        shares = (f"{share:.1%}" for share in (row.precision, row.recall, row.f1))
        table.add_row(_plain(row.name), *shares, f"{row.images:,}")

    def say(text: str = "") -> None:
        console.print(text, soft_wrap=True, markup=False)

    say(f"{evaluation.model} ({evaluation.weights}) on {evaluation.dataset}, {evaluation.split} split")
    say()
    console.print(table)
    say()
    if wrong := _confusions(scores):
        say("Most often confused: " + ", ".join(f"{a} taken for {b} ({n})" for n, a, b in wrong))
    say(
        f"top-1 {scores.top1:.2%}   top-5 {scores.top5:.2%}   loss {scores.loss:.4f}   "
        f"{scores.images:,} images, {evaluation.images_per_second:,.0f} a second on {evaluation.device}"
    )


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)


def _confusions(scores: Scores, count: int = 3) -> list[tuple[int, str, str]]:
    names = [row.name for row in scores.classes]
    wrong = [
        (n, names[i], names[j]) for i, row in enumerate(scores.confusion) for j, n in enumerate(row) if i != j and n > 0
    ]
    return sorted(wrong, key=lambda item: -item[0])[:count]
