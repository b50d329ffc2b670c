"""Recipes that a training configuration may name: YAML files under ``recipes/``, or a user's own."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from vmamba.errors import ConfigError, nearest
from vmamba.train.settings.dotted import GROUPS, flat, nested

#: A recipe's key that is no field of a configuration: the recipe, by name or path, that it changes.
BASE = "base"

#: The fields that a recipe may not set: where a run lies, and what is asked of one.
NOT_OF_A_RECIPE = ("output", "resume", "recipe")


def recipe_names() -> list[str]:
    """The recipes of this package."""
    return sorted(path.name.removesuffix(".yaml") for path in _folder().iterdir() if path.name.endswith(".yaml"))


def read_recipe(recipe: str) -> dict[str, Any]:
    """The fields that a recipe sets, those of ``data`` and ``augmentation`` in mappings; types are not checked yet.

    Args:
        recipe: a name of `recipe_names`, or the path of a YAML file. What it holds under ``base`` is read first.

    Raises:
        ConfigError: there is no such recipe, it is no YAML mapping, it sets what a recipe may not, or its bases run in
            a circle.
    """
    return _read(recipe, ())


def recipe_dataset(recipe: str) -> str | None:
    """The data set that a recipe names. Raises ConfigError as `read_recipe`."""
    name = read_recipe(recipe).get("data", {}).get("dataset")
    return name if isinstance(name, str) else None


def _folder() -> Any:
    return files("vmamba.train") / "recipes"


def _read(recipe: str, above: tuple[str, ...]) -> dict[str, Any]:
    if recipe in above:
        raise ConfigError(f"recipe {above[0]}: its bases run in a circle, {' → '.join([*above, recipe])}")
    values = _own(recipe)
    for name in NOT_OF_A_RECIPE:
        if name in values:
            raise ConfigError(f"recipe {recipe} sets {name}, which a recipe may not; give it with the command")
    base = values.pop(BASE, None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"recipe {recipe}: {BASE}={base!r}: want one recipe's name or file")
    merged = _read(_beside(recipe, base), (*above, recipe))
    for name, value in values.items():
        merged[name] = {**merged.get(name, {}), **value} if name in GROUPS else value
    return merged


def _own(recipe: str) -> dict[str, Any]:
    """What the file itself holds."""
    import yaml

    path = Path(recipe)
    named = recipe in recipe_names()
    if not named and not path.is_file():
        names = recipe_names()
        raise ConfigError(
            f"recipe={recipe!r} is neither a recipe nor a YAML file; recipes: {', '.join(names)}"
            f"{nearest(recipe, names)}"
        )
    try:
        text = (_folder() / f"{recipe}.yaml" if named else path).read_text(encoding="utf-8")
        values = yaml.safe_load(text)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {recipe} cannot be read: {error}") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"recipe {recipe} holds a {type(values).__name__}, want a mapping of fields")
    for group in GROUPS:
        if not isinstance(values.get(group, {}), Mapping):
            raise ConfigError(f"recipe {recipe}: {group}={values[group]!r}: want a mapping of its fields")
    return nested(flat(values))


def _beside(recipe: str, base: str) -> str:
    """A base that is a path counts from the folder of the file that names it."""
    if base in recipe_names() or recipe in recipe_names():
        return base
    return str(Path(recipe).parent / base)
