"""Ready-made scan orders, and what ``scan_orders=`` of a layer may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vmamba.errors import ConfigError, nearest
from vmamba.scan.any_order.orders import AxisOrder, IndexOrder, RuleOrder, ScanOrder
from vmamba.scan.orders import SCAN_MODES

#: What a layer takes: a name out of `NAMED_ORDERS`, or the orders one by one; a function is a `RuleOrder`'s rule.
ScanOrders: TypeAlias = "str | Sequence[ScanOrder | Callable[..., Any]]"


def cross(ndim: int = 2) -> tuple[ScanOrder, ...]:
    """Each axis is the innermost loop once, the last axis first, and all of these backwards: ``2·ndim`` directions.

    In two dimensions that is VMamba's cross-scan (arXiv 2401.10166, §4.2), in one dimension a scan both ways. The other
    axes follow the innermost cyclically: ``(z, h, w)``, ``(w, z, h)``, ``(h, w, z)``.
    """
    forth = [AxisOrder(tuple((last + 1 + i) % ndim for i in range(ndim))) for last in reversed(range(ndim))]
    return *forth, *(order.backwards() for order in forth)


def along(axes: Sequence[int], ndim: int = 2) -> tuple[ScanOrder, ...]:
    """The directions of `cross` whose innermost loop is one of ``axes``: scans along these axes only, both ways.

    Raises:
        ConfigError: no axis, or one that there is not.
    """
    if not axes or not set(axes) <= set(range(ndim)):
        raise ConfigError(f"axes {tuple(axes)} must be some of {tuple(range(ndim))}")
    return tuple(order for order in cross(ndim) if isinstance(order, AxisOrder) and order.axes[-1] in axes)


def diagonal(ndim: int = 2) -> tuple[ScanOrder, ...]:
    """Along the diagonals of a map, along the other diagonals, and both backwards.

    Diagonals are read from the upper left corner of the map to the lower right, each from its upper end to its lower.

    Raises:
        ConfigError: other maps than those of two axes.
    """
    if ndim != 2:
        raise ConfigError(f"the order 'diagonal' is one of maps (h, w), not of {ndim} axes; give orders of your own")
    forth = [RuleOrder(_Diagonals(mirrored)) for mirrored in (False, True)]
    return *forth, *(order.backwards() for order in forth)


def windows(side: int = 7, ndim: int = 2) -> tuple[ScanOrder, ...]:
    """Window by window, inside each as `cross` does (LocalMamba, arXiv 2403.09338, §3.2): ``2·ndim`` directions.

    Windows have ``side`` places along each axis, fewer at the map's end. They follow each other in the order in which
    the places inside them do.

    Raises:
        ConfigError: a side below 1.
    """
    if side < 1:
        raise ConfigError(f"windows of side {side} have no places; give at least 1")
    forth = [RuleOrder(_Windows(side, order.axes)) for order in cross(ndim)[:ndim] if isinstance(order, AxisOrder)]
    return *forth, *(order.backwards() for order in forth)


#: By name: from the number of the map's axes to the orders.
NAMED_ORDERS: dict[str, Callable[[int], tuple[ScanOrder, ...]]] = {
    "cross": cross,
    "diagonal": diagonal,
    "windows": lambda ndim: windows(ndim=ndim),
}


#: The directions of each of VMamba's scan modes.
MODE_ORDERS: dict[str, tuple[ScanOrder, ...]] = {
    mode: tuple(
        AxisOrder((1, 0) if way.by_column else (0, 1), tuple(axis for axis, flip in enumerate(way[1:]) if flip))
        for way in directions
    )
    for mode, directions in SCAN_MODES.items()
}


def orders_of(given: ScanOrders, ndim: int) -> tuple[ScanOrder, ...]:
    """The orders that a layer over maps of ``ndim`` axes is given.

    Raises:
        ConfigError: an unknown name, no order, something that is none, or one of maps with other axes.
    """
    if isinstance(given, str):
        if given not in NAMED_ORDERS:
            raise ConfigError(
                f"scan_orders {given!r} is unknown; legal: {', '.join(NAMED_ORDERS)}, or a list of orders"
                f"{nearest(given, NAMED_ORDERS)}"
            )
        return NAMED_ORDERS[given](ndim)
    if isinstance(given, Tensor | AxisOrder | IndexOrder | RuleOrder) or not isinstance(given, Sequence):
        raise ConfigError(f"scan_orders is a list of orders, given a {type(given).__name__}; put it in a list")
    if not given:
        raise ConfigError(f"scan_orders names no direction; give at least one, or a name: {', '.join(NAMED_ORDERS)}")
    return tuple(_order(one, ndim) for one in given)


def _order(given: object, ndim: int) -> ScanOrder:
    if isinstance(given, AxisOrder | IndexOrder):
        named = len(given.axes if isinstance(given, AxisOrder) else given.sizes)
        if named != ndim:
            raise ConfigError(f"{given} is an order of maps with {named} axes, but the layer's have {ndim}")
        return given
    if isinstance(given, RuleOrder):
        return given
    if isinstance(given, Tensor) or not callable(given):
        raise ConfigError(
            f"a scan order is an AxisOrder, an IndexOrder, a RuleOrder or a function from a map's sizes to places, "
            f"given a {type(given).__name__}; places alone do not say for which size: give IndexOrder(places, sizes)"
        )
    return RuleOrder(given)


@dataclass(frozen=True)
class _Diagonals:
    """The rule of `diagonal`; ``mirrored`` reads the map from its upper right corner."""

    mirrored: bool

    def __call__(self, h: int, w: int) -> Tensor:
        row, column = torch.arange(h)[:, None], torch.arange(w)
        places = row * w + (w - 1 - column if self.mirrored else column)
        # Places of one diagonal have one sum, and are sorted from above by themselves.
        return places.flatten()[torch.argsort((row + column).flatten(), stable=True)]


@dataclass(frozen=True)
class _Windows:
    """The rule of `windows`; ``axes`` are the loops over windows and over the places inside them."""

    side: int
    axes: tuple[int, ...]

    def __call__(self, *sizes: int) -> Tensor:
        places = torch.arange(math.prod(sizes)).view(sizes).permute(self.axes)
        window = torch.zeros(places.shape, dtype=torch.int64)
        for axis, size in enumerate(places.shape):
            shape = [1] * axis + [size] + [1] * (places.dim() - axis - 1)
            window = window * -(-size // self.side) + (torch.arange(size) // self.side).view(shape)
        return places.flatten()[torch.argsort(window.flatten(), stable=True)]
