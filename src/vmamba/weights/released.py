"""Upstream's released weights, as data, and the way they come into torch hub's cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import torch

from vmamba.architecture.detector_variants import DETECTORS
from vmamba.architecture.segmenter_variants import SEGMENTERS
from vmamba.architecture.variants import VARIANTS
from vmamba.errors import CheckpointError, ConfigError, nearest
from vmamba.weights.download.fetch import fetch
from vmamba.weights.pickled import check_pickled_file


@dataclass(frozen=True)
class OfficialWeights:
    """One released file. ``key`` is the entry that upstream's own loader takes from it."""

    model: str
    url: str
    key: str = "model"
    note: str = ""
    task: str = "classification"

    @property
    def file_name(self) -> str:
        """The URL's last part, as `torch.hub` names the file."""
        return urlsplit(self.url).path.rsplit("/", 1)[-1]

    @property
    def path(self) -> Path:
        """Where the file lies, or will, in torch hub's cache; ``TORCH_HOME`` moves it."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.file_name


_RELEASES = "https://github.com/MzeroMiko/VMamba/releases/download"
_ADE20K = "4xb4-160k_ade20k-512x512"


def _upernet(backbone: str, file: str) -> OfficialWeights:
    return OfficialWeights(f"upernet_{backbone}", f"{_RELEASES}/{file}", "state_dict", task="segmentation")


_NO_EMA = "trained without a moving average of the weights, the only one"
_TABLE = (
    OfficialWeights("vanilla_vmamba_tiny", f"{_RELEASES}/%23v0cls/vssmtiny_dp01_ckpt_epoch_292.pth", note=_NO_EMA),
    OfficialWeights("vanilla_vmamba_small", f"{_RELEASES}/%23v0cls/vssmsmall_dp03_ckpt_epoch_238.pth"),
    OfficialWeights("vanilla_vmamba_base", f"{_RELEASES}/%23v0cls/vssmbase_dp06_ckpt_epoch_241.pth"),
    OfficialWeights("vmamba_tiny_s2l5", f"{_RELEASES}/%23v2cls/vssm_tiny_0230_ckpt_epoch_262.pth"),
    OfficialWeights("vmamba_small_s2l15", f"{_RELEASES}/%23v2cls/vssm_small_0229_ckpt_epoch_222.pth"),
    OfficialWeights("vmamba_base_s2l15", f"{_RELEASES}/%23v2cls/vssm_base_0229_ckpt_epoch_237.pth"),
    OfficialWeights("vmamba_tiny_s1l8", f"{_RELEASES}/%23v2cls/vssm1_tiny_0230s_ckpt_epoch_264.pth"),
    OfficialWeights("vmamba_small_s1l20", f"{_RELEASES}/%23v2cls/vssm1_small_0229s_ckpt_epoch_240.pth"),
    OfficialWeights("vmamba_base_s1l20", f"{_RELEASES}/%23v2cls/vssm1_base_0229s_ckpt_epoch_225.pth"),
    # Upstream's table links the first file for the second model too; the names of the files tell them apart.
    _upernet("vmamba_tiny_s1l8", f"%23v2seg/upernet_vssm_{_ADE20K}_tiny_s_iter_160000.pth"),
    _upernet("vmamba_tiny_s2l5", f"%23v2seg/upernet_vssm_{_ADE20K}_tiny_iter_160000.pth"),
    _upernet("vmamba_small_s2l15", f"%23v2seg/upernet_vssm_{_ADE20K}_small_iter_144000.pth"),
    _upernet("vmamba_base_s2l15", f"%23v2seg/upernet_vssm_{_ADE20K}_base_iter_160000.pth"),
    _upernet("vanilla_vmamba_tiny", f"%23v0seg/vssmtiny_upernet_{_ADE20K}_iter_160000.pth"),
)
_DETECTORS = tuple(
    OfficialWeights(name, variant.published.url, "state_dict", f"{variant.published.schedule} on COCO", "detection")
    for name, variant in DETECTORS.items()
    if variant.published is not None
)
OFFICIAL: dict[str, OfficialWeights] = {weights.model: weights for weights in (*_TABLE, *_DETECTORS)}


def official_weights(name: str) -> OfficialWeights:
    """The released weights of a named model.

    Raises:
        ConfigError: there is no such model.
        CheckpointError: none were released for it.
    """
    if name in OFFICIAL:
        return OFFICIAL[name]
    if name not in {**VARIANTS, **SEGMENTERS, **DETECTORS}:
        raise ConfigError(f"model {name!r} is unknown{nearest(name, OFFICIAL)}; `vmamba weights list` lists them")
    raise CheckpointError(
        f"no weights were released for {name}{_backbone_of(name)}; those with weights: {', '.join(OFFICIAL)}"
    )


def _backbone_of(name: str) -> str:
    """What to start a segmenter or detector from instead."""
    decoder = SEGMENTERS.get(name) or DETECTORS.get(name)
    backbone = None if decoder is None else decoder.variant
    return f"; pretrained={backbone!r} starts its backbone from that classifier's" if backbone in OFFICIAL else ""


def fetch_start(name: str, pretrained: bool | str | Path, key: str | None) -> tuple[str | Path, str | None]:
    """The file that a named network is to start from, and the entry of it to take; released weights are fetched.

    Args:
        name: the network's; ``pretrained=True`` means its own released weights.
        pretrained: or a file, or the name of another network whose weights were released.
        key: as given; released files have one of their own.

    Raises:
        CheckpointError, OutputError: as `fetch_official`.
    """
    released = name if pretrained is True else str(pretrained)
    if pretrained is True or (released in OFFICIAL and not Path(released).exists()):
        return fetch_official(released), key or official_weights(released).key
    return released, key


def fetch_official(name: str, progress: bool | None = None) -> Path:
    """Make sure that a model's released weights are in torch hub's cache and are what they were; see `fetch`.

    Raises:
        ConfigError, CheckpointError: as `official_weights` and `fetch`.
        OutputError: the cache cannot be written.
    """
    weights = official_weights(name)
    return fetch(weights.url, weights.path, check=check_pickled_file, progress=progress)
