"""Alternating timing: a machine that is busy for a while slows both sides."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gls_jax

# Tokens in the vocabulary of Qwen2.5-0.5B, a large one.
VOCABULARY = 151_936

# The result of a benchmark: its name under `benchmark`, and figures that JSON can hold.
Line = dict[str, object]

# A benchmark takes the number of timed turns.
Benchmark = Callable[[int], Line]


def environment() -> Line:
    """What the figures depend on, apart from the code."""
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


def _processor() -> str:
    """Name of the processor; `platform` does not know it on Linux."""
    cpu_info = Path("/proc/cpuinfo")
    if not cpu_info.exists():
        return platform.processor()
    for line in cpu_info.read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return ""


def time_call(function: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start_time = time.perf_counter()
    function()
    return time.perf_counter() - start_time


def waiting(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """The call `function(*arguments)` that also waits for its result: JAX returns before that."""
    return lambda: jax.block_until_ready(function(*arguments))


def take_turns(
    ours: Callable[[], object], peer: Callable[[], object], repeats: int
) -> tuple[np.ndarray, np.ndarray]:
    """Time two functions alternately, after one call each as warm-up.

    Returns:
        Seconds of `ours` and of `peer`, `f64[repeats]` each.
    """
    ours()
    peer()
    times = np.array([(time_call(ours), time_call(peer)) for _ in range(repeats)])
    return times[:, 0], times[:, 1]


def rates_against_numpy(
    unit: str,
    ours: Callable[[], object],
    num_ours: int,
    numpy_peer: Callable[[], object],
    num_numpy: int,
    repeats: int,
) -> Line:
    """Units per second of our code and of NumPy, their ratio, and the time of compilation.

    Args:
        unit: name of what is counted, such as `trials`.
        ours, numpy_peer: the functions that are timed in turns.
        num_ours, num_numpy: units in one call of each.
        repeats: turns.
    """
    first_call = time_call(ours)
    our_times, numpy_times = take_turns(ours, numpy_peer, repeats)
    our_rates = num_ours / our_times
    numpy_rates = num_numpy / numpy_times
    return {
        f"{unit}_per_second": rounded_median(our_rates),
        f"numpy_{unit}_per_second": rounded_median(numpy_rates),
        "ratio": rounded_median(our_rates / numpy_rates, 2),
        "compile_seconds": compile_seconds(first_call, our_times),
    }


def rounded_median(values: Any, digits: int | None = None) -> float:
    """Median, rounded to `digits` after the point; None rounds to an int."""
    return round(float(np.median(values)), digits)


def compile_seconds(first_call: float, times: np.ndarray) -> float:
    """What the first call took beyond a later one."""
    return round(first_call - float(np.median(times)), 2)


def in_new_process(code: str) -> float:
    """The number that `code` prints in a separate Python process."""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return float(process.stdout)


def peak_megabytes() -> float:
    """Peak resident memory of this process alone (Linux; `getrusage` would count its parent's)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status: expected a line VmHWM, got none")


def vocabulary_pair() -> tuple[jax.Array, jax.Array]:
    """A draft and a target distribution over `VOCABULARY` tokens, as log-probabilities."""
    noise = np.random.default_rng(0).normal(size=(2, VOCABULARY)) * 2.5
    draft_logits = noise[0]
    target_logits = 0.8 * noise[0] + 0.2 * noise[1]
    logits = jnp.asarray([draft_logits, target_logits], jnp.float32)
    log_p, log_q = jax.nn.log_softmax(logits)
    return log_p, log_q
