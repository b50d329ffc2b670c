"""Scan orders: how an image becomes four sequences, and how four sequences become one image again.

VMamba (arXiv 2401.10166, §4.2) reads an image along rows, along columns, and along both reversed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vmamba.errors import ConfigError, InputError


class Direction(NamedTuple):
    """One order of reading an ``h × w`` map: flip it, then read along rows, or along columns if ``by_column``."""

    by_column: bool = False
    flip_h: bool = False
    flip_w: bool = False


_ROWS, _COLUMNS = Direction(), Direction(by_column=True)
_ROWS_BACK, _COLUMNS_BACK = Direction(False, True, True), Direction(True, True, True)

#: The four directions of each scan mode.
SCAN_MODES: dict[str, tuple[Direction, Direction, Direction, Direction]] = {
    "cross2d": (_ROWS, _COLUMNS, _ROWS_BACK, _COLUMNS_BACK),
    "unidi": (_ROWS, _ROWS, _ROWS, _ROWS),
    "bidi": (_ROWS, _ROWS, _ROWS_BACK, _ROWS_BACK),
    "rot2d": (_ROWS, Direction(True, False, True), _ROWS_BACK, Direction(True, True, False)),
}
# A table, not a function with a cache: of such a one torch.compile warns.
_READINGS = {
    mode: tuple(d.by_column + 2 * d.flip_h + 4 * d.flip_w for d in directions)
    for mode, directions in SCAN_MODES.items()
}
#: Upstream's numbers of the modes.
_MODE_OF_NUMBER = tuple(SCAN_MODES)


def to_sequence(image: Tensor, direction: Direction) -> Tensor:
    """Read ``image (…, h, w)`` in the order of ``direction``: ``(…, l)``."""
    flips = [axis for axis, flip in ((-2, direction.flip_h), (-1, direction.flip_w)) if flip]
    if flips:
        image = image.flip(flips)
    if direction.by_column:
        image = image.transpose(-2, -1)
    return image.flatten(-2)


def from_sequence(sequence: Tensor, direction: Direction, h: int, w: int) -> Tensor:
    """Put ``sequence (…, l)`` back into its places: ``(…, h, w)``; the inverse of `to_sequence`."""
    image: Tensor = sequence.unflatten(-1, (w, h) if direction.by_column else (h, w))
    if direction.by_column:
        image = image.transpose(-2, -1)
    flips = [axis for axis, flip in ((-2, direction.flip_h), (-1, direction.flip_w)) if flip]
    return image.flip(flips) if flips else image


def directions_of(scan_mode: str | int) -> tuple[Direction, ...]:
    """The directions of a scan mode by name, or by upstream's number 0-3.

    Raises:
        ConfigError: no such mode.
    """
    return SCAN_MODES[_name_of(scan_mode)]


def readings_of(scan_mode: str | int) -> tuple[int, ...]:
    """How the directions of a scan mode read the map, as kernels are told: 1 by column + 2 flip h + 4 flip w."""
    return _READINGS[_name_of(scan_mode)]


def _name_of(scan_mode: str | int) -> str:
    if isinstance(scan_mode, int) and 0 <= scan_mode < len(_MODE_OF_NUMBER):
        return _MODE_OF_NUMBER[scan_mode]
    if scan_mode not in SCAN_MODES:
        legal = ", ".join(f"{number} or {name!r}" for number, name in enumerate(_MODE_OF_NUMBER))
        raise ConfigError(f"scan mode {scan_mode!r} is unknown; legal: {legal}")
    return str(scan_mode)


def cross_scan(x: Tensor, scan_mode: str | int = "cross2d") -> Tensor:
    """Read ``x (b, d, h, w)`` in the four directions of ``scan_mode``: ``(b, 4, d, l)``."""
    return torch.stack([to_sequence(x, direction) for direction in directions_of(scan_mode)], dim=1)


def cross_merge(ys: Tensor, h: int, w: int, scan_mode: str | int = "cross2d") -> Tensor:
    """Sum the four sequences ``ys (b, 4, d, l)`` in the image's places: ``(b, d, h, w)``."""
    directions = directions_of(scan_mode)
    images = [from_sequence(ys[:, i], direction, h, w) for i, direction in enumerate(directions)]
    return images[0] + images[1] + images[2] + images[3]


