"""``vmamba bench``: time scans, models and training steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vmamba.cli.frame import Command, CommandGroup, build, console

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from vmamba.bench.scan import BenchScanConfig
    from vmamba.cli.parsing import CommandParser


#: How every option that takes several values is given.
_MANY = "once or more, or with commas"


def _several(words: Sequence[str] | None) -> list[str]:
    """The values of such an option."""
    return [part for word in words or () for part in word.split(",") if part]


def _bench_scan_options(parser: CommandParser) -> None:
    from vmamba.bench.scan import LETTERS, SHAPES, BenchScanConfig

    letters = "; ".join(f"{op}: {text} (else {' '.join(SHAPES[op])})" for op, text in LETTERS.items())
    parser.add_argument("--shape", type=str, action="append", metavar="SHAPE", help=f"Once or more; {letters}.")
    parser.add_argument("--backward", action="store_true", help="Time forward plus backward, not forward alone.")
    parser.add_argument("--no_loop", action="store_true", help="Leave the plain loop out.")
    parser.add_group(BenchScanConfig, skip={"backward", "loop"})


def bench_scan_config(values: Namespace) -> tuple[Sequence[str], BenchScanConfig]:
    """The shapes and the configuration that the options of ``vmamba bench scan`` make."""
    from vmamba.bench.scan import BenchScanConfig

    given = {name: value for name, value in vars(values).items() if name not in ("shape", "no_loop")}
    return values.shape or (), BenchScanConfig(**given, loop=not values.no_loop)


def _bench_scan(values: Namespace) -> int:
    from vmamba.bench.scan import run_bench_scan

    shapes, config = bench_scan_config(values)
    return run_bench_scan(config, console(), shapes)


def _bench_model_options(parser: CommandParser) -> None:
    from vmamba.bench.setup import BenchModelConfig

    parser.add_argument("names", nargs="+", metavar="NAME", help="A model's name, see `vmamba models`.")
    parser.add_argument(
        "--peer", type=str, action="append", metavar="NAME", help=f"A model of timm's to time beside them; {_MANY}."
    )
    for name, text in (
        ("engine", f"eager (default), compile, optimize, aoti, onnx, openvino; {_MANY}."),
        ("dtype", f"float32 (default), bfloat16, float16; {_MANY}."),
        ("image_size", f"Side of the images in pixels (224); {_MANY}."),
        ("batch_size", f"Images at once (1); {_MANY}."),
    ):
        parser.add_argument(f"--{name}", type=str, action="append", metavar=name.upper(), help=text)
    parser.add_group(BenchModelConfig, skip={"size", "batch"})


def _bench_model(values: Namespace) -> int:
    from vmamba.bench.model import Grid, run_bench_model
    from vmamba.bench.setup import BenchModelConfig

    names, peers = values.pop("names"), _several(values.pop("peer"))
    options = {"engine": "engine", "dtype": "dtype", "image_size": "size", "batch_size": "batch"}
    words = {word: _several(values.pop(option)) for option, word in options.items()}
    grid = Grid.from_words(**{name: given for name, given in words.items() if given})
    return run_bench_model(build(BenchModelConfig, values), names, peers, console(), grid)


def _bench_train_options(parser: CommandParser) -> None:
    from vmamba.bench.setup import BenchModelConfig

    parser.add_argument("name", metavar="NAME", help="A model's name, see `vmamba models`.")
    parser.add_argument("--image_size", type=int, default=224, help="Side of the images in pixels.")
    parser.add_argument("--batch_size", type=int, default=1, help="Images at once.")
    parser.add_group(BenchModelConfig, skip={"size", "batch"})


def _bench_train(values: Namespace) -> int:
    from vmamba.bench.setup import BenchModelConfig
    from vmamba.bench.train import run_bench_train

    name = values.pop("name")
    values.size, values.batch = values.pop("image_size"), values.pop("batch_size")
    return run_bench_train(build(BenchModelConfig, values), name, console())


def _bench_scale_options(parser: CommandParser) -> None:
    from vmamba.bench.scale import PEERS, SIZES
    from vmamba.bench.setup import BenchModelConfig

    parser.add_argument("names", nargs="*", metavar="NAME", help="Our models' names (vmamba_tiny_s1l8).")
    parser.add_argument(
        "--peer", type=str, action="append", metavar="NAME", help=f"timm's; {_MANY} ({', '.join(PEERS)})."
    )
    sizes = f"Sides of the images in pixels; {_MANY} ({', '.join(map(str, SIZES))})."
    parser.add_argument("--image_size", type=str, action="append", metavar="IMAGE_SIZE", help=sizes)
    parser.add_argument("--batch_size", type=int, default=1, help="Images at once.")
    parser.add_group(BenchModelConfig, skip={"size", "batch", "baseline"})


def _bench_scale(values: Namespace) -> int:
    from vmamba.bench.scale import PEERS, SIZES, run_bench_scale
    from vmamba.bench.setup import BenchModelConfig, whole_numbers

    names, peers = values.pop("names") or ["vmamba_tiny_s1l8"], _several(values.pop("peer")) or PEERS
    sizes = whole_numbers("image_size", _several(values.pop("image_size"))) or SIZES
    values.batch = values.pop("batch_size")
    return run_bench_scale(build(BenchModelConfig, values), names, peers, sizes, console())


BENCH = CommandGroup(
    "Time scans, models and training steps.",
    {
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
    },
)
