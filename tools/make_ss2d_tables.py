"""Write csrc/ss2d/ss2d_tables.h: the polynomials that the AVX-512 kernels of the fused scan look up. Needs numpy.

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


def fit(
    function: Function, half_width: float, degree: int, *, weight: Function | None = None, slope: Function | None = None
) -> tuple[np.ndarray, float]:
    """Fit a polynomial so that its largest weighted error is nearly least; return it and that error.

    Args:
        function: what to fit, on ``[-half_width, half_width]``.
        half_width: see there.
        degree: of the polynomial.
        weight: what errors are multiplied by; None for the reciprocal of the function, that is relative errors.
        slope: the function's derivative, if relative errors of the polynomial's derivative count too.

    Returns:
        The coefficients in float32, lowest first, and the largest weighted error.
    """
    x = (half_width * np.cos((np.arange(600) + 0.5) * np.pi / 600)).astype(wide)
    exponents = np.arange(degree + 1)
    basis, target = x[:, None] ** exponents, function(x)
    weights = 1 / target if weight is None else weight(x)
    if slope is not None:
        basis = np.concatenate([basis, exponents * x[:, None] ** np.maximum(exponents - 1, 0)])
        target, weights = np.concatenate([target, slope(x)]), np.concatenate([weights, 1 / slope(x)])
    fixed = np.zeros(degree + 1, dtype=wide)
    for term in range(degree + 1):  # round one coefficient at a time, and let the later ones make up for it
        rest, emphasis, best = target - basis[:, :term] @ fixed[:term], np.ones_like(target), np.inf
        for _ in range(60):  # Lawson's iteration: weighted least squares that tend to the minimax fit
            scale = np.sqrt(emphasis) * weights
            solution = np.linalg.lstsq(
                (basis[:, term:] * scale[:, None]).astype(float), (rest * scale).astype(float), rcond=None
            )[0]
            error = np.abs((basis[:, term:] @ solution.astype(wide) - rest) * weights)
            if error.max() < best:
                best, fixed[term] = error.max(), wide(np.float32(solution[0]))
            emphasis *= error / error.max() + 1e-3
            emphasis /= emphasis.mean()
    largest = np.abs((basis @ fixed - target) * weights).max()
    return fixed.astype(np.float32), float(largest)


def softplus_terms(degree: int, *, with_slope: bool) -> tuple[np.ndarray, float]:
    """``[degree + 1][ENTRIES]``, entry i for r = i - 15; and the largest relative error of the fits."""
    columns, errors = [], []
    for r in range(1 - ENTRIES, 1):
        power = np.exp2(wide(r - (r == 1 - ENTRIES)))  # for the last entry half, see above

        def w(f: np.ndarray, power: np.floating = power) -> np.ndarray:
            return np.log1p(power * np.exp2(f)) / power / np.log(wide(2))

        def slope(f: np.ndarray, power: np.floating = power) -> np.ndarray:
            return np.exp2(f) / (1 + power * np.exp2(f))

        terms, error = fit(w, 0.5, degree, slope=slope if with_slope else None)
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
    fast, fast_error = softplus_terms(5, with_slope=False)
    fine, fine_error = softplus_terms(6, with_slope=True)
    fraction = np.exp2(np.arange(2 * ENTRIES) / wide(2 * ENTRIES)).astype(np.float32)
    slope, slope_error = fit(
        lambda f: np.expm1(f * np.log(wide(2))) / f, 0.25 / ENTRIES, 1, weight=lambda f: np.abs(f) / np.exp2(f)
    )
    text = f"""// Written by tools/make_ss2d_tables.py, which says what these are.
#pragma once

namespace vmamba {{
namespace VMAMBA_ISA {{
namespace {{

// Relative error {fast_error:.1e}; entry i is for r = i - {ENTRIES - 1}.
{array("softplus_terms", fast)}
// Relative error {fine_error:.1e}, of the derivative too, which backward takes.
{array("softplus_fine_terms", fine)}
// 2^(i / {2 * ENTRIES}), and (2^f - 1) / f for |f| <= 1 / {4 * ENTRIES}, whose error is {slope_error:.1e} of 2^f.
{array("exp2_fraction", fraction)}{array("exp2_terms", slope)}
}}  // namespace
}}  // namespace VMAMBA_ISA
}}  // namespace vmamba
"""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "csrc" / "ss2d" / "ss2d_tables.h"
    path.write_text(text)


if __name__ == "__main__":
    main()
