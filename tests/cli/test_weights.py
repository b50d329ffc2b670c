"""`vmamba weights`: list, get, convert, inspect."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import vmamba
from vmamba import VSSM, read_weights, save_weights
from vmamba.cli.main import main
from vmamba.weights import OFFICIAL
from vmamba.zoo.weight_files import convert_weights

PUBLISHED = json.loads((Path(__file__).parents[1] / "parity/models.json").read_text())["models"]
BASE = {"dims": 8, "depths": [1, 1], "num_classes": 4, "forward_type": "v2_noz", "ssm_d_state": 2}

BITS = {
    "nan": torch.tensor([0x7FC00001, -0x3FEDCB, 0x7F800001, -0x80000000, 1], dtype=torch.int32).view(torch.float32),
    "double": torch.tensor([float("inf"), -0.0, 5e-324], dtype=torch.float64),
    "half": torch.arange(6, dtype=torch.int16).view(torch.float16).view(2, 3),
    "brain": torch.tensor([-1, 0x7F81, 3], dtype=torch.int16).view(torch.bfloat16),
    "count": torch.tensor(2**40),
    "flags": torch.tensor([True, False]),
    "none": torch.empty(0, 3),
    "strided": torch.arange(12.0).view(3, 4).t(),
    "shared": torch.arange(12.0).view(3, 4)[1],
    "channels_last": torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path / "torch/hub/checkpoints"


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = main([str(word) for word in ("weights", *words)])
    out, err = capsys.readouterr()
    return code, out, err


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist()) if tensor.numel() else b""


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].shape == b[name].shape
        assert bits(a[name]) == bits(b[name])


def test_the_table_is_upstreams(capsys: pytest.CaptureFixture[str]) -> None:
    released = {name: model for name, model in PUBLISHED.items() if model["checkpoint_url"]}
    assert {name: (w.url, w.key) for name, w in OFFICIAL.items() if w.task == "classification"} == {
        name: (model["checkpoint_url"], model["checkpoint_key"]) for name, model in released.items()
    }
    assert OFFICIAL.keys() <= set(vmamba.list_models())
    code, out, _ = run(capsys, "list")
    assert code == 0
    for name, weights in OFFICIAL.items():
        assert name in out
        assert weights.file_name in out
    assert out.count(" no\n") == len(OFFICIAL)


def test_list_says_what_is_cached(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    cache.mkdir(parents=True)
    weights = OFFICIAL["vmamba_tiny_s1l8"]
    (cache / weights.file_name).write_bytes(bytes(1_500_000))
    assert "1.5 MB" in run(capsys, "list")[1]
    rows = {row["model"]: row for row in json.loads(run(capsys, "list", "--json")[1])}
    assert rows["vmamba_tiny_s1l8"]["bytes"] == 1_500_000
    assert rows["vmamba_tiny_s1l8"]["path"] == str(cache / weights.file_name)
    assert rows["vmamba_base_s1l20"]["bytes"] is None


def test_get_verifies_what_is_there(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    cache.mkdir(parents=True)
    path = cache / OFFICIAL["vmamba_tiny_s1l8"].file_name
    torch.save({"model": {}}, path)
    assert run(capsys, "get", "vmamba_tiny_s1l8") == (0, f"{path}\n", "")
    path.write_bytes(path.read_bytes() + b"more")
    code, out, err = run(capsys, "get", "vmamba_tiny_s1l8")
    assert (code, out) == (2, "")
    assert "recorded at its first use" in err
    # An unknown name is noticed before anything is fetched.
    code, out, err = run(capsys, "get", "vmamba_tiny_s1l8", "vmamba_tiny")
    assert (code, out) == (2, "")
    assert "'vmamba_tiny' is unknown; did you mean" in err


def test_conversion_keeps_every_bit_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": BITS, "epoch": 3, "max_accuracy": 82.5, "optimizer": {"state": {}}}, tmp_path / "a.pth")
    assert run(capsys, "convert", tmp_path / "a.pth", tmp_path / "b.safetensors")[:2] == (
        0,
        f"wrote {tmp_path / 'b.safetensors'} ({len(BITS)} tensors)\n",
    )
    assert run(capsys, "convert", tmp_path / "b.safetensors", tmp_path / "c.pth")[0] == 0
    assert run(capsys, "convert", tmp_path / "c.pth", tmp_path / "d.safetensors")[0] == 0
    for name in ("b.safetensors", "c.pth", "d.safetensors"):
        file = read_weights(tmp_path / name)
        assert_same(file.state_dict, BITS)
        assert file.metadata == {"epoch": "3", "max_accuracy": "82.5"}
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "d.safetensors").read_bytes()
    # As upstream's loader takes it: the weights under "model", and without any code.
    assert_same(torch.load(tmp_path / "c.pth", weights_only=True)["model"], BITS)


def test_conversion_takes_the_entry_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "model_ema": {"a": torch.ones(1)}}, tmp_path / "a.pth")
    assert run(capsys, "convert", tmp_path / "a.pth", tmp_path / "b.safetensors", "--key", "model_ema")[0] == 0
    assert torch.equal(read_weights(tmp_path / "b.safetensors").state_dict["a"], torch.ones(1))
    code, _, err = run(capsys, "convert", tmp_path / "b.safetensors", tmp_path / "c.pth", "--key", "model")
    assert code == 2
    assert "has no entries to choose from" in err
    assert not (tmp_path / "c.pth").exists()


@pytest.mark.parametrize(
    ("source", "destination", "words"),
    [
        ("a.pth", "b.onnx", "ends in .safetensors, .pth"),
        ("a.pth", "b", "ends in .safetensors"),
        ("a.pth", "a.pth", "is the source itself"),
        ("a.pth", "folder.pth", "is a folder"),
        ("absent.pth", "b.safetensors", "does not exist"),
        ("sparse.pth", "b.safetensors", "sparse"),
    ],
)
def test_conversions_that_cannot_be(
    source: str, destination: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "sparse.pth")
    (tmp_path / "folder.pth").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    code, out, err = run(capsys, "convert", tmp_path / source, tmp_path / destination)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("name", ["b.pth", "b.safetensors"])
def test_a_conversion_that_fails_keeps_the_old_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_weights(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    (tmp_path / name).write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(vmamba.OutputError, match="No space left"):
        convert_weights(tmp_path / "a.safetensors", tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", name}


def test_inspect_a_training_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = vmamba.create_model("vmamba_nano", num_classes=3)
    content = {
        "model": {f"module.{name}": value for name, value in model.state_dict().items()},
        "model_ema": {"a": torch.ones(1, dtype=torch.float16)},
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 7,
        "[bold]": "brackets",
    }
    torch.save(content, tmp_path / "run.pth")
    code, out, _ = run(capsys, "inspect", tmp_path / "run.pth", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["model"] == "vmamba_nano"
    assert found["config"] == json.loads(json.dumps(model.config.to_dict()))
    assert found["values"] == sum(value.numel() for value in model.state_dict().values())
    assert found["tensors"] == len(model.state_dict())
    assert found["dtypes"] == {"float32": len(model.state_dict())}
    assert found["entries"]["model"] == f"weights, {len(model.state_dict())} tensors"
    assert found["entries"]["optimizer"] == "2 entries: state, param_groups"
    assert found["entries"]["epoch"] == "7"
    assert found["metadata"] == {"epoch": "7"}
    assert found["fits"] is True
    assert found["problem"] is None
    code, out, _ = run(capsys, "inspect", tmp_path / "run.pth")
    for words in ("vmamba_nano", "yes, strictly", "entry optimizer", "entry [bold]", "forward_type='v05_noz'"):
        assert words in out

    found = json.loads(run(capsys, "inspect", tmp_path / "run.pth", "--key", "model_ema", "--json")[1])
    assert (found["tensors"], found["values"], found["dtypes"]) == (1, 1, {"float16": 1})
    assert (found["fits"], found["model"], found["config"]) == (False, None, None)
    assert "it has a" in found["problem"]
    assert run(capsys, "inspect", tmp_path / "run.pth", "--key", "ema")[0] == 2


def test_inspect_lists_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = VSSM(**BASE).state_dict()
    del state["classifier.norm.bias"]
    state["layers.1.blocks.0.op.Ds"] = torch.ones(3)
    state |= {f"extra{i}": torch.ones(1) for i in range(12)}
    save_weights(tmp_path / "odd.safetensors", state)
    found = json.loads(run(capsys, "inspect", tmp_path / "odd.safetensors", "--json")[1])
    assert found["fits"] is False
    assert found["entries"] == {}
    assert found["missing"] == ["classifier.norm.bias"]
    assert sorted(found["unexpected"]) == sorted(f"extra{i}" for i in range(12))
    assert found["mis_shaped"] == ["layers.1.blocks.0.op.Ds (given (3,), want (128,))"]
    out = run(capsys, "inspect", tmp_path / "odd.safetensors")[1]
    assert "12 unexpected" in out
    assert "and 4 more" in out


def test_inspect_believes_a_files_own_description(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = VSSM(**{**BASE, "forward_type": "v052d_noz"})
    metadata = {"config": json.dumps(model.config.to_dict()), "model": "mine"}
    save_weights(tmp_path / "own.safetensors", model.state_dict(), metadata)
    found = json.loads(run(capsys, "inspect", tmp_path / "own.safetensors", "--json")[1])
    assert (found["model"], found["assumed"], found["fits"]) == ("mine", [], True)
    assert found["config"]["forward_type"] == "v052d_noz"
    # The description travels with a conversion.
    convert_weights(tmp_path / "own.safetensors", tmp_path / "own.pth")
    assert vmamba.load(tmp_path / "own.pth").config == model.config


def test_the_groups_own_help_and_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ((), ("--help",)):
        code, out, _ = run(capsys, *words)
        assert code == 0
        for name in ("list", "get", "convert", "inspect"):
            assert f"  {name} " in out
    for name in ("list", "get", "convert", "inspect"):
        code, out, _ = run(capsys, name, "--help")
        assert code == 0
        assert out.startswith(f"usage: vmamba weights {name}")
    code, _, err = run(capsys, "lst")
    assert code == 2
    assert "'lst' is not a command of `vmamba weights`; it has list, get, convert, inspect; did you mean 'list'" in err
    assert "`vmamba weights get` needs NAME" in run(capsys, "get")[2]
