"""Fine-tuning: other weights as a start, frozen stages, layer-wise learning rates, the head first."""

from dataclasses import replace

import pytest
import torch

from vmamba import CheckpointError, ConfigError, create_model, read_weights
from vmamba.data import DataConfig, Preprocessing
from vmamba.data.splits import balanced_sample
from vmamba.models import VSSM
from vmamba.tasks.classification.task import Classification
from vmamba.tasks.trained import load_trained
from vmamba.tasks.vssm_models import vssm_parts
from vmamba.train.loop.finetune import freeze_stages, hold_still, load_init, train_head_only
from vmamba.train.loop.optimizer import make_optimizer
from vmamba.train.run import train
from vmamba.train.settings.config import TrainConfig
from vmamba.weights import save_weights

TINY = {"dims": 8, "depths": [1, 1], "num_classes": 4, "forward_type": "v05_noz", "ssm_d_state": 1}


def task_of(classes) -> Classification:
    return Classification(tuple(classes), Preprocessing(16, 3, (0.5,) * 3, (0.25,) * 3))


def _small(num_classes: int) -> VSSM:
    """Fresh, and otherwise as `colour_run` has it."""
    config = {**create_model("vmamba_nano").config.to_dict(), "dims": [8, 16], "depths": [1, 1]}
    return VSSM(**{**config, "num_classes": num_classes})


def test_init_from_a_run_keeps_all_but_the_head(colour_run):
    weights = read_weights(colour_run / "best.safetensors").state_dict
    model = _small(num_classes=7)
    fresh = model.classifier.head.weight.clone()
    load_init(model, str(colour_run), task_of([str(i) for i in range(7)]))
    assert torch.equal(model.classifier.head.weight, fresh)
    assert torch.equal(model.patch_embed[0].weight, weights["patch_embed.0.weight"])
    with pytest.raises(CheckpointError, match=r"'vmamba_tinny'.*did you mean"):
        load_init(model, "vmamba_tinny", task_of([str(i) for i in range(7)]))


def test_the_head_goes_along_for_the_same_classes_only(colour_run, tmp_path):
    file = read_weights(colour_run / "best.safetensors")
    classes = load_trained(colour_run).task.classes
    unnamed = tmp_path / "unnamed.safetensors"
    save_weights(unnamed, file.state_dict)
    head = file.state_dict["classifier.head.weight"]
    others = [f"other {i}" for i in range(len(classes))]  # as many, so that the shapes fit
    cases = [(colour_run, classes, True), (colour_run, classes[::-1], False), (colour_run, others, False)]
    for weights, named, taken in [*cases, (unnamed, others, True)]:
        model = _small(num_classes=len(classes))
        fresh = model.classifier.head.weight.clone()
        load_init(model, str(weights), task_of(named))
        assert torch.equal(model.classifier.head.weight, head if taken else fresh)
        assert torch.equal(model.classifier.norm.weight, file.state_dict["classifier.norm.weight"])


def test_reset_stages_keep_their_fresh_weights(colour_run):
    weights = read_weights(colour_run / "best.safetensors").state_dict
    classes = load_trained(colour_run).task.classes
    model = _small(num_classes=len(classes))  # the head would fit, and is fresh all the same
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    load_init(model, str(colour_run), task_of(classes), reset_stages=1)
    for name, value in model.state_dict().items():
        source = fresh if name.startswith(("layers.1.", "classifier.")) else weights
        assert torch.equal(value, source[name]), name
    assert not torch.equal(fresh["layers.1.blocks.0.op.in_proj.weight"], weights["layers.1.blocks.0.op.in_proj.weight"])
    with pytest.raises(ConfigError, match=r"reset_stages=3.*2 stages"):
        load_init(model, str(colour_run), task_of(classes), reset_stages=3)
    with pytest.raises(ConfigError, match="needs init"):
        TrainConfig(reset_stages=1)


