"""The names of ImageNet-1K's classes."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=1)
def imagenet_class_names() -> tuple[str, ...]:
    """The 1000 classes of ILSVRC 2012 in the order of every model's logits, from timm's tables.

    Each name is its WordNet synset's words, such as ``"tench, Tinca tinca"``. Two classes, the bird (134) and the
    machine (517), are both called ``"crane"``.
    """
    from timm.data.imagenet_info import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_descriptions())
