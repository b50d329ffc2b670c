"""mmsegmentation's EncoderDecoder on our backbone: keys, stored outputs, a training run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import mmcv_ops  # noqa: F401 — before mmseg
import torch
from common import apart, cases, configuration, digest, fill_weights, under, without_gradient
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample
from parity_fill import fill


def sample(labels: torch.Tensor, original: Any = None) -> SegDataSample:
    shape = tuple(labels.shape)
    meta = {"img_shape": shape, "ori_shape": tuple(original or shape), "pad_shape": shape, "padding_size": [0, 0, 0, 0]}
    return SegDataSample(gt_sem_seg=PixelData(data=labels[None]), metainfo=meta)


def small(case: dict[str, Any]) -> dict[str, Any]:
    return {
        **under("model.backbone", case["backbone"]),
        **under("model.decode_head", case["decode_head"]),
        **under("model.auxiliary_head", case["auxiliary_head"]),
    }


def stored(case: dict[str, Any], want: dict[str, torch.Tensor]) -> dict[str, Any]:
    model = MODELS.build(configuration("upernet", small(case)).model).eval()
    keys = fill_weights(model, case["seed"])
    image = torch.from_numpy(fill("input", case["input_shape"], case["seed"]))
    h, w = image.shape[2:]
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    labels = (3 * y + 5 * x) // 16 % 6
    labels[labels == 5] = 255
    with torch.no_grad():
        maps = model.extract_feat(image)
        got = {f"backbone.{i}": one for i, one in enumerate(maps)}
        got["decode.logits"] = model.decode_head(maps)
        got["auxiliary.logits"] = model.auxiliary_head(maps)
        got["whole.logits_at_input_size"] = model.encode_decode(image, [{"img_shape": (h, w)}])
        answer = model.predict(image, [sample(labels, case["original_shape"])])[0]
        got["predict.logits_at_original_size"] = answer.seg_logits.data
        losses = model.loss(image, [sample(labels)])
    classes = answer.pred_sem_seg.data[0]
    return {
        "keys": keys == [list(key) for key in case["keys"]],
        "tensors": {name: apart(tensor, want[name]) for name, tensor in got.items()},
        "losses": {name: abs(float(losses[name]) - value) for name, value in case["losses_in_eval_mode"].items()},
        "other classes": int((classes != want["predict.classes"]).sum()),
    }


@DATASETS.register_module()
class Halves(torch.utils.data.Dataset):
    """Images whose left half is of one class and whose right half is of another."""

    def __init__(self) -> None:
        self.metainfo = {"classes": ("left", "right"), "palette": [[0, 0, 0], [255, 255, 255]]}

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        labels = torch.zeros(64, 64, dtype=torch.long)
        labels[:, 32:] = 1
        noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(index))
        return {"inputs": ((labels[None] + noise) * 120).to(torch.uint8), "data_samples": sample(labels)}


def trained(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """mmengine's Runner with upstream's optimizer and schedules, SyncBN as the file has it, on the CPU."""
    classes = {"model.decode_head.num_classes": 2, "model.auxiliary_head.num_classes": 2}
    config = configuration("upernet", {**small(case), **classes, "model.data_preprocessor.size": (64, 64)})
    for stage in ("val", "test"):
        for part in ("dataloader", "cfg", "evaluator"):
            config[f"{stage}_{part}"] = None
    config.train_cfg = {"type": "IterBasedTrainLoop", "max_iters": 12}
    config.optim_wrapper.optimizer.lr = 2e-3
    config.param_scheduler[0].end = config.param_scheduler[1].begin = 2
    config.param_scheduler[1].end = 12
    config.train_dataloader = {
        "batch_size": 2, "num_workers": 0, "sampler": {"type": "InfiniteSampler"}, "dataset": {"type": "Halves"},
        "collate_fn": {"type": "pseudo_collate"},
    }  # fmt: skip
    config.default_hooks.checkpoint.interval = 12
    config.work_dir, config.log_level, config.randomness = str(folder), "ERROR", {"seed": 0}
    runner = Runner.from_cfg(config)
    before = {name: value.detach().clone() for name, value in runner.model.named_parameters()}
    losses: list[float] = []
    step = runner.model.train_step
    runner.model.train_step = lambda data, optim_wrapper: (  # type: ignore[method-assign]
        losses.append(float((given := step(data, optim_wrapper))["loss"])) or given
    )
    runner.train()
    batch = runner.model.data_preprocessor(next(iter(runner.train_dataloader)), True)
    runner.model.parse_losses(runner.model(**batch, mode="loss"))[0].backward()
    parameters = dict(runner.model.named_parameters())
    decays = {
        name: group["weight_decay"]
        for group in runner.optim_wrapper.param_groups
        for name, value in parameters.items()
        if any(value is one for one in group["params"])
    }
    return {
        "losses": losses,
        "without gradient": without_gradient(runner.model),
        "unmoved": [name for name, value in parameters.items() if torch.equal(value, before[name])],
        "norms": sorted(
            {type(module).__name__ for module in runner.model.modules() if "atchNorm" in type(module).__name__}
        ),
        "no decay": sum(decay == 0 for decay in decays.values()),
        "no decay by name": sum("norm" in name for name in parameters),
        "checkpoint": sorted(torch.load(folder / "iter_12.pth", weights_only=False)),
    }


def report(configurations: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Digests of the whole configurations' keys, differences of the stored cases, and how a training went."""
    with torch.device("meta"):
        full = {
            name: digest(MODELS.build(configuration("upernet", changes).model))
            for name, changes in configurations.items()
        }
    here = cases("segmentation")
    with tempfile.TemporaryDirectory() as folder:
        run = trained(next(iter(here.values()))[0], Path(folder))
    return {"full": full, "cases": {name: stored(*case) for name, case in here.items()}, "trained": run}