def cross_scan_fn(
    x: Tensor,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    scans: str | int = 0,
    force_torch: bool = False,
) -> Tensor:
    """Cross-scan with upstream's name and flags.

    Args:
        x: ``(b, d, h, w)``, or ``(b, h, w, d)`` where ``in_channel_first`` is False; with ``one_by_one`` each
            direction has its own map: ``(b, 4, d, h, w)`` or ``(b, h, w, 4, d)``.
        in_channel_first: layout of ``x``.
        out_channel_first: layout of the result.
        one_by_one: whether ``x`` carries one map a direction.
        scans: 0 cross, 1 unidirectional, 2 bidirectional, 3 rotations.
        force_torch: accepted for upstream's sake; there is one implementation here.

    Returns:
        ``(b, 4, d, l)`` or ``(b, l, 4, d)``.
    """
    maps = _channel_first_maps("x", x, in_channel_first, per_direction=one_by_one)
    directions = directions_of(scans)
    picked = [maps[:, i] if one_by_one else maps for i in range(4)]
    sequences = [to_sequence(image, direction) for image, direction in zip(picked, directions, strict=True)]
    out = torch.stack(sequences, dim=1)  # (b, 4, d, l)
    return out if out_channel_first else out.permute(0, 3, 1, 2).contiguous()


def cross_merge_fn(
    y: Tensor,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    scans: str | int = 0,
    force_torch: bool = False,
) -> Tensor:
    """Cross-merge with upstream's name and flags: the transpose of `cross_scan_fn` called with the same flags.

    Args:
        y: ``(b, 4, d, h, w)``, or ``(b, h, w, 4, d)`` where ``out_channel_first`` is False; its two map axes,
            flattened, are each direction's sequence.
        in_channel_first: layout of the result, as it was of the scan's input.
        out_channel_first: layout of ``y``, as it was of the scan's output.
        one_by_one: keep the four directions apart instead of summing them.
        scans: as in `cross_scan_fn`.
        force_torch: accepted for upstream's sake.

    Returns:
        ``(b, d, l)`` or ``(b, l, d)``; with ``one_by_one`` ``(b, 4, d, l)`` or ``(b, l, 4, d)``.
    """
    maps = _channel_first_maps("y", y, out_channel_first, per_direction=True)
    h, w = maps.shape[-2:]
    sequences = maps.flatten(-2)
    if not one_by_one:
        merged = cross_merge(sequences, h, w, scans).flatten(-2)  # (b, d, l)
        return merged if in_channel_first else merged.transpose(1, 2).contiguous()
    images = [from_sequence(sequences[:, i], direction, h, w) for i, direction in enumerate(directions_of(scans))]
    kept = torch.stack(images, dim=1).flatten(-2)  # (b, 4, d, l)
    return kept if in_channel_first else kept.permute(0, 3, 1, 2).contiguous()


def _channel_first_maps(name: str, t: Tensor, channel_first: bool, *, per_direction: bool) -> Tensor:
    """View ``t`` as ``(b, d, h, w)`` or, per direction, ``(b, 4, d, h, w)``, or say what is wrong with its shape."""
    if per_direction:
        want = "(b, 4, d, h, w)" if channel_first else "(b, h, w, 4, d)"
        if t.dim() != 5 or t.shape[1 if channel_first else 3] != 4:
            raise InputError(f"{name} has shape {tuple(t.shape)}, want {want}")
        return t if channel_first else t.permute(0, 3, 4, 1, 2)
    if t.dim() != 4:
        raise InputError(
            f"{name} has shape {tuple(t.shape)}, want {'(b, d, h, w)' if channel_first else '(b, h, w, d)'}"
        )
    return t if channel_first else t.permute(0, 3, 1, 2)
