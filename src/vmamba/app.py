"""The commands: for each, its options and the task it calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmamba.errors import ConfigError, nearest

if TYPE_CHECKING:
    from jsonargparse import Namespace
    from rich.console import Console

    from vmamba.parsing import CommandParser
    from vmamba.tasks.bench_scan import BenchScanConfig

# Tasks are imported inside the functions that call them: `vmamba --help` should not wait for timm or matplotlib.


@dataclass(frozen=True)
class Command:
    """One word after ``vmamba``.

    Attributes:
        summary: its line in ``vmamba --help``.
        options: adds its options to a parser.
        run: does it, given the parsed options; returns the exit code.
        defaults: defaults that depend on other options: called with all that was parsed, and with what the user gave.
        config_file: whether the options may come from a YAML file too.
    """

    summary: str
    options: Callable[[CommandParser], None]
    run: Callable[[Namespace], int]
    defaults: Callable[[Namespace, Namespace], dict[str, Any]] | None = None
    config_file: bool = True

    def __call__(self, name: str, words: Sequence[str]) -> int:
        """Parse ``words`` and run."""
        from vmamba.parsing import CommandParser

        parser = CommandParser(name, self.summary, self.config_file)
        self.options(parser)
        return self.run(parser.parse(words, self.defaults))


@dataclass(frozen=True)
class CommandGroup:
    """A word after ``vmamba`` with commands of its own.

    Attributes:
        summary: its line in ``vmamba --help``.
        commands: by name.
    """

    summary: str
    commands: Mapping[str, Command]

    def __call__(self, name: str, words: Sequence[str]) -> int:
        """Run the command that the first word names, or list them."""
        first = words[0] if words else "--help"
        if first in ("-h", "--help", "help"):
            print(self._overview(name))
            return 0
        if first not in self.commands:
            legal = list(self.commands)
            raise ConfigError(
                f"{first!r} is not a command of `vmamba {name}`; it has {', '.join(legal)}{nearest(first, legal)}"
            )
        return self.commands[first](f"{name} {first}", words[1:])

    def _overview(self, name: str) -> str:
        width = max(map(len, self.commands))
        rows = [f"  {word:<{width}}  {command.summary}" for word, command in self.commands.items()]
        end = f"`vmamba {name} COMMAND --help` lists the options of a command."
        return "\n".join([f"usage: vmamba {name} COMMAND [options]", "", self.summary, "", "commands:", *rows, "", end])


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _paths(parser: CommandParser, name: str, metavar: str, text: str, nargs: str | None = None) -> None:
    parser.add_argument(name, type=Path, metavar=metavar, help=text, nargs=nargs)


def _demo_options(parser: CommandParser) -> None:
    from vmamba.tasks.demo import DemoConfig

    parser.add_group(DemoConfig)


def _demo(values: Namespace) -> int:
    from vmamba.tasks.demo import DemoConfig, demo

    demo(_build(DemoConfig, values), _console())
    return 0


def _train_options(parser: CommandParser) -> None:
    from vmamba.tasks.train_config import TrainConfig

    parser.add_group(TrainConfig)


def _train(values: Namespace) -> int:
    from vmamba.tasks.train import TrainConfig, train

    train(_build(TrainConfig, values), _console())
    return 0


def _eval_options(parser: CommandParser) -> None:
    from vmamba.data import DataConfig
    from vmamba.tasks.evaluate import EvaluateConfig

    _paths(parser, "weights", "RUN_OR_FILE", "Run folder (its best weights), a run's weight file, or an ONNX file.")
    parser.add_group(EvaluateConfig, skip={"weights", "data"})
    # Size and channels are what the weights were trained with.
    parser.add_group(DataConfig, "data", skip={"image_size", "in_chans"})


def _eval_defaults(values: Namespace, given: Namespace) -> dict[str, Any]:
    """The run's own images, for what the user did not give. Another data set does not lie where the run's does."""
    from vmamba.tasks.classifier import load_classifier
    from vmamba.tasks.evaluate import trained_on, unknown_images

    own = trained_on(values.weights)
    if own is not None:
        kept = {f"data.{name}": value for name, value in vars(own).items() if name in vars(values.data)}
        if given.get("data.dataset", own.dataset) != own.dataset:
            del kept["data.data_dir"]
        return kept
    if "data" not in given:
        load_classifier(values.weights, "auto")  # a file that is missing or broken is the worse news
        raise unknown_images(values.weights)
    return {}


def _eval(values: Namespace) -> int:
    from vmamba.tasks.evaluate import EvaluateConfig, evaluate

    evaluate(_build(EvaluateConfig, values), _console())
    return 0


def _predict_options(parser: CommandParser) -> None:
    from vmamba.tasks.predict import PredictConfig

    _paths(parser, "paths", "IMAGE_OR_FOLDER", "Image files, and folders that are searched through and through.", "+")
    parser.add_group(PredictConfig, skip={"paths"})


def _predict(values: Namespace) -> int:
    from vmamba.tasks.predict import PredictConfig, predict

    values.paths = tuple(values.paths)
    predict(_build(PredictConfig, values), _console())
    return 0


def _export_options(parser: CommandParser) -> None:
    from vmamba.tasks.export import ExportConfig

    parser.add_argument("source", metavar="RUN_OR_NAME", help="Run folder, weight file, or a model's name.")
    parser.add_group(ExportConfig, skip={"source"})


def _export(values: Namespace) -> int:
    from vmamba.tasks.export import ExportConfig, export

    export(_build(ExportConfig, values), _console())
    return 0


def _models_options(parser: CommandParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help="Part of a name, or a pattern such as '*tiny*'.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")


def _models(values: Namespace) -> int:
    from vmamba.tasks.models_table import model_rows, models_table

    rows = model_rows(values.pattern)
    if values.json:
        print(json.dumps([row.to_dict() for row in rows], indent=2))
    else:
        _console().print(models_table(rows))
    return 0


def _backends_options(parser: CommandParser) -> None:
    parser.add_argument("--check", action="store_true", help="Measure error against the reference, speed and memory.")
    parser.add_argument("--json", type=Path, help="File for all figures.")


def _backends(values: Namespace) -> int:
    from vmamba.tasks.backends_report import run_backends

    return run_backends(values.check, values.json, _console())


def _bench_scan_options(parser: CommandParser) -> None:
    from vmamba.tasks.bench_scan import LETTERS, SHAPES, BenchScanConfig

    letters = "; ".join(f"{op}: {text} (else {' '.join(SHAPES[op])})" for op, text in LETTERS.items())
    parser.add_argument("--shape", type=str, action="append", metavar="SHAPE", help=f"Once or more; {letters}.")
    parser.add_argument("--backward", action="store_true", help="Time forward plus backward, not forward alone.")
    parser.add_argument("--no-loop", action="store_true", help="Leave the plain loop out.")
    parser.add_group(BenchScanConfig, skip={"backward", "loop"})


def bench_scan_config(values: Namespace) -> tuple[Sequence[str], BenchScanConfig]:
    """The shapes and the configuration that the options of ``vmamba bench scan`` make."""
    from vmamba.tasks.bench_scan import BenchScanConfig

    given = {name: value for name, value in vars(values).items() if name not in ("shape", "no_loop")}
    return values.shape or (), BenchScanConfig(**given, loop=not values.no_loop)


def _bench_scan(values: Namespace) -> int:
    from vmamba.tasks.bench_scan import run_bench_scan

    shapes, config = bench_scan_config(values)
    return run_bench_scan(config, _console(), shapes)


def _bench_model_options(parser: CommandParser) -> None:
    from vmamba.tasks.bench_model import BenchModelConfig

    parser.add_argument("names", nargs="+", metavar="NAME", help="A model's name, see `vmamba models`.")
    parser.add_argument(
        "--peer", type=str, action="append", metavar="NAME", help="A model of timm's to time beside them; once or more."
    )
    for name, text in (
        ("engine", "eager (default), compile, optimize, onnx, openvino; once or more."),
        ("dtype", "float32 (default), bfloat16, float16; once or more."),
        ("size", "Side of the images in pixels (224); once or more."),
        ("batch", "Images at once (1); once or more."),
    ):
        parser.add_argument(f"--{name}", type=str, action="append", metavar=name.upper(), help=text)
    parser.add_group(BenchModelConfig, skip={"size", "batch"})


def _bench_model(values: Namespace) -> int:
    from vmamba.tasks.bench_model import BenchModelConfig, Grid, run_bench_model

    names, peers = values.pop("names"), values.pop("peer") or ()
    words = {name: values.pop(name) for name in ("engine", "dtype", "size", "batch")}
    grid = Grid.from_words(**{name: given for name, given in words.items() if given})
    return run_bench_model(_build(BenchModelConfig, values), names, peers, _console(), grid)


def _bench_train_options(parser: CommandParser) -> None:
    from vmamba.tasks.bench_model import BenchModelConfig

    parser.add_argument("name", metavar="NAME", help="A model's name, see `vmamba models`.")
    parser.add_group(BenchModelConfig)


def _bench_train(values: Namespace) -> int:
    from vmamba.tasks.bench_model import BenchModelConfig, run_bench_train

    name = values.pop("name")
    return run_bench_train(_build(BenchModelConfig, values), name, _console())


def _bench_scale_options(parser: CommandParser) -> None:
    from vmamba.tasks.bench_model import BenchModelConfig
    from vmamba.tasks.bench_scale import PEERS, SIZES

    parser.add_argument("names", nargs="*", metavar="NAME", help="Our models' names (vmamba_tiny_s1l8).")
    parser.add_argument(
        "--peer", type=str, action="append", metavar="NAME", help=f"timm's; once or more ({', '.join(PEERS)})."
    )
    sizes = f"Sides of the images, pixels; once or more ({', '.join(map(str, SIZES))})."
    parser.add_argument("--size", type=str, action="append", metavar="SIZE", help=sizes)
    parser.add_group(BenchModelConfig, skip={"size", "baseline"})


def _bench_scale(values: Namespace) -> int:
    from vmamba.tasks.bench_model import BenchModelConfig, Grid
    from vmamba.tasks.bench_scale import PEERS, SIZES, run_bench_scale

    names, peers = values.pop("names") or ["vmamba_tiny_s1l8"], values.pop("peer") or PEERS
    sizes = Grid.from_words(size=values.pop("size") or ()).sizes or SIZES
    return run_bench_scale(_build(BenchModelConfig, values), names, peers, sizes, _console())


_BENCH = {
    "scan": Command(
        "Time the scan: each backend and the plain loop, all checked first.",
        _bench_scan_options,
        _bench_scan,
        config_file=False,
    ),
    "model": Command(
        "Time models' forward pass, beside timm's, and the scan's share.",
        _bench_model_options,
        _bench_model,
        config_file=False,
    ),
    "train": Command(
        "Time a training step with each backend, and its peak memory.",
        _bench_train_options,
        _bench_train,
        config_file=False,
    ),
    "scale": Command(
        "Time, memory and FLOPs from small images to large ones.",
        _bench_scale_options,
        _bench_scale,
        config_file=False,
    ),
}


def _migrate_options(parser: CommandParser) -> None:
    text = "Python, YAML and JSON files, notebooks, and folders of them."
    _paths(parser, "paths", "FILE_OR_FOLDER", text, "+")
    parser.add_argument(
        "--to", default="oflex", help="What takes the place of core: oflex, or mamba (needs mamba-ssm)."
    )
    parser.add_argument(
        "--write", action="store_true", help="Change the files; without it only show what would change."
    )


def _migrate(values: Namespace) -> int:
    from vmamba.tasks.migrate import run_migrate

    return run_migrate(values.paths, values.to, values.write, _console())


def _weights_list_options(parser: CommandParser) -> None:
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")


def _weights_list(values: Namespace) -> int:
    from vmamba.tasks.weights import weights_rows, weights_table

    rows = weights_rows()
    if values.json:
        print(json.dumps([row.to_dict() for row in rows], indent=2))
    else:
        _console().print(weights_table(rows))
    return 0


def _weights_get_options(parser: CommandParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="A model's name, see `vmamba weights list`.")


def _weights_get(values: Namespace) -> int:
    from vmamba.tasks.weights import get_weights

    for path in get_weights(values.names):
        print(path)
    return 0


_KEY = "Entry of a training checkpoint, such as model_ema; by default model, then state_dict, then model_ema."


def _weights_convert_options(parser: CommandParser) -> None:
    _paths(parser, "source", "SOURCE", "Weight file.")
    _paths(parser, "destination", "DESTINATION", "New file: .safetensors, or .pth, .pt, .bin or .ckpt.")
    parser.add_argument("--key", help=_KEY)


def _weights_convert(values: Namespace) -> int:
    from vmamba.tasks.weights import convert_weights

    count = convert_weights(values.source, values.destination, values.key)
    print(f"wrote {values.destination} ({count} tensors)")
    return 0


def _weights_inspect_options(parser: CommandParser) -> None:
    _paths(parser, "file", "FILE", "Weight file.")
    parser.add_argument("--key", help=_KEY)
    parser.add_argument("--json", action="store_true", help="Print JSON instead of a table.")


def _weights_inspect(values: Namespace) -> int:
    from vmamba.tasks.weights import inspect_weights, print_inspection

    inspection = inspect_weights(values.file, values.key)
    if values.json:
        print(json.dumps(inspection.to_dict(), indent=2))
    else:
        print_inspection(inspection, _console())
    return 0


_WEIGHTS = {
    "list": Command("List the released weights.", _weights_list_options, _weights_list, config_file=False),
    "get": Command(
        "Download released weights into torch hub's cache.", _weights_get_options, _weights_get, config_file=False
    ),
    "convert": Command(
        "Convert weights between PyTorch and safetensors, bit by bit.",
        _weights_convert_options,
        _weights_convert,
        config_file=False,
    ),
    "inspect": Command(
        "Tell what a weight file holds and which model it fits.",
        _weights_inspect_options,
        _weights_inspect,
        config_file=False,
    ),
}


def _build(config: type[Any], values: Namespace) -> Any:
    """The task's configuration from the options of the same names."""
    given = {name: value for name, value in vars(values).items() if name != "config"}
    return config(**given)


COMMANDS: Mapping[str, Command | CommandGroup] = {
    "demo": Command("Train a small model on digits, measure it, predict; a few minutes.", _demo_options, _demo),
    "train": Command("Train a model.", _train_options, _train),
    "eval": Command("Measure trained weights on labelled images.", _eval_options, _eval, _eval_defaults),
    "predict": Command("Classify image files with trained weights.", _predict_options, _predict),
    "export": Command(
        "Export a model to ONNX, OpenVINO or PyTorch files.", _export_options, _export, config_file=False
    ),
    "models": Command("List the named models.", _models_options, _models, config_file=False),
    "weights": CommandGroup("List, get, convert and inspect weight files.", _WEIGHTS),
    "backends": Command(
        "Tell which scan backends run on this machine, and why not.", _backends_options, _backends, config_file=False
    ),
    "bench": CommandGroup("Time scans, models and training steps.", _BENCH),
    "migrate": Command(
        "Rewrite files that ask for the removed backend core.", _migrate_options, _migrate, config_file=False
    ),
}
