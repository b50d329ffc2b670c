"""The selective scan on a GPU: every direction has its own channels and its own step, and time lies along memory."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vmamba.kernels.triton.scans.launch import Inputs, Scan, Workspace, plan_of
from vmamba.kernels.triton.scans.plan import Pairs, Walk, group_of

_ONWARD = Pairs((Walk(0, 0, 0, 1, 0), Walk(0, 0, 0, 1, 0)), backwards=0)


def saved_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    """Where the kernels keep states for backward: before every group of steps, ``(groups + 1, b, k, n, d)``.

    There is room for one more, so that no size is 1, for which compilers make graphs of their own.
    """
    return (u.shape[2] - 1) // group_of(A.shape[1]) + 2, u.shape[0], A.shape[1], u.shape[1]


def _by_place(t: Tensor, directions: int) -> Tensor:
    """View ``(b, k·d, l)`` as ``(b, k, l, d)``."""
    by_place: Tensor = t.unflatten(1, (directions, -1)).transpose(2, 3)
    return by_place


def _by_state(t: Tensor, directions: int) -> Tensor:
    """View ``(b, k·d, n)`` as ``(b, k, n, d)``."""
    return _by_place(t, directions)


def _inputs(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None
) -> Inputs:
    directions = B.shape[1]
    maps = _by_place(u, directions), _by_place(delta, directions)
    return Inputs(*maps, None, delta_bias, A, B.transpose(2, 3), C.transpose(2, 3), D)


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    y: Tensor,
    saved: Tensor | None,
    workspace: Workspace,
    *,
    initial: Tensor | None = None,
    last: Tensor | None = None,
) -> str:
    """Fill ``y (b, k·d, l)``, float32, and the states that backward starts from; not for empty tensors.

    Args:
        u, delta, A, B, C, D, delta_bias, delta_softplus: as of `vmamba.scan.selective_scan`; ``A``, ``D`` and
            ``delta_bias`` float32.
        y: contiguous.
        saved: of `saved_shape`, contiguous, or None where nothing is to be kept.
        workspace: makes memory for this call.
        initial: the state to begin with, ``(b, k·d, n)``, float32, or None for zero.
        last: memory for the state at the end, likewise, or None.

    Returns:
        what ran.
    """
    inputs, out, directions = _inputs(u, delta, A, B, C, D, delta_bias), _by_place(y, B.shape[1]), B.shape[1]
    scan = Scan(inputs, _ONWARD, delta_softplus, plan_of(u, A, directions, 0))
    run = scan.forward(out, save=saved is not None, first=initial is not None, last=last is not None)
    first = None if initial is None else _by_state(initial, directions).contiguous()
    end = None if last is None else workspace(last.numel()).view(_by_state(last, directions).shape)
    detail = run(inputs, out, saved, workspace, first, end)
    if last is not None and end is not None:
        _by_state(last, directions).copy_(end)
    return detail


def backward(
    dy: Tensor,
    saved: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    gradients: Sequence[Tensor | None],
    workspace: Workspace,
    *,
    initial: Tensor | None = None,
    dlast: Tensor | None = None,
    dinitial: Tensor | None = None,
) -> None:
    """Fill the gradients of the inputs; other arguments as `forward`'s.

    Args:
        dy: ``(b, k·d, l)``, in any layout.
        gradients: of u, delta, A, B, C, D, delta_bias, contiguous, in their shapes and dtypes; None where those are.
        initial: not looked at, forward has kept it.
        dlast: of the last state, ``(b, k·d, n)``, float32, or None where nobody asked for states.
        dinitial: memory for the gradient of initial, likewise, or None.
    """
    del initial
    du, ddelta, dA, dB, dC, dD, ddelta_bias = gradients
    assert du is not None
    assert ddelta is not None
    assert dB is not None
    assert dC is not None
    states, directions = A.shape[1], B.shape[1]
    inputs, of_y = _inputs(u, delta, A, B, C, D, delta_bias), _by_place(dy, directions)
    scan = Scan(inputs, _ONWARD, delta_softplus, plan_of(u, A, directions, 0))
    # Gradients to which every block of states adds are added up in float32.
    several = states > scan.plan.backward.states
    sums = [_by_place(workspace(t.numel()).view(t.shape) if several else t, directions) for t in (du, ddelta)]
    run = scan.backward(of_y, sums[0], sums[1], states=dlast is not None)
    of_last = None if dlast is None else _by_state(dlast, directions).contiguous()
    of_first = None if of_last is None else workspace(of_last.numel()).view(of_last.shape)
    found = run(inputs, of_y, saved, sums[0], sums[1], workspace, of_last, of_first)
    if dinitial is not None and of_first is not None:
        _by_state(dinitial, directions).copy_(of_first)
    if several:
        for gradient, total in zip((du, ddelta), sums, strict=True):
            _by_place(gradient, directions).copy_(total)
    of_B, of_C = found.columns.sum(0).split(states, dim=3)  # (b, l, k, n)
    dB.copy_(of_B.permute(0, 2, 3, 1))
    dC.copy_(of_C.permute(0, 2, 3, 1))
    found.fill(None, ddelta_bias, dA, dD)
