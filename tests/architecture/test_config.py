"""The typed configuration: canonical form, round trips, and errors that name the field and the legal values."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vmamba import VSSM, BackendError, ConfigError, VSSMConfig, create_model, list_models, load, save_weights
from vmamba.architecture.config import RUNTIME


def test_values_take_their_canonical_form():
    config = VSSMConfig(dims=16, depths=[1, 1, 2], norm_layer="LN2D", ssm_act_layer="SiLU", ssm_dt_rank="3")
    assert config.dims == (16, 32, 64)
    assert config.depths == (1, 1, 2)
    assert (config.norm_layer, config.ssm_act_layer, config.ssm_dt_rank) == ("ln2d", "silu", 3)


@pytest.mark.parametrize("name", list_models(task="classification"))
def test_round_trip_through_json(name):
    config = create_model("vmamba_nano").config if name == "vmamba_nano" else VSSMConfig()
    assert VSSMConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": [1]}, ["'depth'", "depths"]),
        ({"depths": []}, ["depths", "at least one stage"]),
        ({"depths": [1, 1], "dims": [8]}, ["dims", "depths"]),
        ({"norm_layer": "gn"}, ["'gn'", "ln, ln2d, bn"]),
        ({"ssm_act_layer": "selu"}, ["'selu'", "silu, gelu, relu, sigmoid"]),
        ({"ssm_init": "v9"}, ["'v9'", "v0, v1, v2"]),
        ({"downsample_version": "none"}, ["'none'", "v1, v2, v3"]),
        ({"patchembed_version": "v3"}, ["'v3'", "v1, v2"]),
        ({"patch_size": 3, "patchembed_version": "v2"}, ["patch_size 3", "even"]),
        ({"ssm_dt_rank": "low"}, ["'low'", "auto"]),
        ({"drop_path_rate": 1.5}, ["drop_path_rate 1.5", "between 0 and 1"]),
        ({"mlp_ratio": -1.0}, ["mlp_ratio", "negative"]),
        ({"in_chans": 0}, ["in_chans 0"]),
        ({"ssm_conv": 4}, ["ssm_conv 4", "odd"]),
        ({"ssm_ratio": 0.01, "dims": 8, "depths": [1]}, ["d_inner"]),
    ],
)
def test_illegal_values_are_named_with_the_legal_ones(options, words):
    with pytest.raises(ConfigError) as caught:
        VSSM(**options)
    for word in words:
        assert word in str(caught.value)


def test_spelling_of_the_backend_is_checked_when_the_model_is_built():
    with pytest.raises(BackendError, match="core"):
        VSSM(dims=8, depths=[1], selective_scan_backend="core")
    with pytest.raises(BackendError, match="oflx"):
        VSSMConfig(selective_scan_backend="oflx")
    assert VSSMConfig(selective_scan_backend="mamba").selective_scan_backend == "mamba"


def test_a_config_and_keywords():
    config = VSSMConfig(dims=8, depths=(1,), num_classes=3)
    model = VSSM(config, num_classes=5)
    assert model.config == config.replace(num_classes=5)
    assert VSSM(config).config == config
    with pytest.raises(ConfigError, match="dict"):
        VSSM({"dims": 8})


@pytest.mark.parametrize("backend", ["mamba", "core"])
def test_how_a_network_ran_is_not_stored_and_not_read(backend: str, tmp_path: Path) -> None:
    options = {"dims": [8, 16], "depths": [1, 1], "num_classes": 3}
    model = create_model("vmamba_nano", use_checkpoint=True, selective_scan_backend="torch", **options).eval()
    x = torch.randn(1, 3, 16, 16)
    assert not set(RUNTIME) & set(model.config.to_dict())
    model.save_pretrained(tmp_path)
    assert not set(RUNTIME) & set(json.loads((tmp_path / "config.json").read_text()))

    # As the first version wrote them.
    old = {**model.config.to_dict(), "selective_scan_backend": backend, "use_checkpoint": True}
    (tmp_path / "config.json").write_text(json.dumps(old))
    save_weights(tmp_path / "model.safetensors", model.state_dict(), {"config": json.dumps(old)})
    for loaded in (VSSM.from_pretrained(tmp_path), load(tmp_path / "model.safetensors")):
        assert (loaded.config.selective_scan_backend, loaded.config.use_checkpoint) == (None, False)
        assert torch.allclose(loaded(x), model(x), atol=1e-5)
    asked = VSSM.from_pretrained(tmp_path, selective_scan_backend="torch", use_checkpoint=True)
    assert (asked.config.selective_scan_backend, asked.config.use_checkpoint) == ("torch", True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depths": 5}, "depths 5 is no list"),
        ({"depths": "22"}, "depths '22' is no list"),
        ({"depths": [1, 2.5]}, "depths 2.5 is not a whole number"),
        ({"dims": None}, "dims None is not a whole number"),
        ({"dims": [8, "16"]}, "dims '16' is not a whole number"),
        ({"patch_size": "4"}, "patch_size '4' is not a whole number"),
        ({"num_classes": True}, "num_classes True is not a whole number"),
        ({"ssm_d_state": "large"}, "'large' is not a whole number or 'auto'"),
        ({"drop_path_rate": "x"}, "drop_path_rate 'x' is not a number"),
        ({"mlp_ratio": None}, "mlp_ratio None is not a number"),
        ({"ssm_ratio": float("nan")}, "ssm_ratio nan is not a number"),
        ({"gmlp": "yes"}, "gmlp 'yes' is neither true nor false"),
        ({"use_checkpoint": "no"}, "use_checkpoint 'no' is neither true nor false"),
        ({"norm_layer": None}, "norm_layer None is not a word"),
        ({"forward_type": 3}, "forward_type 3 is not a word"),
    ],
)
def test_wrong_types_are_mistakes_of_ours_not_pythons(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        VSSMConfig(**options)


def test_numbers_of_other_libraries_become_plain_ones() -> None:
    config = VSSMConfig(dims=np.int64(8), depths=np.array([1, 1]), patch_size=4.0, gmlp=np.bool_(True), ssm_ratio=2)
    assert config == VSSMConfig(dims=(8, 16), depths=(1, 1), gmlp=True)
    assert [type(value) for value in (*config.dims, config.patch_size, config.gmlp, config.ssm_ratio)] == [
        int, int, int, bool, float,
    ]  # fmt: skip
    json.dumps(config.to_dict())
