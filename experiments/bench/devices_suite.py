"""Sharding a sweep over many devices of one host: eight host devices against one, same work."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from functools import partial

import jax
import numpy as np

from experiments.bench.timing import Line, rounded_median
from gls_jax import races, trials

_NUM_DEVICES = 8


def sweep_on_host_devices(
    repeats: int, *, num_pairs: int, num_trials: int, num_categories: int = 100, num_drafts: int = 8
) -> Line:
    """Seconds of a GLS sweep on eight host devices against one, and whether the numbers agree."""
    sizes = (num_pairs, num_trials, num_categories, num_drafts)
    # A process has one number of devices from its start: each side needs a separate process.
    one_device = _SweepProcess(1, sizes)
    many_devices = _SweepProcess(_NUM_DEVICES, sizes)
    all_times, digests = [], set()
    # The processes take turns; the sweep has the same key each time, and should have one digest.
    try:
        for _ in range(repeats):
            for process in (one_device, many_devices):
                sweep_seconds, digest = process.sweep()
                all_times.append(sweep_seconds)
                digests.add(digest)
    finally:
        one_device.stop()
        many_devices.stop()
    single_times, sharded_times = np.array(all_times).reshape(-1, 2).T
    sizes_text = f"M={num_pairs}, N={num_categories}, K={num_drafts}"
    return {
        "benchmark": f"sweep on {_NUM_DEVICES} host devices against one, {sizes_text}",
        "seconds": rounded_median(sharded_times, 3),
        "one_device_seconds": rounded_median(single_times, 3),
        "overhead": rounded_median(sharded_times / single_times - 1, 3),
        "identical": len(digests) == 1,
    }


class _SweepProcess:
    """A process with its own number of host devices, which sweeps on request."""

    def __init__(self, num_devices: int, sizes: tuple[int, ...]):
        flag = f"--xla_force_host_platform_device_count={num_devices}"
        environment = {
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}",
            "JAX_PLATFORMS": "cpu",
        }
        code = f"from experiments.bench import devices_suite; devices_suite.serve_sweeps{sizes}"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        self.sweep()  # compiles

    def sweep(self) -> tuple[float, str]:
        """Seconds of a sweep, and a digest of its numbers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        sweep_seconds, digest = json.loads(self._process.stdout.readline())
        return sweep_seconds, digest

    def stop(self) -> None:
        """Close the process's stdin, which ends its loop, and wait."""
        self._process.communicate()


def serve_sweeps(num_pairs: int, num_trials: int, num_categories: int, num_drafts: int) -> None:
    """Sweep once for each line of stdin, and print seconds and digest as JSON."""
    logits = 2 * jax.random.normal(races.new_key(0), (2, num_pairs, num_categories))
    log_p, log_q = jax.nn.log_softmax(logits)
    for _ in sys.stdin:
        start_time = time.perf_counter()
        estimate = trials.sweep(
            races.new_key(1),
            log_p,
            log_q,
            scheme="gls",
            num_drafts=(num_drafts,),
            num_trials=num_trials,
        )
        sweep_seconds = time.perf_counter() - start_time
        # The same numbers have the same digest.
        content = b"".join(np.asarray(array).tobytes() for array in estimate)
        print(json.dumps([sweep_seconds, hashlib.sha256(content).hexdigest()]), flush=True)


SUITE = (
    partial(sweep_on_host_devices, num_pairs=64, num_trials=10_000),
    partial(sweep_on_host_devices, num_pairs=1, num_trials=640_000),
)
