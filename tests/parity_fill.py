"""Weights and inputs of the parity data, drawn from a name, a shape and a seed, so that none has to be stored."""

import hashlib
import math

import numpy as np


def _standard_normal(name, shape, seed):
    """Box-Muller over PCG64, whose seed is the first eight bytes (little-endian) of the SHA-256 of ``seed:name``."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    uniform = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))
    count = math.prod(shape)
    half = (count + 1) // 2
    radius = np.sqrt(-2.0 * np.log(1.0 - uniform.random(half)))
    angle = 2 * math.pi * uniform.random(half)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count].reshape(shape)


def fill(name, shape, seed=0):
    """The array that every parity case has under ``name``; float32, of a scale that suits the name's role."""
    shape = tuple(int(size) for size in shape)
    role = name.rpartition(".")[2]
    if role == "num_batches_tracked":
        return np.zeros(shape, dtype=np.int64)
    z = _standard_normal(name, shape, seed)
    if name == "input":
        value = z
    elif role == "running_var":
        value = 1.0 + 0.1 * np.abs(z)
    elif role in ("A_logs", "A_log"):  # near log(1..n)
        states = shape[-1] if len(shape) > 1 else 1
        value = np.log(np.arange(1, states + 1, dtype=np.float64)) + 0.1 * z
    elif role in ("Ds", "D") or (len(shape) <= 1 and role not in ("bias", "dt_projs_bias")):
        value = 1.0 + 0.1 * z
    elif role == "dt_projs_bias":  # the inverse softplus of a step that is log-uniform in [1e-3, 0.1]
        low, high = math.log(0.001), math.log(0.1)
        step = np.exp((0.5 + 0.25 * np.clip(z, -2, 2)) * (high - low) + low)
        value = step + np.log(-np.expm1(-step))
    elif role == "bias":
        value = 0.02 * z
    else:  # matrices
        value = z / math.sqrt(max(math.prod(shape[1:]), 1))
    return value.astype(np.float32)
