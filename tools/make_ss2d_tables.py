"""Write csrc/ss2d_tables.h: the polynomials that the AVX-512 kernels of the fused scan look up. Needs numpy.

Softplus in powers of two is max(P, 0) + log2(1 + 2^-|P|). With -|P| = r + f, r the nearest integer, the second term is
2^r w(f), where w(f) = log2(1 + 2^(r + f)) / 2^r is smooth: one polynomial for each r. From r = -15 down it tends to a
limit and is taken for one function, halfway there, which is off by at most a quarter of 2^-|P|.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

Function = Callable[[np.ndarray], np.ndarray]
ENTRIES = 16  # what a permutation of one AVX-512 register looks up; twice as many of two
wide = np.longdouble


def fit(function: Function, weight: Function, half_width: float, degree: int) -> tuple[np.ndarray, float]:
    """Coefficients in float32, lowest first, that make ``|error| * weight`` nearly least at its largest; and that."""
    x = (half_width * np.cos((np.arange(600) + 0.5) * np.pi / 600)).astype(wide)
    powers = np.stack([x**i for i in range(degree + 1)], axis=1)
    fixed = np.zeros(degree + 1, dtype=wide)
    for term in range(degree + 1):  # round one coefficient at a time, and let the later ones make up for it
        rest, emphasis, best = function(x) - powers[:, :term] @ fixed[:term], np.ones_like(x), np.inf
        for _ in range(60):  # Lawson's iteration: weighted least squares that tend to the minimax fit
            scale = np.sqrt(emphasis) * weight(x)
            solution = np.linalg.lstsq(
                (powers[:, term:] * scale[:, None]).astype(float), (rest * scale).astype(float), rcond=None
            )[0]
            error = np.abs((powers[:, term:] @ solution.astype(wide) - rest) * weight(x))
            if error.max() < best:
                best, fixed[term] = error.max(), wide(np.float32(solution[0]))
            emphasis *= error / error.max() + 1e-3
            emphasis /= emphasis.mean()
    largest = np.abs((powers @ fixed - function(x)) * weight(x)).max()
    return fixed.astype(np.float32), float(largest)


def softplus_terms(degree: int) -> tuple[np.ndarray, float]:
    """``[degree + 1][ENTRIES]``, entry i for r = i - 15; and the largest relative error of the fits."""
    columns, errors = [], []
    for r in range(1 - ENTRIES, 1):

        def w(f: np.ndarray, r: int = r) -> np.ndarray:
            z = np.exp2(r - (r == 1 - ENTRIES) + f)
            return np.log1p(z) / z * np.exp2(f) / np.log(wide(2))

        terms, error = fit(w, lambda f, w=w: 1 / w(f), 0.5, degree)
        columns.append(terms)
        errors.append(error)
    return np.stack(columns, axis=1), max(errors)


def array(name: str, values: np.ndarray) -> str:
    """A C++ array of one or two axes."""

    def row(numbers: np.ndarray) -> str:
        words = [float(v).hex().replace("000000p", "p") + "f" for v in numbers]
        lines = [", ".join(words[i : i + 6]) for i in range(0, len(words), 6)]
        return "{\n    " + ",\n    ".join(lines) + "}"

    body = row(values) if values.ndim == 1 else "{" + ", ".join(row(v) for v in values) + "}"
    shape = "".join(f"[{n}]" for n in values.shape)
    return f"alignas(64) constexpr float {name}{shape} = {body};\n"


def main() -> None:
    """Write the file."""
    fast, fast_error = softplus_terms(5)
    fine, fine_error = softplus_terms(6)
    fraction = np.exp2(np.arange(2 * ENTRIES) / wide(2 * ENTRIES)).astype(np.float32)
    slope, slope_error = fit(
        lambda f: np.expm1(f * np.log(wide(2))) / f, lambda f: np.abs(f) / np.exp2(f), 0.25 / ENTRIES, 1
    )
    text = f"""// Written by tools/make_ss2d_tables.py, which says what these are.
#pragma once

namespace vmamba {{
namespace VMAMBA_ISA {{
namespace {{

// Relative error {fast_error:.1e}; entry i is for r = i - {ENTRIES - 1}.
{array("softplus_terms", fast)}
// Relative error {fine_error:.1e}: for backward, which takes the derivative too.
{array("softplus_fine_terms", fine)}
// 2^(i / {2 * ENTRIES}), and (2^f - 1) / f for |f| <= 1 / {4 * ENTRIES}, whose error is {slope_error:.1e} of 2^f.
{array("exp2_fraction", fraction)}{array("exp2_terms", slope)}
}}  // namespace
}}  // namespace VMAMBA_ISA
}}  // namespace vmamba
"""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "csrc" / "ss2d_tables.h"
    path.write_text(text)


if __name__ == "__main__":
    main()
