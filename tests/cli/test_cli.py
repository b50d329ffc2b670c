"""The command line's frame: what it prints, its exit codes, configuration files, and how little it imports."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import vmamba
from vmamba.cli import table
from vmamba.cli.bench import _several
from vmamba.cli.frame import Command
from vmamba.cli.main import main
from vmamba.cli.parsing import CommandParser
from vmamba.errors import VMambaError
from vmamba.train.settings.config import TrainConfig


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(words)
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_the_overview_lists_every_command(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, *words)
    assert (status, err) == (0, "")
    for name, command in table.COMMANDS.items():
        assert f"  {name} " in out
        assert command.summary in out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"vmamba {vmamba.__version__}\n", "")


@pytest.mark.parametrize("name", table.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err = run(capsys, name, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: vmamba {name}")
    assert table.COMMANDS[name].summary in out
    assert [line for line in out.splitlines() if len(line) > 80] == []
    assert "typing." not in out
    assert "<class" not in out


def test_help_documents_every_field_of_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "train", "--help")
    # An option that jsonargparse finds no text for is followed by nothing but its default.
    undocumented = [line for line in out.splitlines() if line.strip().startswith(("--",)) and len(line.split()) == 2]
    following = dict(zip(out.splitlines(), out.splitlines()[1:], strict=False))
    assert [line for line in undocumented if not following[line].startswith(" " * 20)] == []
    assert "--data.dataset" in out
    assert "A model's name" in out


def test_python_m() -> None:
    done = subprocess.run([sys.executable, "-m", "vmamba", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"vmamba {vmamba.__version__}\n"


def test_a_light_start() -> None:
    """Help and a table of our own models wait for none of the libraries that only training or drawing needs."""
    code = (
        "import sys; from vmamba.cli.main import main; main(['--help']); main(['models', 'vmamba_n*'])\n"
        "print([n for n in ('timm', 'torchvision', 'matplotlib', 'sklearn', 'accelerate', 'torchmetrics', 'PIL')"
        " if n in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_models(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    _, out, _ = run(capsys, "models")
    for name in vmamba.list_models():
        assert name in out

    _, out, _ = run(capsys, "models", "vmamba_nano*", "--json")
    (row,) = json.loads(out)
    model = vmamba.create_model("vmamba_nano")
    assert row["name"] == "vmamba_nano"
    assert row["parameters"] == sum(p.numel() for p in model.parameters())
    assert row["top1"] is None
    _, out, _ = run(capsys, "models", "vanilla*", "--json")
    assert {row["name"] for row in json.loads(out)} == set(vmamba.list_models("vanilla*"))
    # Upstream rounds its parameters to millions.
    for row in json.loads(out):
        published = vmamba.architecture.variants.VARIANTS[row["name"]].published
        assert row["parameters"] == pytest.approx(published.params_m * 1e6, abs=0.6e6)


def test_backends(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "backends")
    assert status == 0
    for name in ("oflex", "mamba", "torch"):
        assert name in out


def test_migrate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "old.yaml"
    file.write_text("selective_scan_backend: core\n")
    assert run(capsys, "migrate", str(file))[0] == 1
    assert file.read_text() == "selective_scan_backend: core\n"
    assert run(capsys, "migrate", str(file), "--write")[0] == 0
    assert file.read_text() == "selective_scan_backend: oflex\n"


def test_a_configuration_file_and_options_over_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("epochs: 7\ndata:\n  dataset: marks\n  seed: 3\naugmentation: {hflip: 0.25}\n")
    status, out, _ = run(
        capsys, "train", "--config", str(file), "--data.seed", "4", "--model_options.patch_size", "2", "--print_config"
    )
    assert status == 0
    values = yaml.safe_load(out)
    assert values["epochs"] == 7
    assert values["data"]["dataset"] == "marks"
    assert values["data"]["seed"] == 4
    assert values["augmentation"]["hflip"] == 0.25
    assert values["model"] == "vmamba_nano"
    assert values["model_options"] == {"patch_size": 2}
    (tmp_path / "again.yaml").write_text(out)
    status, again, _ = run(capsys, "train", "--config", str(tmp_path / "again.yaml"), "--print_config")
    assert (status, yaml.safe_load(again)) == (0, values)


def comments(text: str) -> dict[str, str]:
    """The comment of each line by its key, those in groups by both."""
    found: dict[str, str] = {}
    group = ""
    for line in text.splitlines():
        name, comment = line.split(":")[0], line.partition("  # ")[2]
        group = group if name.startswith(" ") else f"{name}."
        found[group + name.strip() if name.startswith(" ") else name] = comment
    return found


def test_print_config_shows_what_a_run_would_use_and_whence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, _ = run(capsys, "train", "--seed", "0", "--data.seed=0", "--print_config", "--epochs", "8")
    assert status == 0
    config = TrainConfig(epochs=8).resolved()
    values = yaml.safe_load(out)
    assert values == config.to_dict()
    where = comments(out)
    assert where["seed"] == where["data.seed"] == where["epochs"] == "given"
    assert where["lr"] == where["select_by"] == "recipe of digits"
    assert where["warmup_epochs"].startswith("recipe of digits")
    assert where["augmentation.hflip"] == where["data.image_size"] == "data set digits"
    assert where["save_every"] == where["model"] == "default"
    assert where["output"] == "default: a new folder, now runs/vmamba_nano-digits-seed0"
    assert not [name for name, value in values.items() if value is None and "default" not in where[name]]
    assert not any(tmp_path.iterdir())
    assert run(capsys, "train", "--lr", "0", "--print_config")[0] == 2


def test_print_config_tells_a_data_sets_own_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "train", "--task", "segmentation", "--print_config")
    assert status == 0
    where = comments(out)
    for name in ("epoch_updates", "warmup_updates", "data.image_size"):
        assert where[name] == "recipe of shapes", name


def test_print_config_of_a_run_to_go_on_with(
    colour_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capsys, "train", "--resume", str(colour_run), "--save_every", "1", "--print_config")
    assert status == 0
    where, values = comments(out), yaml.safe_load(out)
    assert (where["save_every"], where["lr"], values["lr"]) == ("given", f"run {colour_run}", 1e-2)
    assert values["data"]["image_size"] == 16
    (tmp_path / "c.yaml").write_text(out)
    assert yaml.safe_load(run(capsys, "train", "--config", str(tmp_path / "c.yaml"), "--print_config")[1]) == values

    out = run(capsys, "eval", str(colour_run), "--data.seed", "0", "--print_config")[1]
    where = comments(out)
    assert (where["weights"], where["data.seed"]) == ("given", "given")
    assert (where["data.data_dir"], where["split"]) == ("the run's own", "default")
    out = run(capsys, "predict", "--topk", "5", "--print_config")[1]  # with nothing of what it needs
    assert (yaml.safe_load(out)["weights"], comments(out)["topk"], comments(out)["sheet"]) == (None, "given", "default")


def test_train_eval_predict(
    colour_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("data: {dataset: folder, image_size: 16}\nepochs: 9\nnum_workers: 0\n")
    words = ["--config", "run.yaml", "--data.data_dir", str(colour_images), "--epochs", "2", "--output", "run"]
    status, out, _ = run(capsys, "train", *words, "--model_options", "{dims: [8, 16], depths: [1, 1]}")
    assert status == 0
    assert "epoch 2/2" in out
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["epochs"] == 2

    status, out, _ = run(capsys, "eval", "run", "--split", "val", "--json", "eval.json")
    assert status == 0
    assert "top-1" in out
    assert "precision" in out
    figures = json.loads((tmp_path / "eval.json").read_text())
    assert figures["images"] == 9
    assert figures["dataset"] == f"folder {colour_images}"

    image = str(colour_images / "red/00.png")
    status, out, _ = run(capsys, "predict", image, "--weights", "run", "--topk", "2")
    assert status == 0
    assert out.count("%") == 2
    assert (tmp_path / "predictions/contact_sheet.png").is_file()
    assert len(json.loads((tmp_path / "predictions/predictions.json").read_text())["predictions"]) == 1


def test_eval_takes_the_runs_images_and_what_is_given_over_them(
    colour_run: Path, colour_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, seeded, other = tmp_path / "own.json", tmp_path / "seeded.json", tmp_path / "other.json"
    assert run(capsys, "eval", str(colour_run), "--json", str(own))[0] == 0
    assert run(capsys, "eval", str(colour_run), "--json", str(seeded), "--data.seed", "1", "--split", "train")[0] == 0
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((colour_run / "best.safetensors").read_bytes())
    words = ["--data.dataset", "folder", "--data.data_dir", str(colour_images), "--json", str(other)]
    assert run(capsys, "eval", str(copy), *words)[0] == 0
    one, two = json.loads(own.read_text()), json.loads(other.read_text())
    assert one["dataset"] == two["dataset"] == f"folder {colour_images}"
    assert one["confusion"] == two["confusion"]
    assert json.loads(seeded.read_text())["images"] == 27


def test_resume_takes_what_is_given_even_where_it_is_the_default(
    colour_run: Path, colour_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(colour_run, folder)
    settings = folder / "config.yaml"
    settings.write_text(settings.read_text().replace("save_every: 1", "save_every: 5"))
    moved = tmp_path / "moved"
    moved.symlink_to(colour_images)
    file = tmp_path / "more.yaml"
    file.write_text("device: auto\ndata: {verify: true}\nlr: null\n")
    words = ["--resume", str(folder), "--save_every", "1", "--config", str(file), "--data.data_dir", str(moved)]
    assert run(capsys, "train", *words)[0] == 0
    now = yaml.safe_load(settings.read_text())
    assert (now["save_every"], now["device"], now["data"]["data_dir"], now["epochs"]) == (1, "auto", str(moved), 6)
    file.write_text("batch_size: 9\nweight_decay: 0.5\ndata: {seed: 0}\n")
    status, _, err = run(capsys, "train", *words, "--seed", "0")
    assert (status, "seed" in err) == (2, False)
    assert "weight_decay is 0.05 there, 0.5 now" in err
    settings.write_text(settings.read_text().replace("seed: 0\ndevice", "seed: 7\ndevice"))
    status, _, err = run(capsys, "train", "--resume", str(folder), "--seed", "0")
    assert (status, "seed is 7 there, 0 now" in err) == (2, True)


def every_command() -> Iterator[tuple[str, Command]]:
    for name, command in table.COMMANDS.items():
        if isinstance(command, Command):
            yield name, command
        else:
            yield from ((f"{name} {word}", inner) for word, inner in command.commands.items())


def parser_of(name: str, command: Command) -> CommandParser:
    parser = CommandParser(name, command.summary, command.config_file)
    command.options(parser)
    return parser


def test_options_are_spelt_alike_and_dashes_are_taken_too(capsys: pytest.CaptureFixture[str]) -> None:
    seen = 0
    for name, command in every_command():
        parser = parser_of(name, command)
        options = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
        assert [option for option in options if "-" in option[2:]] == [], name
        assert not {"--size", "--batch"} & options, name
        for option in options - {"--help"}:
            dashed = "--" + option[2:].replace("_", "-")
            assert parser.normalised([dashed, f"{dashed}=a-b_c", "--", dashed]) == [
                option, f"{option}=a-b_c", "--", dashed,
            ]  # fmt: skip
            seen += dashed != option
    assert seen > 30
    train = parser_of("train", table.COMMANDS["train"])  # type: ignore[arg-type]
    assert train.normalised(["--model-options.patch-size", "2", "--size", "3"]) == [
        "--model_options.patch_size", "2", "--size", "3",
    ]  # fmt: skip
    out = run(capsys, "train", "--model-options.patch-size", "2", "--data.train-images=60", "--print-config")[1]
    values = yaml.safe_load(out)
    assert (values["model_options"], values["data"]["train_images"]) == ({"patch_size": 2}, 60)


def test_options_of_several_values_may_be_repeated_or_have_commas() -> None:
    commands = dict(every_command())
    parser = parser_of("bench model", commands["bench model"])
    for words in (["--size", "32", "--size", "64"], ["--image-size", "32,64"], ["--image_size=32,64"]):
        values = parser.parse(parser.normalised(["vmamba_nano", *words, "--batch", "2"]))
        assert (_several(values.image_size), _several(values.batch_size)) == (["32", "64"], ["2"])
    parser = parser_of("export", commands["export"])
    for words in (["--dynamic", "batch,height"], ["--dynamic", "batch", "--dynamic=height"]):
        assert ",".join(parser.parse(["vmamba_nano", "--to", "onnx", *words]).dynamic) == "batch,height"


def command_that(raises: BaseException) -> Command:
    def fail(*_: object) -> int:
        raise raises

    return replace(table.COMMANDS["models"], run=fail)


def test_exit_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "COMMANDS", {"models": command_that(VMambaError("two\n  lines"))})
    assert run(capsys, "models") == (2, "", "vmamba: error: two lines\n")
    monkeypatch.setattr(table, "COMMANDS", {"models": command_that(KeyboardInterrupt())})
    assert run(capsys, "models") == (130, "", "vmamba: interrupted\n")
    # What is no VMambaError is our fault, and its traceback is wanted.
    monkeypatch.setattr(table, "COMMANDS", {"models": command_that(ZeroDivisionError("ours"))})
    with pytest.raises(ZeroDivisionError, match="ours"):
        main(["models"])


@pytest.mark.parametrize("words", [("models",), ("train", "--help")])
def test_a_reader_that_goes_away_is_no_error(words: tuple[str, ...]) -> None:
    code = "import sys; from vmamba.cli.main import main; sys.stdin.readline(); sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.write(b"go\n")
    process.stdin.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() in (0, 1)  # argparse swallows the failed write of its help


def test_commands_keep_freed_memory() -> None:
    """Tensors take the pages of freed ones, where the C library is glibc, even of many at once."""
    code = """
import resource, sys, torch
from vmamba.cli.allocator import keep_freed_memory
told = sys.argv[1:] == ["keep"] and keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [torch.empty(20 << 18).fill_(1) for _ in range(8)]  # 41,000 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
# The second time: by itself the C library learns to keep such memory after some more.
print(told, [faults() for _ in range(2)][1])
"""
    glibc = platform.libc_ver()[0] == "glibc"
    for words in (["keep"], []):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        told, faults = done.stdout.split()
        assert told == str(bool(words) and glibc)
        assert not glibc or (int(faults) < 30_000) == bool(words)
