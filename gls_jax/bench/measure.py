"""Timing in turns: a machine that is busy for a while slows both sides."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import gls_jax

__all__ = [
    "VOCABULARY",
    "Line",
    "environment",
    "in_a_fresh_process",
    "peak_megabytes",
    "seconds",
    "turns",
    "vocabulary_laws",
]

VOCABULARY = 151_936
Line = dict[str, object]


def environment() -> Line:
    """What the figures of a run depend on beside the code."""
    return {
        "benchmark": "environment",
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "gls_jax": gls_jax.__version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def turns(
    ours: Callable[[], object], peer: Callable[[], object], repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of both, taking turns after one warm-up each."""
    ours(), peer()
    pairs = [(seconds(ours), seconds(peer)) for _ in range(repeats)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def in_a_fresh_process(code: str) -> float:
    """A number that only a new process can give: what `code` prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as text:
        return next(
            (line.split(":")[1].strip() for line in text if line.startswith("model name")), ""
        )
    return platform.processor()


def peak_megabytes() -> float:
    """Peak resident memory of this process alone (Linux; `getrusage` would count its parent's)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def vocabulary_laws() -> tuple[jax.Array, jax.Array]:
    z = np.random.default_rng(0).normal(size=(2, VOCABULARY)) * 2.5
    log_p, log_q = jax.nn.log_softmax(jnp.asarray([z[0], 0.8 * z[0] + 0.2 * z[1]], jnp.float32))
    return log_p, log_q
