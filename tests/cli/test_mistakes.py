"""A user's mistakes: each gives one clear line and exit code 2, no traceback, and nothing half-written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import vmamba
from vmamba.cli.main import main
from vmamba.errors import BackendError, CheckpointError, ConfigError, InputError, VMambaError
from vmamba.tasks.trained import load_trained, save_trained, weight_metadata


def scan_inputs() -> dict[str, Tensor]:
    """One legal call: b 2, k·d 6, k 2, n 3, l 5."""
    return {
        "u": torch.ones(2, 6, 5),
        "delta": torch.ones(2, 6, 5),
        "A": -torch.ones(6, 3),
        "B": torch.ones(2, 2, 3, 5),
        "C": torch.ones(2, 2, 3, 5),
        "D": torch.ones(6),
        "delta_bias": torch.ones(6),
    }


def scan(backend: str | None = None, **changed: Tensor) -> Tensor:
    return vmamba.selective_scan(**{**scan_inputs(), **changed}, backend=backend)


def extra_key(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "layers.0.surplus": torch.zeros(1)}


def missing_key(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name != "classifier.head.bias"}


def load(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    model = vmamba.create_model("vmamba_nano")
    vmamba.load_weights(model, change(model.state_dict()))


PYTHON: dict[str, tuple[Callable[[], object], type[VMambaError], str]] = {
    "delta of another shape": (
        lambda: scan(delta=torch.ones(2, 6, 4)), InputError, r"delta has shape \(2, 6, 4\).*\(2, 6, 5\)",
    ),
    "A of another shape": (lambda: scan(A=-torch.ones(5, 3)), InputError, r"A has shape \(5, 3\).*\(6, n\).*u \(2, 6,"),
    "B of another length": (
        lambda: scan(B=torch.ones(2, 2, 3, 9)), InputError, r"B has shape \(2, 2, 3, 9\).*\(2, k, 3, 5\)",
    ),
    "directions that do not divide": (
        lambda: scan(B=torch.ones(2, 4, 3, 5)), InputError, r"B has shape \(2, 4, 3, 5\).*divides the 6 channels",
    ),
    "C unlike B": (lambda: scan(C=torch.ones(2, 1, 3, 5)), InputError, r"C has shape \(2, 1, 3, 5\).*\(2, 2, 3, 5\)"),
    "D of another shape": (lambda: scan(D=torch.ones(7)), InputError, r"D has shape \(7,\).*\(6,\)"),
    "an empty sequence": (lambda: scan(u=torch.ones(2, 6, 0)), InputError, r"u has shape \(2, 6, 0\).*l ≥ 1"),
    "mixed devices": (
        lambda: scan(A=torch.ones(6, 3, device="meta")), InputError, r"A is on meta but u is on cpu.*\.to\(\)",
    ),
    "integer tensors": (lambda: scan(u=torch.ones(2, 6, 5).long()), InputError, r"u is torch\.int64.*float32.*convert"),
    "core in a call": (
        lambda: scan(backend="core"), BackendError, r'removed.*\[None, "oflex", "mamba", "torch"\].*"oflex".*"mamba"',
    ),
    "core in a model": (
        lambda: vmamba.create_model("vmamba_nano", selective_scan_backend="core"), BackendError, r'"core" was removed',
    ),
    "core for a block": (lambda: vmamba.backend("core").__enter__(), BackendError, r'"core" was removed'),
    "an unknown backend": (lambda: scan(backend="oflx"), BackendError, r"'oflx'.*did you mean 'oflex'"),
    "an unavailable backend": (
        lambda: scan(backend="mamba"), BackendError, r'"mamba" cannot run selective_scan on cpu.*\[None,.*torch',
    ),
    "an unknown model": (
        lambda: vmamba.create_model("vmamba_tiny"), ConfigError, r"'vmamba_tiny' is unknown.*did you mean 'vmamba_tiny",
    ),
    "an unknown option of a model": (
        lambda: vmamba.create_model("vmamba_nano", d_state=1), ConfigError, r"'d_state'.*did you mean 'ssm_d_state'",
    ),
    "an image of two dimensions": (
        lambda: vmamba.create_model("vmamba_nano")(torch.zeros(8, 8)), InputError, r"\(8, 8\)",
    ),
    "an image with other channels": (
        lambda: vmamba.create_model("vmamba_nano")(torch.zeros(1, 1, 8, 8)), InputError, r"\(b, 3, .*\(1, 1, 8, 8\)",
    ),
    "an image smaller than a patch": (
        lambda: vmamba.create_model("vmamba_nano")(torch.zeros(1, 3, 2, 9)), InputError, r"2×9.*smaller than a patch",
    ),
    "a missing key": (lambda: load(missing_key), CheckpointError, r"1 missing: classifier\.head\.bias"),
    "an extra key": (lambda: load(extra_key), CheckpointError, r"1 unexpected: layers\.0\.surplus"),
}  # fmt: skip


@pytest.mark.parametrize("name", PYTHON)
def test_a_mistake_in_python_is_one_clear_line(name: str) -> None:
    mistake, kind, words = PYTHON[name]
    with pytest.raises(kind, match=words) as caught:
        mistake()
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)
    assert scan().shape == (2, 6, 5)  # the tensors that the mistakes start from are right


class _Code:
    """What a malicious checkpoint holds: unpickling it would make a file."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pwned",)


