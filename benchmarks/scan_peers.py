"""`vmamba bench scan` with peers: mambapy's parallel scan, and JAX's `lax.scan` and `lax.associative_scan`.

    python benchmarks/scan_peers.py [the options of `vmamba bench scan`]

A peer that is not installed is named as absent. Peers know `selective_scan` in float32 on the CPU. JAX takes its
number of threads from the processors that this process may use, so on Linux the process is bound to as many as
`--threads` says before JAX is imported.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn.functional import softplus

from vmamba.bench.scan import ScanCase, run_bench_scan
from vmamba.bench.timing import Candidate
from vmamba.cli.allocator import keep_freed_memory
from vmamba.cli.bench import BENCH, bench_scan_config
from vmamba.errors import VMambaError


def obstacle(case: ScanCase, package: str) -> str:
    """Why a peer cannot take part, or an empty string."""
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed (pip install {package})"
    if case.op != "selective_scan" or case.dtype != torch.float32 or case.device.type != "cpu":
        return "written here for selective_scan in float32 on the CPU"
    return ""


def mambapy_pscan(case: ScanCase) -> Candidate | str:
    """The recurrence by `mambapy.pscan`; what surrounds it is plain PyTorch."""
    if why := obstacle(case, "mambapy"):
        return why
    from mambapy.pscan import pscan

    k = case.size.k

    def scan(inputs: dict[str, Tensor]) -> Tensor:
        u, delta, A, B, C, D, bias = inputs.values()
        channels = u.shape[1]
        step = softplus(delta + bias[:, None]).transpose(1, 2)  # (b, l, k·d)
        # B and C, grouped by direction, for every channel: (b, l, k·d, n)
        B, C = (t.permute(0, 3, 1, 2).repeat_interleave(channels // k, dim=2) for t in (B, C))
        decay = torch.exp(step[..., None] * A)
        h = pscan(decay, step[..., None] * B * u.transpose(1, 2)[..., None])
        y = (h * C).sum(-1)
        return y.transpose(1, 2) + D[:, None] * u

    return case.torch_candidate("mambapy pscan", scan)


def jax_scan(case: ScanCase) -> Candidate | str:
    """`jax.lax.scan` over the steps, jitted: a sequential loop that XLA compiles."""
    if why := obstacle(case, "jax"):
        return why
    import jax
    import jax.numpy as jnp

    def states(step: Any, u: Any, A: Any, B: Any, C: Any) -> Any:
        def advance(h: Any, now: Any) -> tuple[Any, Any]:  # h (b, k, d, n)
            step_t, u_t, B_t, C_t = now  # (b, k, d) twice, (b, k, n) twice
            h = jnp.exp(step_t[..., None] * A) * h + (step_t * u_t)[..., None] * B_t[:, :, None]
            return h, jnp.einsum("bkdn,bkn->bkd", h, C_t)

        along = tuple(jnp.moveaxis(t, -1, 0) for t in (step, u, B, C))
        _, y = jax.lax.scan(advance, jnp.zeros((*u.shape[:3], A.shape[-1])), along)
        return jnp.moveaxis(y, 0, -1)

    return jax_candidate("JAX lax.scan", case, states)


def jax_scan_of_products(case: ScanCase) -> Candidate | str:
    """`jax.lax.scan` again, jitted, with decays and inputs of all steps computed before: the form that most ports have."""
    if why := obstacle(case, "jax"):
        return why
    import jax
    import jax.numpy as jnp

    def states(step: Any, u: Any, A: Any, B: Any, C: Any) -> Any:
        def advance(h: Any, now: Any) -> tuple[Any, Any]:  # all (b, k, d, n), but C (b, k, n)
            decay, inputs, C_t = now
            h = decay * h + inputs
            return h, jnp.einsum("bkdn,bkn->bkd", h, C_t)

        decay = jnp.exp(step[..., None] * A[:, :, None])  # (b, k, d, l, n)
        inputs = (step * u)[..., None] * jnp.swapaxes(B, 2, 3)[:, :, None]
        along = jnp.moveaxis(decay, 3, 0), jnp.moveaxis(inputs, 3, 0), jnp.moveaxis(C, -1, 0)
        _, y = jax.lax.scan(advance, jnp.zeros((*u.shape[:3], A.shape[-1])), along)
        return jnp.moveaxis(y, 0, -1)

    return jax_candidate("JAX lax.scan of products", case, states)


def jax_associative_scan(case: ScanCase) -> Candidate | str:
    """`jax.lax.associative_scan` over the steps, jitted: parallel over l, all states in memory."""
    if why := obstacle(case, "jax"):
        return why
    import jax
    import jax.numpy as jnp

    def states(step: Any, u: Any, A: Any, B: Any, C: Any) -> Any:
        decay = jnp.exp(step[..., None] * A[:, :, None])  # (b, k, d, l, n)
        inputs = (step * u)[..., None] * jnp.swapaxes(B, 2, 3)[:, :, None]
        join = lambda left, right: (left[0] * right[0], left[1] * right[0] + right[1])  # noqa: E731
        _, h = jax.lax.associative_scan(join, (decay, inputs), axis=3)
        return jnp.einsum("bkdln,bknl->bkdl", h, C)

    return jax_candidate("JAX associative_scan", case, states)


def jax_candidate(name: str, case: ScanCase, states: Callable[..., Any]) -> Candidate:
    """A jitted candidate: steps and skip around ``states(step, u, A, B, C)``, and its gradients where asked for."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    k = case.size.k

    def scan(*tensors: Any) -> Any:
        u, delta, A, B, C, D, bias = tensors
        grouped = lambda t: t.reshape(t.shape[0], k, -1, t.shape[-1])  # noqa: E731  # (b, k, d, l)
        step = jax.nn.softplus(delta + bias[:, None])
        y = states(grouped(step), grouped(u), A.reshape(k, -1, A.shape[-1]), B, C)
        return y.reshape(u.shape) + D[:, None] * u

    def with_gradients(y_gradient: Any, *tensors: Any) -> tuple[Any, ...]:
        y, pull = jax.vjp(scan, *tensors)
        return (y, *pull(y_gradient))

    values = [jnp.asarray(t.detach().numpy()) for t in case.inputs.values()]
    if case.backward:
        compiled, arguments = jax.jit(with_gradients), [jnp.asarray(case.y_gradient.numpy()), *values]
    else:
        compiled, arguments = jax.jit(lambda *tensors: (scan(*tensors),)), values
    names = ["y", *(f"d{name}" for name in case.inputs)]

    def to_tensors(got: Any) -> dict[str, Tensor]:
        return {name: torch.from_numpy(np.array(t)) for name, t in zip(names, got, strict=False)}

    return case.candidate(
        name, lambda: jax.block_until_ready(compiled(*arguments)), to_tensors, "jitted; compiled before"
    )


PEERS = {
    "mambapy pscan": mambapy_pscan,
    "JAX lax.scan": jax_scan,
    "JAX lax.scan of products": jax_scan_of_products,
    "JAX associative_scan": jax_associative_scan,
}


def bench_scan(values: Any) -> int:
    """``vmamba bench scan`` with the peers."""
    shapes, config = bench_scan_config(values)
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[: config.threads or torch.get_num_threads()])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    return run_bench_scan(config, Console(highlight=False), shapes, PEERS)


if __name__ == "__main__":
    keep_freed_memory()  # as the command does
    try:
        sys.exit(replace(BENCH.commands["scan"], run=bench_scan)("bench scan", sys.argv[1:]))
    except VMambaError as error:
        sys.exit(f"scan_peers: error: {error}")
