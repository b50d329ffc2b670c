"""The Hugging Face hub's methods, offline: local folders, and a stand-in for the hub's own programming interface."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vmamba
from vmamba import VSSM, CheckpointError, OutputError, read_weights

OPTIONS = {
    "dims": 8,
    "depths": [1, 1],
    "num_classes": 4,
    "forward_type": "v052d_noz",
    "ssm_act_layer": "gelu",
    "ssm_d_state": 2,
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))


@pytest.fixture
def model() -> VSSM:
    torch.manual_seed(0)
    return VSSM(**OPTIONS)


def assert_same(a: torch.nn.Module, b: torch.nn.Module, skip: str = "nothing") -> None:
    given, want = a.state_dict(), b.state_dict()
    assert given.keys() == want.keys()
    for name in given:
        assert name.startswith(skip) or torch.equal(given[name], want[name]), name


def test_a_folder_and_back(model: VSSM, tmp_path: Path) -> None:
    before = dict(model.__dict__)
    assert model.save_pretrained(tmp_path / "m") is None
    assert model.__dict__ == before
    assert {file.name for file in (tmp_path / "m").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert json.loads((tmp_path / "m/config.json").read_text()) == model.config.to_dict()
    card = (tmp_path / "m/README.md").read_text()
    assert "library_name: vmamba" in card
    assert "pipeline_tag: image-classification" in card
    back = VSSM.from_pretrained(tmp_path / "m")
    assert type(back) is VSSM
    assert not back.training
    assert back.config == model.config
    assert_same(back, model)
    back.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "m/model.safetensors").read_bytes()
    assert vmamba.load(tmp_path / "m/model.safetensors").config == model.config


def test_saving_again_replaces_weights_and_configuration(model: VSSM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    model.reset_classifier(7)
    model.save_pretrained(tmp_path)
    back = VSSM.from_pretrained(str(tmp_path))
    assert back.config.num_classes == 7
    assert_same(back, model)


def test_fields_can_be_changed_on_the_way(model: VSSM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    other = VSSM.from_pretrained(tmp_path, num_classes=9, drop_path_rate=0.3)
    assert other.config == model.config.replace(num_classes=9, drop_path_rate=0.3)
    assert_same(other.layers, model.layers)
    with pytest.raises(CheckpointError, match="does not fit"):
        VSSM.from_pretrained(tmp_path, mlp_ratio=2.0)
    with pytest.raises(vmamba.ConfigError, match="'num_class' is not an option of a VSSM; did you mean 'num_classes'"):
        VSSM.from_pretrained(tmp_path, num_class=9)


def test_a_subclass_gets_its_own_kind(model: VSSM, tmp_path: Path) -> None:
    class Mine(VSSM):
        pass

    model.save_pretrained(tmp_path)
    back = Mine.from_pretrained(tmp_path)
    assert type(back) is Mine
    back.save_pretrained(tmp_path / "mine")
    assert_same(Mine.from_pretrained(tmp_path / "mine"), model)


def test_without_a_configuration_the_weights_say_it(model: VSSM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    assert VSSM.from_pretrained(tmp_path).config == model.config
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same(VSSM.from_pretrained(tmp_path), model)


def test_folders_that_cannot_be_used(model: VSSM, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds none of model.safetensors"):
        VSSM.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"is a file; vmamba.load reads it"):
        VSSM.from_pretrained(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot load nobody/nothing, which is neither"):
        VSSM.from_pretrained("nobody/nothing")
    with pytest.raises(CheckpointError, match=r"cannot load a/b/c"):
        VSSM.from_pretrained("a/b/c")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot load"):
        VSSM.from_pretrained(tmp_path)
    with pytest.raises(OutputError, match="cannot save to"):
        model.save_pretrained(tmp_path / "config.json")


def test_code_in_a_repositorys_weights_is_refused(model: VSSM, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    torch.save(model, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="carries code"):
        VSSM.from_pretrained(tmp_path)


class StandIn:
    """Takes what a push uploads."""

    uploads: list[dict[str, object]]

    def __init__(self, token: str | None = None) -> None:
        assert token == "secret"

    def create_repo(self, repo_id: str, **_: object) -> object:
        if repo_id == "someone/else":
            raise PermissionError(13, "403 Forbidden")
        return type("Repo", (), {"repo_id": repo_id})

    def upload_folder(self, folder_path: Path, **options: object) -> str:
        files = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}
        self.uploads.append({**options, "files": files})
        return f"address of {options['repo_id']}"


def test_push(model: VSSM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StandIn.uploads = []
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", StandIn)
    assert model.push_to_hub("me/mine", token="secret", commit_message="first") == "address of me/mine"
    (upload,) = StandIn.uploads
    assert upload["commit_message"] == "first"
    files = upload["files"]
    assert files.keys() == {"README.md", "config.json", "model.safetensors"}
    (tmp_path / "m.safetensors").write_bytes(files["model.safetensors"])
    assert read_weights(tmp_path / "m.safetensors").state_dict.keys() == model.state_dict().keys()

    assert model.save_pretrained(tmp_path / "m", push_to_hub=True, token="secret") == "address of m"
    with pytest.raises(OutputError, match="cannot push to someone/else"):
        model.push_to_hub("someone/else", token="secret")
    with pytest.raises(OutputError, match="cannot push to a/b/c"):
        model.push_to_hub("a/b/c", token="secret")


def test_a_light_import() -> None:
    code = (
        "import sys, vmamba; vmamba.VSSM.from_pretrained\n"
        "print([n for n in ('huggingface_hub', 'timm', 'rich', 'safetensors') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
