"""What the scans' operators share in autograd: how a forward operator finds its backward operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vmamba.errors import BackendError

#: Why the operators that stand for plain operations refuse second derivatives.
IN_GRAPHS = 'compiled graphs of backend="torch" have no second derivatives; call it outside torch.compile'


def differentiable(name: str, forward: Any, backward: Any, tensors: int, outputs: int = 1, constants: int = 0) -> None:
    """Register the gradients of the operator ``vmamba::name``, which returns its output and what backward starts from.

    Args:
        name: without the namespace; the backward operator is called ``<name>_backward`` and takes the outputs'
            gradients, what was saved, and the forward operator's arguments but the last.
        forward: the operator, as `torch.library.custom_op` made it.
        backward: the backward operator; it has no derivative itself and says so.
        tensors: how many of the forward operator's arguments, from the first, are tensors or None. Its last is
            ``save``, whether backward will be asked for.
        outputs: how many of its results are outputs; the others are what backward starts from.
        constants: how many tensors without gradients follow the others.
    """
    kept_inputs = tensors + constants
    run_backward = getattr(torch.ops.vmamba, f"{name}_backward").default

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        if not inputs[-1]:
            raise BackendError(f"vmamba::{name} was called with save=False and needs gradients; pass save=True")
        saved = output[outputs:]
        ctx.mark_non_differentiable(*saved)
        ctx.save_for_backward(*saved, *inputs[:kept_inputs])
        ctx.options = inputs[kept_inputs:-1]

    def gradients(ctx: Any, *of_results: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        inputs = kept[len(kept) - kept_inputs :][:tensors]
        found = run_backward(*of_results[:outputs], *kept, *ctx.options)
        return *given(found, inputs), *(None,) * (constants + len(ctx.options) + 1)

    forward.register_autograd(gradients, setup_context=setup_context)
    no_second_derivatives(backward, 'the compiled kernels have no second derivatives; use backend="torch"')


def given(gradients: Sequence[Tensor], inputs: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The gradients, None in place of the empty ones of inputs that are None."""
    return tuple(None if t is None else g for g, t in zip(gradients, inputs, strict=True))


def results(gradients: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    """The gradients as an operator returns them, empty in place of None: the inverse of `given`."""
    return tuple(like.new_empty(0) if g is None else g.contiguous() for g in gradients)


def fake_results(inputs: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    """What `results` gives of these inputs' gradients, but for the numbers."""
    return tuple(like.new_empty((0,) if t is None else t.shape) for t in inputs)


def or_zeros(dy: Tensor | None, y: Tensor) -> Tensor:
    """The gradient of an output shaped as ``y``, zero where nothing depends on it."""
    return torch.zeros_like(y) if dy is None else dy


def no_second_derivatives(backward: Any, why: str = IN_GRAPHS) -> None:
    """Let a backward operator refuse to be differentiated itself, with the reason and the mend."""

    def refuse(ctx: Any, *_: Tensor) -> None:
        raise BackendError(why)

    backward.register_autograd(refuse)
