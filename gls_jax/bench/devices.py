"""What it costs to share a sweep among many devices of one host: eight host devices against one,
same total work.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable

from gls_jax.bench.measure import Line

__all__ = ["SUITE", "host_devices"]

_DEVICES = 8


def host_devices(
    num_pairs: int, num_trials: int, num_items: int = 100, num_drafts: int = 8
) -> Callable[[int], Line]:
    """Seconds of a GLS sweep on eight host devices over those on one, and whether the numbers are
    the same.
    """

    def benchmark(repeats: int) -> Line:
        sizes = num_pairs, num_trials, num_items, num_drafts
        sides = {
            devices: _Side(devices, sizes) for devices in (1, _DEVICES)
        }  # the number is fixed at a process's start
        try:
            turns = [
                {devices: side.sweep() for devices, side in sides.items()} for _ in range(repeats)
            ]
        finally:
            for side in sides.values():
                side.stop()
        overhead = [turn[_DEVICES][0] / turn[1][0] - 1 for turn in turns]
        return {
            "benchmark": f"sweep on {_DEVICES} host devices against one, M={num_pairs}, N={num_items}, K={num_drafts}",
            "seconds": round(statistics.median(turn[_DEVICES][0] for turn in turns), 3),
            "one_device_seconds": round(statistics.median(turn[1][0] for turn in turns), 3),
            "overhead": round(statistics.median(overhead), 3),
            "identical": len({numbers for turn in turns for _, numbers in turn.values()}) == 1,
        }

    return benchmark


class _Side:
    """A process with some host devices, which sweeps when it is told to."""

    def __init__(self, devices: int, sizes: tuple[int, ...]):
        flags = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        )
        code = f"from gls_jax.bench import devices; devices._serve{sizes}"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        )
        self.sweep()  # compiles

    def sweep(self) -> tuple[float, str]:
        """Seconds, and a digest of the numbers."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        seconds, numbers = json.loads(self._process.stdout.readline())
        return seconds, numbers

    def stop(self) -> None:
        self._process.communicate()


def _serve(num_pairs: int, num_trials: int, num_items: int, num_drafts: int) -> None:
    """Sweep once a line of stdin."""
    import jax
    import numpy as np

    from gls_jax import races, trials
    from gls_jax.bench.measure import seconds

    laws = jax.nn.log_softmax(2 * jax.random.normal(races.new_key(0), (2, num_pairs, num_items)))
    found: list = []

    def sweep() -> None:
        found[:] = trials.sweep(
            races.new_key(1), *laws, scheme="gls", num_drafts=(num_drafts,), num_trials=num_trials
        )

    for _ in sys.stdin:
        spent = seconds(sweep)
        numbers = hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in found)).hexdigest()
        print(json.dumps([spent, numbers]), flush=True)


SUITE = (host_devices(64, 10_000), host_devices(1, 640_000))