@pytest.fixture
def place(tmp_path: Path, colour_run: Path, colour_images: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with everything that the command lines below name."""
    monkeypatch.chdir(tmp_path)
    Path("run").symlink_to(colour_run)
    Path("images").symlink_to(colour_images)
    good = colour_images / "red/00.png"
    weights = (colour_run / "best.safetensors").read_bytes()

    Path("file").write_text("not an image\n")
    Path("nothing").mkdir()
    for name in ("red", "green", "blue"):
        for tree in ("empty-class", "unreadable"):
            Path(tree, name).mkdir(parents=True)
            for i in range(6):
                Path(tree, name, f"{i}.png").write_bytes(good.read_bytes())
    for path in Path("empty-class/green").iterdir():
        path.unlink()
    Path("unreadable/red/3.png").write_bytes(good.read_bytes()[:70])

    Path("corrupt.safetensors").write_bytes(weights[:8] + b"\xff" * (len(weights) - 8))
    Path("truncated.safetensors").write_bytes(weights[: len(weights) // 2])
    Path("text.safetensors").write_text("hello")
    torch.save({"model": load_trained(colour_run).model.state_dict()}, "bare.pth")
    Path("truncated.pth").write_bytes(Path("bare.pth").read_bytes()[:2000])
    torch.save({"model": {"weight": torch.zeros(1)}, "extra": _Code()}, "code.pth")
    trained = load_trained(colour_run)
    meta = weight_metadata(trained.name, trained.model, trained.task)
    for change in (missing_key, extra_key):
        save_trained(Path(f"{change.__name__}.safetensors"), change(trained.model.state_dict()), meta)

    Path("syntax.yaml").write_text("epochs: [1\n")
    Path("unknown.yaml").write_text("epochs: 1\ndata: {datset: digits}\n")
    Path("word.yaml").write_text("epochs\n")
    Path("bytes.yaml").write_bytes(b"\xff\xfe\x00")
    return tmp_path


TRAIN = "train --epochs 1 --device cpu"
FOLDER = f"{TRAIN} --num_workers 0 --data.dataset folder --data.image_size 16"
#: A command line, and what its error must say.
COMMANDS: dict[str, tuple[str, str]] = {
    # words
    "unknown command": ("trian", r"'trian' is not a command.*did you mean 'train'"),
    "unknown option before a command": ("--verbose", r"'--verbose' is not an option of vmamba"),
    "unknown option": ("train --epoch 3", r"--epoch is not an option.*did you mean '--epochs'"),
    "unknown nested option": ("train --data.datset x", r"--data\.datset is not.*did you mean '--data\.dataset'"),
    "option without a value": ("train --lr", r"--lr: expected one argument"),
    "value of another type": ("train --epochs many", r"--epochs takes int, not 'many'"),
    "value out of range": ("train --epochs 0", r"epochs=0: want a whole number, 1 or more"),
    "value that is no choice": (f"{FOLDER} --data.unreadable ignore", r"takes 'stop' or 'skip', not 'ignore'"),
    "word too many": ("train digits", r"does not take 'digits' here"),
    "missing argument": ("predict file", r"needs --weights"),
    "missing arguments": ("predict", r"needs IMAGE_OR_FOLDER, --weights"),
    "missing configuration file": ("train --config gone.yaml", r"--config: File does not exist.*gone\.yaml"),
    "broken YAML": ("train --config syntax.yaml", r"syntax\.yaml is not YAML.*line 1"),
    "unknown key in YAML": ("train --config unknown.yaml", r"unknown\.yaml: 'data\.datset'.*mean 'data\.dataset'"),
    "YAML without options": ("train --config word.yaml", r"word\.yaml holds no options"),
    "YAML that is no text": ("train --config=bytes.yaml", r"bytes\.yaml is not text"),
    "group file that is none": ("train --data gone.yaml", r"--data: 'gone\.yaml' is no YAML file"),
    # models and backends
    "unknown model": (f"{TRAIN} --model vmamba_nanno", r"'vmamba_nanno' is unknown; did you mean 'vmamba_nano'"),
    "unknown model in the table": ("models vmmba_nano", r"matches 'vmmba_nano'; did you mean 'vmamba_nano'"),
    "unknown option of the model": (f"{TRAIN} --model_options.d_state 1", r"'d_state'.*did you mean 'ssm_d_state'"),
    "core": (f"{TRAIN} --selective_scan_backend core", r'"core" was removed.*"oflex".*"mamba".*vmamba migrate'),
    "unknown backend": (f"{TRAIN} --selective_scan_backend oflx", r"'oflx' is not a scan.*did you mean 'oflex'"),
    "unavailable backend": (f"{TRAIN} --selective_scan_backend mamba", r'"mamba" cannot run ss2d_scan on cpu.*torch'),
    "image smaller than a patch": (f"{TRAIN} --data.image_size 2", r"image_size=2.*2×2 pixels.*smaller than a patch"),
    "unavailable device": (f"{TRAIN} --device xpu", r"device='xpu'"),
    "unknown device": ("eval run --device gpu0", r"device='gpu0' is not a device; this machine has .*cpu"),
    # weights
    "no weights": ("eval gone", r"gone does not exist"),
    "folder that is no run": ("eval nothing", r"nothing holds neither best\.safetensors nor last\.safetensors"),
    "corrupt weights": ("eval corrupt.safetensors", r"corrupt\.safetensors is not a readable safetensors file"),
    "truncated weights": ("eval truncated.safetensors", r"truncated\.safetensors is not a readable safetensors file"),
    "text for weights": ("predict images --weights text.safetensors", r"text\.safetensors is not a readable"),
    "truncated checkpoint": ("predict images --weights truncated.pth", r"truncated\.pth.*cut short"),
    "checkpoint with code": ("predict images --weights code.pth", r"code\.pth carries code.*mkdir.*refused"),
    "weights without description": ("predict images --weights bare.pth", r"bare\.pth does not say which model"),
    "missing key": ("predict images --weights missing_key.safetensors", r"1 missing: classifier\.head\.bias"),
    "extra key": ("predict images --weights extra_key.safetensors", r"1 unexpected: layers\.0\.surplus"),
    # images
    "unknown data set": ("train --data.dataset digitz", r"'digitz' is unknown.*did you mean 'digits'"),
    "no data folder": (f"{FOLDER} --data.data_dir gone", r"data_dir gone does not exist"),
    "no class folders": (f"{FOLDER} --data.data_dir nothing", r"no class folders in nothing"),
    "empty class folder": (f"{FOLDER} --data.data_dir empty-class", r"without an image in empty-class: \['green'\]"),
    "unreadable image": (f"{FOLDER} --data.data_dir unreadable", r"1 unreadable image.*unreadable/red/3\.png.*skip"),
    "unreadable image to predict": ("predict unreadable --weights run", r"cannot read.*unreadable/red/3\.png.*skip"),
    "no image": ("predict file --weights run", r"cannot read image file: not an image"),
    "image that is not there": ("predict gone.png --weights run", r"no image or folder gone\.png"),
    "folder without images": ("predict nothing --weights run", r"no images in nothing"),
    "other classes": ("eval run --data.dataset digits", r"10 classes \(0, 1.*3 classes \(blue, green, red\)"),
    # places
    "output is a file": (f"{TRAIN} --output file", r"output file is a file"),
    "output inside a file": (f"{TRAIN} --output file/run", r"cannot create output folder file/run.*is a file"),
    "output that is not empty": (f"{TRAIN} --output images", r"images is not empty"),
    "output of predict": ("predict images --weights run --output file/x", r"file/x.*is a file"),
    "JSON of predict": ("predict images --weights run --json nothing", r"nothing is a folder"),
    "JSON of eval": ("eval run --json file/eval.json", r"cannot write file/eval\.json: file is a file"),
    "picture of eval": ("eval run --confusion nothing", r"nothing is a folder"),
    "JSON of backends": ("backends --json file/x.json", r"file/x\.json"),
    "output of demo": ("demo --output images", r"images is not empty"),
    "run to go on with": ("train --resume nothing", r"nothing"),
    # migrate
    "nothing to migrate": ("migrate gone.yaml", r"gone\.yaml does not exist"),
    "migrate to core": ("migrate syntax.yaml --to core", r"core"),
}  # fmt: skip


def snapshot(place: Path) -> dict[str, bytes | None]:
    """Every path below ``place`` with its content; what links lead to is followed."""
    found: dict[str, bytes | None] = {}
    for folder, folders, files in os.walk(place, followlinks=True):
        found.update({os.path.join(folder, name): None for name in folders})
        found.update({os.path.join(folder, name): Path(folder, name).read_bytes() for name in files})
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistake_on_the_command_line(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, expected = COMMANDS[name]
    before = snapshot(place)
    status = main(words.split())
    out, err = capsys.readouterr()
    assert status == 2
    assert err.startswith("vmamba: error: ")
    assert len(err.splitlines()) == 1, err
    assert re.search(expected, err), err
    assert "Traceback" not in err + out
    assert snapshot(place) == before


def test_an_unavailable_backend_asked_for_by_the_environment(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, expected in (
        ("mamba", r'"mamba" cannot run'),
        ("core", r'"core" was removed'),
        ("x", "'x' is not a scan"),
    ):
        monkeypatch.setenv("VMAMBA_SELECTIVE_SCAN_BACKEND", value)
        assert main(["predict", "images", "--weights", "run"]) == 2
        assert re.search(expected, capsys.readouterr().err)
        assert not Path("predictions").exists()


def test_a_folder_without_permission(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root, too, runs this test
    for words in (f"{TRAIN} --output nothing/run", "predict images --weights run", "eval run --json nothing/eval.json"):
        assert main(words.split()) == 2
        assert "no permission in" in capsys.readouterr().err


def test_a_folder_that_refuses_new_files(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody may create a folder in /proc, not even root."""
    if not Path("/proc/self").exists():
        pytest.fail("this machine has no /proc: find another folder that nobody may write to")
    for words in (f"{TRAIN} --output /proc/run", "predict images --weights run --output /proc/x"):
        assert main(words.split()) == 2
        err = capsys.readouterr().err
        assert re.fullmatch(r"vmamba: error: cannot (create|write) output folder /proc/.*\n", err)


def test_an_unreadable_image_can_be_skipped(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*FOLDER.split(), "--data.data_dir", "unreadable", "--data.unreadable", "skip", "--output", "out"]
    assert main([*words, "--model_options", "{dims: [8], depths: [1]}"]) == 0
    assert Path("out/best.safetensors").is_file()
    assert "unreadable/red/3.png" in capsys.readouterr().out
