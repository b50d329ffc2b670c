"""The data sets: a module each, with ``load(config) -> Splits``."""
