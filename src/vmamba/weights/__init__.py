"""Weight files: their namings, what network they belong to, where the released ones come from."""

from vmamba.weights.adaptation import adapt_to, load_adapted, load_backbone_weights
from vmamba.weights.download import fetch
from vmamba.weights.files import WeightFile, read_weights, save_weights
from vmamba.weights.loading import load_weights
from vmamba.weights.names import translate_keys
from vmamba.weights.recognition import Recognised, infer_config, recognise
from vmamba.weights.released import OFFICIAL, OfficialWeights, fetch_official, official_weights
from vmamba.weights.segmenters import recognise_segmenter

__all__ = [
    "OFFICIAL",
    "OfficialWeights",
    "Recognised",
    "WeightFile",
    "adapt_to",
    "fetch",
    "fetch_official",
    "infer_config",
    "load_adapted",
    "load_backbone_weights",
    "load_weights",
    "official_weights",
    "read_weights",
    "recognise",
    "recognise_segmenter",
    "save_weights",
    "translate_keys",
]
