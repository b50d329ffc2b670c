"""Weight files: their namings, what network they belong to, where the released ones come from."""

from vmamba.checkpoints.adapt import adapt_to, load_adapted
from vmamba.checkpoints.download import fetch
from vmamba.checkpoints.files import WeightFile, read_weights, save_weights, write_atomically
from vmamba.checkpoints.infer import Recognised, infer_config, recognise
from vmamba.checkpoints.load import load, load_backbone_weights, load_weights
from vmamba.checkpoints.official import OFFICIAL, OfficialWeights, fetch_official, official_weights
from vmamba.checkpoints.translate import translate_keys

__all__ = [
    "OFFICIAL",
    "OfficialWeights",
    "Recognised",
    "WeightFile",
    "adapt_to",
    "fetch",
    "fetch_official",
    "infer_config",
    "load",
    "load_adapted",
    "load_backbone_weights",
    "load_weights",
    "official_weights",
    "read_weights",
    "recognise",
    "save_weights",
    "translate_keys",
    "write_atomically",
]
