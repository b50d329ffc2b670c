"""Weight files and the namings they come in."""

from vmamba.checkpoints.files import WeightFile, read_weights, save_weights, write_atomically
from vmamba.checkpoints.load import load_backbone_weights, load_weights
from vmamba.checkpoints.translate import translate_keys

__all__ = [
    "WeightFile",
    "load_backbone_weights",
    "load_weights",
    "read_weights",
    "save_weights",
    "translate_keys",
    "write_atomically",
]
