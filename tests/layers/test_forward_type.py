"""Forward-type strings: what each asks for, postfixes in any order, and errors that name the word."""

import itertools

import pytest

from vmamba import SS2D, ConfigError
from vmamba.layers import ForwardType

BASES = ["v0", "v0seq", "v01", "v02", "v03", "v04", "v05", "v2", "v3", "v051d", "v052d", "v052dc", "v052d3"]
SCAN_MODES = {"v051d": "unidi", "v052d": "bidi", "v052d3": "rot2d", "v052dc": "cascade2d"}


@pytest.mark.parametrize("base", BASES)
def test_bases(base):
    kind = ForwardType.parse(base)
    assert kind.scan_mode == SCAN_MODES.get(base, "cross2d")
    assert kind.cast_float32 == (base in ("v0", "v0seq", "v01", "v02", "v03", "v2"))
    assert kind.family == ("v0" if base in ("v0", "v0seq") else "v2")
    assert (kind.gate, kind.gate_act, kind.out_act, kind.out_norm) == (True, True, False, "ln")


@pytest.mark.parametrize("words", list(itertools.permutations(["no32", "oact", "noz", "oncnorm"])), ids="_".join)
def test_postfixes_come_in_any_order(words):
    kind = ForwardType.parse("_".join(["v01", *words]))
    assert kind == ForwardType("v2", "cross2d", False, False, True, True, "cnorm")


@pytest.mark.parametrize(
    ("text", "named", "also"),
    [
        ("v06", "'v06'", "v05"),
        ("xv1a", "'xv1a'", "v01"),
        ("xv3a_mul_act", "'xv3a'", "legal"),
        ("v31d_noz", "'v31d'", "v051d"),
        ("m0", "'m0'", "give 'm0_noz'"),
        ("m0_oact", "'m0'", "give 'm0_oact_noz'"),
        ("v05_nozz", "'_nozz'", "_nozact"),
        ("v05_ocov", "'_ocov'", "_ondwconv3"),
        ("v05_noz_noz", "'_noz'", "once"),
        ("v05_noz_nozact", "'_nozact'", "drop one"),
        ("v05_onnone_oncnorm", "'_oncnorm'", "at most"),
        ("v0_noz", "'v0'", "v01"),
        ("", "''", "legal"),
    ],
)
def test_unknown_words_are_named_with_the_legal_ones(text, named, also):
    with pytest.raises(ConfigError) as caught:
        SS2D(d_model=8, forward_type=text)
    assert named in str(caught.value)
    assert also in str(caught.value)
    assert "\n" not in str(caught.value)
