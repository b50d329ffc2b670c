"""Muon: matrices are updated by the orthogonal matrix nearest to their momentum, everything else by AdamW.

Keller Jordan's optimizer (https://kellerjordan.github.io/posts/muon) with the step's size of arXiv 2502.16982, which
makes learning rate and weight decay of AdamW serve both. PyTorch's own takes two-dimensional parameters alone, and
timm's reads ``(directions, rows, columns)``, as the scan's projections are stored, as one matrix; both multiply in
bfloat16, on most CPUs forty times as slow as float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

#: In a group of parameters: whether they are matrices, to be made orthogonal.
MATRICES = "matrices"

#: a, b and c of odd quintics a·x + b·x³ + c·x⁵ that, one after another, draw every singular value from 0.003 to 1 into
#: about 0.8 … 1.2: each is the nearest to 1, in the worst case, on the interval that the ones before leave
#: (arXiv 2505.16932, §3). The same quintic in every step, Jordan's, takes five steps to 0.7 … 1.2.
#:
#: Beyond that interval they are steep: 1.001 would end at 10⁴. Hence the margin for rounding, of all but the last: each
#: is of x / 1.01.
_MARGIN = 1.01
_QUINTICS = (
    (8.3837 / _MARGIN, -24.7659 / _MARGIN**3, 18.3571 / _MARGIN**5),
    (4.0434 / _MARGIN, -3.0114 / _MARGIN**3, 0.5695 / _MARGIN**5),
    (3.5056 / _MARGIN, -2.6267 / _MARGIN**3, 0.5257 / _MARGIN**5),
    (2.4901, -1.8343, 0.4368),
)

#: An orthogonal m × n matrix times √max(m, n) has entries of size 1; AdamW's updates are of about this size.
_SIZE_OF_ADAMW = 0.2


class Muon(torch.optim.AdamW):
    """AdamW, but for groups of parameters that say ``matrices=True``.

    Such a parameter is a matrix, a convolution's kernel ``(out, in, …)``, taken as the matrix ``(out, in · …)``, or,
    with three dimensions, a stack of matrices, each of which is made orthogonal by itself.

    Args:
        groups: of parameters.
        momentum: of the matrices' gradients, Nesterov's.
        options: of `torch.optim.AdamW`; ``lr`` and ``weight_decay`` hold for the matrices too.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float = 0.95, **options: Any) -> None:
        super().__init__([{MATRICES: False, **group} for group in groups], **options)
        self.momentum = momentum
        # Whether fused AdamW divides by the loss scale, and leaves out an update, itself; the matrices' part does not.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; where ``found_inf`` is set, by a number that is not 0 on the device, weights and state stay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        for group in groups:
            if group[MATRICES]:
                self._update_matrices(group)
        try:
            self.param_groups = [group for group in groups if not group[MATRICES]]
            super().step()
        finally:
            self.param_groups = groups
        return loss

    def _update_matrices(self, group: dict[str, Any]) -> None:
        found = getattr(self, "found_inf", None)
        alike: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = {}
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                # Counted as AdamW does, which looks for it when states are loaded.
                state["step"] = torch.zeros((), device=parameter.device)
                state["momentum_buffer"] = torch.zeros_like(parameter)
            average, gradient = state["momentum_buffer"], parameter.grad
            state["step"] += 1 if found is None else (found == 0)
            if found is not None:
                gradient = torch.where(found != 0, average, gradient)
            average.lerp_(gradient, 1 - self.momentum)
            update = as_matrices(gradient.lerp(average, self.momentum))
            alike.setdefault(update.shape[1:], []).append((parameter, update))
        for (rows, columns), pairs in alike.items():
            updates = orthogonal(torch.cat([update for _, update in pairs]))
            rate = group["lr"] if found is None else group["lr"] * (found == 0)
            size = rate * _SIZE_OF_ADAMW * math.sqrt(max(rows, columns))
            sizes = [len(update) for _, update in pairs]
            for (parameter, _), part in zip(pairs, updates.split(sizes), strict=True):
                parameter.mul_(1 - rate * group["weight_decay"])
                parameter.sub_(size * part.reshape(parameter.shape).to(parameter.dtype))


def as_matrices(parameter: Tensor) -> Tensor:
    """A parameter, or what belongs to it, as a stack of matrices ``(number, rows, columns)``; see `Muon`."""
    return parameter if parameter.ndim == 3 else parameter.flatten(1)[None]


def orthogonal(matrices: Tensor) -> Tensor:
    """U·Vᵀ of each matrix's singular value decomposition, roughly: its singular values come to lie in 0.77 … 1.2.

    Those below 0.003 of the matrix's norm are raised by a factor of 300 at most.

    Args:
        matrices: ``(number, rows, columns)``.

    Returns:
        The same shape, in float32, on a GPU in bfloat16. A matrix of zeros stays one.
    """
    return made_orthogonal(matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32))


def made_orthogonal(matrices: Tensor) -> Tensor:
    """`orthogonal`, computed in the dtype of ``matrices``."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT if tall else matrices
    wide = wide / (_MARGIN * wide.norm(dim=(-2, -1), keepdim=True)).clamp_min(1e-7)
    # Squares of small singular values are lost to rounding. In whole float32 they decide nothing.
    exact = wide.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    by_squares = exact and wide.shape[-1] > 1.2 * wide.shape[-2]
    wide = _factor(wide @ wide.mT) @ wide if by_squares else _stepwise(wide)
    return wide.mT if tall else wide


def _stepwise(wide: Tensor) -> Tensor:
    for once, cubed, fifth in _QUINTICS:
        square = wide @ wide.mT
        higher = torch.baddbmm(square, square, square, beta=cubed, alpha=fifth)
        wide = torch.baddbmm(wide, higher, wide, beta=once)
    return wide


def _factor(square: Tensor) -> Tensor:
    """What `_stepwise` multiplies a matrix X by, from X·Xᵀ, so that the many columns count twice only."""
    factor = step = _even(square, _QUINTICS[0])
    for quintic in _QUINTICS[1:]:
        square = step @ square @ step
        step = _even(square, quintic)
        factor = step @ factor
    return factor


def _even(square: Tensor, quintic: tuple[float, float, float]) -> Tensor:
    """a·I + b·S + c·S² of ``square`` S, which times X is the quintic of X."""
    once, cubed, fifth = quintic
    polynomial = torch.baddbmm(square, square, square, beta=cubed, alpha=fifth)
    polynomial.diagonal(dim1=-2, dim2=-1).add_(once)
    return polynomial
