"""Timing in turns: a machine that is busy for a while slows both sides."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["VOCABULARY", "Line", "in_a_fresh_process", "peak_megabytes", "seconds", "turns", "vocabulary_laws"]

VOCABULARY = 151_936
Line = dict[str, object]


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def turns(ours: Callable[[], object], peer: Callable[[], object], repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of both, taking turns after one warm-up each."""
    ours(), peer()
    pairs = [(seconds(ours), seconds(peer)) for _ in range(repeats)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def in_a_fresh_process(code: str) -> float:
    """A number that only a new process can give: what `code` prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def peak_megabytes() -> float:
    """Peak resident memory of this process alone (Linux; `getrusage` would count its parent's)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def vocabulary_laws() -> tuple[jax.Array, jax.Array]:
    z = np.random.default_rng(0).normal(size=(2, VOCABULARY)) * 2.5
    log_p, log_q = jax.nn.log_softmax(jnp.asarray([z[0], 0.8 * z[0] + 0.2 * z[1]], jnp.float32))
    return log_p, log_q
