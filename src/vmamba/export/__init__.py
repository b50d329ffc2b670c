"""Files that run without this package: how a model is traced, written for each target, and proved to be the same."""
