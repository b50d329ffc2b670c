"""Upstream's forward-type strings, parsed once into a typed value.

A string is a base name and postfixes, such as ``v05_noz_onnone``. Upstream reads the postfixes in one order only and
lets an unknown word silently become ``None``; here they come in any order and an unknown word is an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from vmamba.errors import ConfigError, nearest

OutNorm = Literal["ln", "none", "dwconv3", "cnorm", "softmax", "sigmoid"]

#: Base name -> (scan mode, whether the scan's inputs are cast to float32).
_BASES: dict[str, tuple[str, bool]] = {
    "v0": ("cross2d", True),
    "v0seq": ("cross2d", True),
    "v01": ("cross2d", True),
    "v02": ("cross2d", True),
    "v03": ("cross2d", True),
    "v04": ("cross2d", False),
    "v05": ("cross2d", False),
    "v2": ("cross2d", True),
    "v3": ("cross2d", False),
    "v051d": ("unidi", False),
    "v052d": ("bidi", False),
    "v052d3": ("rot2d", False),
    "v052dc": ("cascade2d", False),
    "m0": ("cross2d", False),
}
_OUT_NORMS: dict[str, OutNorm] = {
    "onnone": "none",
    "ondwconv3": "dwconv3",
    "oncnorm": "cnorm",
    "onsoftmax": "softmax",
    "onsigmoid": "sigmoid",
}
_POSTFIXES = ("no32", "oact", "noz", "nozact", *_OUT_NORMS)


@dataclass(frozen=True)
class ForwardType:
    """What a forward-type string asks of an SS2D layer."""

    #: v0: always gated, biased 3×3 convolution, SiLU, init v0. m0: Mamba-2's scan, never gated.
    family: Literal["v0", "v2", "m0"]
    scan_mode: str  # cross2d, unidi, bidi, rot2d or cascade2d
    cast_float32: bool  # the scan's inputs are cast to float32
    gate: bool  # in_proj gives x and z, and the output is multiplied by z
    gate_act: bool  # z goes through the activation
    out_act: bool  # GELU after the output norm
    out_norm: OutNorm

    @classmethod
    def parse(cls, text: str) -> ForwardType:
        """Parse a forward-type string.

        Raises:
            ConfigError: an unknown base or postfix, a repeated one, or two that exclude each other; names the word and
                lists the legal ones.
        """
        base, *words = str(text).split("_")
        if base not in _BASES:
            raise ConfigError(
                f"forward_type {text!r}: unknown type {base!r}; legal: {', '.join(_BASES)}"
                f"{_meant(text) or nearest(base, _BASES)}"
            )
        for word in words:
            if word not in _POSTFIXES:
                legal = ", ".join("_" + postfix for postfix in _POSTFIXES)
                raise ConfigError(
                    f"forward_type {text!r}: unknown postfix '_{word}'; legal, in any order: {legal}"
                    f"{_meant(text) or nearest('_' + word, ['_' + postfix for postfix in _POSTFIXES])}"
                )
            if words.count(word) > 1:
                raise ConfigError(f"forward_type {text!r}: postfix '_{word}' is repeated; give it once")
        out_norms = [word for word in words if word in _OUT_NORMS]
        if len(out_norms) > 1:
            raise ConfigError(
                f"forward_type {text!r}: one output norm at most, given '_{out_norms[0]}', '_{out_norms[1]}'"
            )
        if "noz" in words and "nozact" in words:
            raise ConfigError(
                f"forward_type {text!r}: '_noz' drops the gate, so '_nozact' has nothing to act on; drop one"
            )
        family: Literal["v0", "v2", "m0"] = "v0" if base in ("v0", "v0seq") else "m0" if base == "m0" else "v2"
        if family == "v0" and words:
            raise ConfigError(f"forward_type {text!r}: {base!r} takes no postfixes; use 'v01' for the same with them")
        if family == "m0" and "noz" not in words:
            raise ConfigError(f"forward_type {text!r}: 'm0', Mamba-2's scan, has no gate; give {f'{text}_noz'!r}")
        scan_mode, cast_float32 = _BASES[base]
        return cls(
            family=family,
            scan_mode=scan_mode,
            cast_float32=cast_float32 and "no32" not in words,
            gate="noz" not in words,
            gate_act="nozact" not in words,
            out_act="oact" in words,
            out_norm=_OUT_NORMS[out_norms[0]] if out_norms else "ln",
        )


def _meant(text: object) -> str:
    """``"; did you mean 'v05_noz'?"`` for a text that only cases and separators keep from being legal, else nothing."""
    squeezed = re.sub("[^a-z0-9]", "", str(text).lower())
    for base in sorted(_BASES, key=len, reverse=True):
        words = _postfixes_of(squeezed.removeprefix(base)) if squeezed.startswith(base) else None
        if words is not None:
            return f"; did you mean {'_'.join([base, *words])!r}?"
    return ""


def _postfixes_of(squeezed: str) -> list[str] | None:
    """The postfixes that a text is made of, or None."""
    if not squeezed:
        return []
    for word in _POSTFIXES:
        rest = _postfixes_of(squeezed.removeprefix(word)) if squeezed.startswith(word) else None
        if rest is not None:
            return [word, *rest]
    return None