def test_frozen_stages_get_no_gradient_and_stay_in_eval_mode():
    model = VSSM(**TINY, posembed=True, imgsize=16, norm_layer="bn")
    freeze_stages(vssm_parts(model), 1)
    model.train()
    hold_still(vssm_parts(model), 1)
    before = model.patch_embed.get_submodule("2").running_mean.clone()
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained
    assert all(name.startswith(("layers.1.", "classifier.")) for name in trained)
    assert torch.equal(model.patch_embed.get_submodule("2").running_mean, before)
    with pytest.raises(ConfigError, match=r"freeze_stages=3.*2 stages"):
        freeze_stages(vssm_parts(model), 3)


def test_the_head_first_then_the_rest():
    model = VSSM(**TINY)
    train_head_only(vssm_parts(model), True, 1)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        "classifier.head.weight",
        "classifier.head.bias",
    ]
    train_head_only(vssm_parts(model), False, 1)
    learning = {n.split(".")[0] + n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad}
    assert "layers1" in learning
    assert "layers0" not in learning


def test_layer_decay_falls_towards_the_image():
    model = VSSM(**TINY)
    optimizer = make_optimizer(model, TrainConfig(layer_decay=0.5).resolved())
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert scale[id(model.classifier.head.weight)] == 1.0
    first = scale[id(model.patch_embed[0].weight)]
    last_block = scale[id(model.layers[1].blocks[0].op.in_proj.weight)]
    assert first < scale[id(model.layers[0].blocks[0].op.in_proj.weight)] < last_block < 1.0


def test_balanced_sample():
    targets = [0] * 50 + [1] * 50 + [2] * 3
    chosen = balanced_sample(targets, 23, seed=0)
    counts = torch.bincount(torch.tensor([targets[i] for i in chosen])).tolist()
    assert len(set(chosen.tolist())) == 23
    assert counts == [10, 10, 3]
    assert (balanced_sample(targets, 23, seed=0) == chosen).all()


def test_a_run_that_fine_tunes_resumes_without_the_first_weights(colour_run, colour_images, tmp_path):
    config = TrainConfig(
        model_options={"dims": [8, 16], "depths": [1, 1]},
        data=DataConfig("folder", colour_images, image_size=16, train_images=18),
        init=str(colour_run),
        freeze_stages=1,
        layer_decay=0.7,
        head_only_epochs=1,
        epochs=2,
        batch_size=9,
        lr=1e-3,
        num_workers=0,
        device="cpu",
    )
    train(replace(config, output=tmp_path / "whole"))
    train(replace(config, output=tmp_path / "parts", epochs=2))
    start = read_weights(colour_run / "best.safetensors").state_dict
    end = read_weights(tmp_path / "whole" / "last.safetensors").state_dict
    twin = read_weights(tmp_path / "parts" / "last.safetensors").state_dict
    assert torch.equal(end["patch_embed.0.weight"], start["patch_embed.0.weight"])
    assert not torch.equal(end["classifier.head.weight"], start["classifier.head.weight"])
    assert all(torch.equal(end[name], twin[name]) for name in end)
    more = train(TrainConfig(resume=tmp_path / "whole", epochs=3))
    assert more.epochs == 3


@pytest.mark.long
def test_a_start_from_a_run_helps(tmp_path):
    """A tenth of the digits from where all of them led to, against from scratch."""
    common = {
        "model_options": {"dims": [16, 32], "depths": [1, 1]},
        "device": "cpu",
        "num_workers": 0,
        "batch_size": 32,
    }
    train(TrainConfig(**common, epochs=3, output=tmp_path / "all"))
    few = TrainConfig(**common, data=DataConfig("digits", train_images=140), epochs=2)
    scratch = train(replace(few, output=tmp_path / "scratch"))
    tuned = train(replace(few, init=str(tmp_path / "all"), output=tmp_path / "tuned"))
    assert tuned.test.figures["accuracy"] > scratch.test.figures["accuracy"] + 0.2
