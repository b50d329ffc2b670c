"""ImageNet-1K's classes: their names, and the WordNet ids that its folders are called by."""

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


@lru_cache(maxsize=1)
def imagenet_class_ids() -> tuple[str, ...]:
    """The classes' WordNet ids, such as ``"n01440764"``, in the order of every model's logits, which is sorted."""
    from timm.data.imagenet_info import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())  # type: ignore[no-untyped-call]
