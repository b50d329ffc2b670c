"""Registering under every circumstance, and what the class takes, in one process. Prints one JSON object."""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmcv
import torch

NAME = "vmamba.integrations.openmmlab"
SMALL = {"dims": 8, "depths": [1, 1, 1, 1], "ssm_d_state": 1}
#: What mmsegmentation's configuration of Swin Transformer leaves in upstream's.
SWIN = {
    "embed_dims": 96, "num_heads": [3, 6, 12, 24], "window_size": 7, "qkv_bias": True, "with_cp": False,
    "init_cfg": {"type": "Pretrained", "checkpoint": "https://example.org/swin.pth"},
}  # fmt: skip


def anew() -> Any:
    """The module imported as if for the first time."""
    sys.modules.pop(NAME, None)
    return importlib.import_module(NAME)


def says(call: Callable[[], Any]) -> list[str]:
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


@contextmanager
def hidden(*packages: str) -> Iterator[None]:
    """For whom these packages are not installed."""
    kept = {name: sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] in packages}
    sys.modules.update(dict.fromkeys(packages))  # None: there is no such module
    yield
    for name in packages:
        del sys.modules[name]
    sys.modules.update(kept)


said: dict[str, Any] = {}
with hidden("mmengine", "mmseg", "mmdet"):
    said["no mmengine"] = says(anew)
with hidden("mmseg", "mmdet"):
    said["neither"] = says(anew)
version, mmcv.__version__ = mmcv.__version__, "2.2.0"
said["another mmcv"] = says(anew)
mmcv.__version__ = version
with hidden("mmdet"):
    said["mmseg alone"] = anew().REGISTERED

openmmlab = anew()
said["both"] = openmmlab.REGISTERED
from mmdet.registry import MODELS as DETECTION  # noqa: E402 — these are what the imports above are about
from mmseg.registry import MODELS as SEGMENTATION  # noqa: E402

said["there"] = [registry.module_dict["MM_VSSM"] is openmmlab.MM_VSSM for registry in (SEGMENTATION, DETECTION)]
said["again"] = says(anew)  # as another name for the same file would do
openmmlab = sys.modules[NAME]
foreign = type("MM_VSSM", (torch.nn.Module,), {"__module__": "model"})
SEGMENTATION.register_module(module=foreign, force=True)
said["upstream's too"] = says(anew)
SEGMENTATION.register_module(module=openmmlab.MM_VSSM, force=True)

make = openmmlab.MM_VSSM
plain = make(**SMALL, pretrained="")
inherited = make(**SMALL, **SWIN, pretrained="")
said["inherited"] = [inherited.init_cfg, inherited.start, list(inherited.state_dict()) == list(plain.state_dict())]
said["with_cp"] = make(**SMALL, **{**SWIN, "with_cp": True}).config.use_checkpoint
said["misspelt"] = says(lambda: make(**SMALL, ssm_dstate=1))
said["name beside Swin's"] = says(lambda: make(name="vmamba_nano", **SWIN))
said["name"] = make(name="vmamba_nano", drop_path_rate=0.3).config.drop_path_rate
said["released without name"] = says(lambda: make(**SMALL, pretrained=True))
said["released"] = [make(name="vmamba_tiny_s1l8", pretrained=True).start]

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "weights.pth"
    missing = make(**SMALL, pretrained=str(file))
    said["missing"] = says(missing.init_weights)
    weights = {name: torch.full_like(value, 0.5) for name, value in plain.state_dict().items() if "outnorm" not in name}
    torch.save({"model": weights}, file)

    def loaded(model: torch.nn.Module) -> bool:
        return all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())

    start = make(**SMALL, pretrained=file)
    said["at once"] = loaded(start)
    with torch.no_grad():
        start.patch_embed[0].weight.zero_()
    start.init_weights()
    said["initialised"] = loaded(start)
    cfg = [{"type": "Constant", "layer": "Conv2d", "val": 2.0}, {"type": "Pretrained", "checkpoint": str(file)}]
    chosen = make(**SMALL, init_cfg=cfg)
    chosen.init_weights()
    said["init_cfg"] = loaded(chosen)
    constant = make(**SMALL, init_cfg=cfg[:1])
    constant.init_weights()
    said["constant"] = bool((constant.patch_embed[0].weight == 2).all())
    said["two starts"] = says(lambda: make(**SMALL, pretrained=file, init_cfg=cfg))
    said["another size"] = says(lambda: make(**{**SMALL, "dims": 16}, pretrained=file))
print(json.dumps(said))
