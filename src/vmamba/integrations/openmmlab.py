"""``MM_VSSM``, the backbone that upstream's configurations name, in the registries of mmsegmentation and mmdetection.

``import vmamba.integrations.openmmlab``, or in a configuration file
``custom_imports = dict(imports=["vmamba.integrations.openmmlab"], allow_failed_imports=False)``, registers it with
each of the two libraries that is installed. It takes what upstream's class of this name takes.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch

from vmamba.errors import CheckpointError, ConfigError
from vmamba.models import Backbone_VSSM, model_config
from vmamba.weights import fetch, load_backbone_weights, official_weights
from vmamba.weights.pickled import check_pickled_file

_NEEDS = (
    "vmamba.integrations.openmmlab needs mmengine, and mmsegmentation or mmdet, which need mmcv 2.1: "
    'pip install mmengine "mmcv<2.2" mmsegmentation mmdet'
)

try:
    from mmengine.model import BaseModule
except ImportError as missing:
    raise ImportError(f"{_NEEDS} (importing mmengine: {missing})", name=missing.name) from missing

__all__ = ["MM_VSSM"]

_logger = logging.getLogger("vmamba")

#: What upstream's configurations inherit from those of Swin Transformer, and upstream's class ignores: keywords of
#: mmseg's and mmdet's `SwinTransformer` alone. Those that both networks have count, as they do upstream.
SWIN = frozenset(
    {
        "pretrain_img_size", "embed_dims", "window_size", "num_heads", "strides", "qkv_bias", "qk_scale", "drop_rate",
        "attn_drop_rate", "use_abs_pos_embed", "act_cfg", "norm_cfg", "with_cp", "convert_weights",
    }
)  # fmt: skip


class MM_VSSM(Backbone_VSSM, BaseModule):  # type: ignore[misc]  # noqa: N801 — upstream's name
    """`Backbone_VSSM` as a module of mmengine's: the same keys and values, built from a configuration's dictionary.

    Args:
        *args, **options: as in `Backbone_VSSM`. Keywords of Swin Transformer's, which upstream's configurations inherit
            from that network's, are left out, as the log says, and with them the ``init_cfg`` beside them. (Only
            ``with_cp=True`` counts: it is ``use_checkpoint``.) All other unknown ones are refused.
        name: a named model, whose configuration the options change; see `vmamba.list_models`.
        pretrained: a checkpoint to start from, as in `Backbone_VSSM`: a path, a URL, or with ``name`` True for that
            model's released weights. None or ``""``: none. It is loaded at once if the file is there, and again when
            mmengine initialises the model for training, which a file that is still missing stops. A model that is built
            to load a whole checkpoint (``load_from``, a test) does not need the file.
        init_cfg: mmengine's initialisation. ``dict(type="Pretrained", checkpoint=…)`` is the same as ``pretrained``.

    Raises:
        ConfigError, BackendError: as `Backbone_VSSM`; two starts, or a ``name`` beside Swin Transformer's keywords.
        CheckpointError: the checkpoint does not fit.
    """

    def __init__(
        self,
        *args: Any,
        name: str | None = None,
        pretrained: str | Path | bool | None = None,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        if len(args) > 1:  # the second of upstream's places
            if pretrained:
                raise ConfigError("pretrained is given twice: by place and by name")
            pretrained, args = args[1], (args[0], None, *args[2:])
        inherited = sorted(SWIN & options.keys())
        if inherited:
            if name is not None:
                raise ConfigError(
                    f"name {name!r} beside {', '.join(inherited)}: these come from the configuration of Swin "
                    "Transformer below; start the backbone's dictionary with _delete_=True"
                )
            if options.get("with_cp"):
                options.setdefault("use_checkpoint", True)
            for word in inherited:
                del options[word]
            dropped = [*inherited, "init_cfg"] if init_cfg else inherited
            _logger.info("MM_VSSM: left out what a configuration of Swin Transformer gives: %s", ", ".join(dropped))
            init_cfg = None
        starts, others = _split(init_cfg)
        if pretrained and starts:
            raise ConfigError(f"pretrained {pretrained!r} beside init_cfg's checkpoint {starts[0]!r}; give one of them")
        if pretrained is True and name is None:
            raise ConfigError("pretrained=True needs name=, the model whose released weights are meant")
        if name is not None:
            options = {"config": model_config(name), **options}
        super().__init__(*args, **options)
        self.init_cfg = others
        start = starts[0] if starts else pretrained
        self.start: str | None = official_weights(str(name)).url if start is True else str(start) if start else None
        if self.start is not None:
            if _place(self.start).is_file():
                load_backbone_weights(self, _place(self.start))
            else:
                _logger.warning("MM_VSSM: %s is not there yet; training from the start needs it", self.start)

    def init_weights(self) -> None:
        """What mmengine calls before it trains: ``init_cfg``, then the checkpoint over it.

        Raises:
            CheckpointError: it is missing or does not fit.
            OutputError: a URL's file cannot be written.
        """
        again = self.is_init
        super().init_weights()
        if again or self.start is None:
            return
        if _is_url(self.start):
            fetch(self.start, _place(self.start), check=check_pickled_file)
        elif not _place(self.start).is_file():
            raise CheckpointError(
                f"pretrained {self.start}: no such file; give the classification checkpoint's path, or "
                "model.backbone.pretrained=None to start without"
            )
        load_backbone_weights(self, _place(self.start))


def _split(
    init_cfg: dict[str, Any] | list[dict[str, Any]] | None,
) -> tuple[list[str], list[dict[str, Any]] | None]:
    """The checkpoints that an ``init_cfg`` starts from, and what else it does."""
    if not init_cfg:
        return [], None
    entries = [init_cfg] if isinstance(init_cfg, dict) else list(init_cfg)
    starts = [entry["checkpoint"] for entry in entries if entry.get("type") == "Pretrained"]
    return starts, [entry for entry in entries if entry.get("type") != "Pretrained"] or None


def _is_url(checkpoint: str) -> bool:
    return checkpoint.startswith(("http://", "https://"))


def _place(checkpoint: str) -> Path:
    """The file itself; of a URL, where torch hub and `fetch_official` keep it."""
    if _is_url(checkpoint):
        return Path(torch.hub.get_dir()) / "checkpoints" / checkpoint.rsplit("/", 1)[-1]
    return Path(checkpoint).expanduser()


def _register() -> tuple[str, ...]:
    """Add the class to the registries that are here; their libraries' names.

    Raises:
        ImportError: neither library can be imported.
        ConfigError: another class has the name there.
    """
    found, broken = [], []
    for module, package in (("mmseg", "mmsegmentation"), ("mmdet", "mmdet")):
        if importlib.util.find_spec(module) is None:
            continue
        try:
            registry = importlib.import_module(f"{module}.registry").MODELS
        except (ImportError, AssertionError) as error:  # they assert that mmcv's version is one of theirs
            broken.append(f"{package} is installed, but importing it says: {error}")
            continue
        other = registry.module_dict.get(MM_VSSM.__name__)
        if other is not None and other.__module__ != __name__:
            raise ConfigError(
                f"{package} has an MM_VSSM already, of the module {other.__module__!r}; import that or "
                "vmamba.integrations.openmmlab, not both (upstream's training scripts begin with `import model`)"
            )
        registry.register_module(module=MM_VSSM, force=True)
        found.append(package)
    if not found:
        raise ImportError("; ".join([_NEEDS, *broken]))
    for problem in broken:
        _logger.warning("MM_VSSM is registered with %s only: %s", found[0], problem)
    return tuple(found)


#: The libraries that have it now.
REGISTERED = _register()
