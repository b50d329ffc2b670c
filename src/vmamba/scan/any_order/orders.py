"""Scan orders as data: in which order a scan reads the places of a map with any number of axes.

There are three kinds. An `AxisOrder` names the loops over the axes and fits every size. An `IndexOrder` lists the
places themselves and fits one size. A `RuleOrder` makes such a list for each size it meets. Places are counted in
row-major order, as ``torch.arange(l).view(sizes)`` numbers them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from vmamba import _torch
from vmamba.errors import ConfigError, InputError
from vmamba.kernels.reading import Way

#: From the sizes of a map's axes, one argument each, to its places in the order in which they are read.
Rule: TypeAlias = Callable[..., "Tensor | Sequence[int]"]


@dataclass(frozen=True)
class AxisOrder:
    """Nested loops over the axes.

    Attributes:
        axes: from the outermost loop to the innermost: ``(0, 1)`` reads a map ``(h, w)`` along its rows, ``(1, 0)``
            along its columns.
        flips: the axes that are read from their end.

    Raises:
        ConfigError: ``axes`` is no permutation of 0, 1, …, or ``flips`` are no axes of it.
    """

    axes: tuple[int, ...]
    flips: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check both, and sort the flips."""
        axes, flips = tuple(self.axes), tuple(sorted(self.flips))
        if not axes or sorted(axes) != list(range(len(axes))):
            raise ConfigError(f"axes {axes} of a scan order must name 0, 1, … once each, the outermost loop first")
        if len(set(flips)) < len(flips) or not set(flips) <= set(axes):
            raise ConfigError(f"flips {flips} of a scan order must be distinct axes out of {tuple(sorted(axes))}")
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "flips", flips)

    def backwards(self) -> AxisOrder:
        """The same places from the last to the first."""
        return AxisOrder(self.axes, tuple(set(self.axes) - set(self.flips)))

    def flipped(self, *axes: int) -> AxisOrder:
        """The order that reads ``x.flip(axes)`` as this one reads ``x``."""
        return AxisOrder(self.axes, tuple(set(self.flips) ^ set(axes)))

    def permuted(self, *axes: int) -> AxisOrder:
        """The order that reads ``x.permute(axes)`` as this one reads ``x``."""
        return AxisOrder(tuple(axes.index(axis) for axis in self.axes), tuple(axes.index(axis) for axis in self.flips))

    def places(self, sizes: Sequence[int], device: torch.device) -> Tensor:
        """The places ``(l)`` of a map in this order, int64."""
        return to_sequence(torch.arange(math.prod(sizes), device=device).view(*sizes), self, len(self.axes))


@dataclass(frozen=True, eq=False)
class IndexOrder:
    """A list of the places of a map of one size.

    Attributes:
        indices: ``(l)``, a permutation of 0 … l-1, the place that is read first first; a list, an array or a tensor.
        sizes: of the map's axes, such as ``(h, w)``.

    Raises:
        ConfigError: it is no permutation of the map's places.
    """

    indices: Tensor
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the list and keep it as a tensor of its own."""
        object.__setattr__(self, "sizes", tuple(int(size) for size in self.sizes))
        object.__setattr__(self, "indices", _permutation(self.indices, self.sizes, "scan order").clone())

    def backwards(self) -> IndexOrder:
        """The same places from the last to the first."""
        return IndexOrder(self.indices.flip(0), self.sizes)

    def places(self, sizes: Sequence[int], device: torch.device) -> Tensor:
        """The places ``(l)`` of a map in this order, int64.

        Raises:
            InputError: the map has other sizes.
        """
        if tuple(sizes) != self.sizes:
            raise InputError(
                f"the scan order lists the places of a map of {_by(self.sizes)}, given one of {_by(sizes)}; a rule "
                "(a function of the sizes) or axes make orders for every size"
            )
        return self.indices.to(device)

    def __repr__(self) -> str:
        return f"IndexOrder({len(self.indices)} places, sizes={self.sizes})"


@dataclass(frozen=True)
class RuleOrder:
    """What makes the list of places for each size.

    Attributes:
        rule: called with the sizes of the map's axes; returns the places as `IndexOrder` takes them. Compiled and
            exported graphs hold what it made for the size they are traced with.
        reverse: read the list from its end.
    """

    rule: Rule
    reverse: bool = False

    def backwards(self) -> RuleOrder:
        """The same places from the last to the first."""
        return RuleOrder(self.rule, not self.reverse)

    def places(self, sizes: Sequence[int], device: torch.device) -> Tensor:
        """The places ``(l)`` of a map in this order, int64.

        Raises:
            ConfigError: the rule makes no permutation of the map's places.
        """
        sizes = tuple(int(size) for size in sizes)
        name = getattr(self.rule, "__name__", type(self.rule).__name__)
        found = self.rule(*sizes)
        # A graph's numbers are not known while it is traced; the same rule has been checked if it ever ran outside.
        if not (_torch.is_traced() and isinstance(found, Tensor)):
            found = _permutation(found, sizes, f"scan order made by {name!r}")
        return (found.flip(0) if self.reverse else found).to(device, torch.int64)


#: An order of reading a map.
ScanOrder: TypeAlias = "AxisOrder | IndexOrder | RuleOrder"


def to_sequence(t: Tensor, order: ScanOrder, ndim: int, first: int | None = None) -> Tensor:
    """Read a map's axes in an order: the ``ndim`` from ``first`` on, or the last ones, become one."""
    first = t.dim() - ndim if first is None else first
    return _way(order, t.shape[first : first + ndim], t.device).read(t, first)


def from_sequence(sequence: Tensor, order: ScanOrder, sizes: Sequence[int], first: int = -1) -> Tensor:
    """Put a sequence along axis ``first`` back into its places, ``sizes``: the inverse of `to_sequence`."""
    return _way(order, sizes, sequence.device).put(sequence, sizes, first % sequence.dim())


def _way(order: ScanOrder, sizes: Sequence[int], device: torch.device) -> Way:
    if isinstance(order, AxisOrder):
        return Way(order.axes, order.flips)
    return Way(tuple(range(len(sizes))), (), places_of(order, sizes, device))


def loops_of(orders: Sequence[AxisOrder], ndim: int) -> tuple[list[int], list[int]]:
    """The axes of each order's loops, one order after the other, and as many flips, 1 for an axis read from its end."""
    axes = [axis for order in orders for axis in order.axes]
    return axes, [int(axis in order.flips) for order in orders for axis in range(ndim)]


def check_axes(x: Tensor, orders: Sequence[ScanOrder], refuse: Callable[[str, Tensor, str], InputError]) -> None:
    """Make sure that ``x (b, *sizes, d)`` is a map of as many axes as the orders have.

    Args:
        x: the map.
        orders: the directions.
        refuse: makes the error from an argument's name, itself, and what it should be.

    Raises:
        InputError: what ``refuse`` makes.
    """
    axes = {len(order.axes) for order in orders if isinstance(order, AxisOrder)}
    ndim = x.dim() - 2
    if ndim < 1 or min(x.shape[1:-1]) < 1 or not axes <= {ndim}:
        named = f" of {' or '.join(map(str, sorted(axes)))} axes" if axes else ""
        raise refuse("x", x, f"(b, *sizes, d) with sizes ≥ 1{named}, as the orders have")


def places_of(order: ScanOrder, sizes: Sequence[int], device: torch.device) -> Tensor:
    """``order.places``, made once for each size and device outside of graphs."""
    return _kept_places(order, tuple(sizes), device) if _torch.is_plain() else order.places(sizes, device)


def places_of_all(orders: tuple[ScanOrder, ...], sizes: Sequence[int], device: torch.device) -> Tensor:
    """The places of several directions as kernels take them, ``(k, l)``, int32; made once for each size and device."""
    if _torch.is_plain():
        return _kept_table(orders, tuple(sizes), device)
    return torch.stack([order.places(sizes, device) for order in orders]).to(torch.int32)


@functools.lru_cache(256)
def _kept_places(order: ScanOrder, sizes: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is made in inference mode cannot be kept for backward later
        return order.places(sizes, device)


@functools.lru_cache(64)
def _kept_table(orders: tuple[ScanOrder, ...], sizes: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.stack([order.places(sizes, device) for order in orders]).to(torch.int32)


def _permutation(indices: Tensor | Sequence[int], sizes: Sequence[int], what: str) -> Tensor:
    """``indices`` as a tensor ``(l)``, int64, on the CPU, if they are a permutation of the places of a map."""
    count = math.prod(sizes)
    found = torch.as_tensor(indices).cpu()
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool or found.dim() != 1:
        raise ConfigError(
            f"{what} must be a list of whole numbers, given {found.dtype} of shape {tuple(found.shape)}; flatten it"
        )
    if len(found) != count:
        raise ConfigError(f"{what} lists {len(found)} places, but a map of {_by(sizes)} has {count}")
    found = found.to(torch.int64)
    if count and not 0 <= int(found.min()) <= int(found.max()) < count:
        raise ConfigError(
            f"{what} lists places {int(found.min())} … {int(found.max())}, but those of a map of {_by(sizes)} are 0 … "
            f"{count - 1}"
        )
    times = torch.bincount(found, minlength=count)
    if count and int(times.max()) > 1:
        twice, missing = int(times.argmax()), int(times.argmin())
        raise ConfigError(
            f"{what} is no permutation: place {twice} comes {int(times[twice])} times and place {missing} never; list "
            "each once"
        )
    return found


def _by(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))
