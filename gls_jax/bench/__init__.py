"""Benchmarks: each figure beside a peer measured in the same run, warm, with compile time reported apart.

A peer and ours take turns, and the ratio is the median over the turns: a machine that is busy for a while slows both.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator

import jax

from gls_jax.bench import codec, core, decode, devices, selection
from gls_jax.bench.measure import Line

__all__ = ["SUITES", "run"]

SUITES: dict[str, tuple[Callable[[int], Line], ...]] = {
    "core": core.SUITE,
    "schemes": selection.SUITE,
    "decode": decode.SUITE,
    "codec": codec.SUITE,
    "devices": devices.SUITE,
}


def run(suite: str, repeats: int) -> Iterator[Line]:
    """Yield one JSON-ready line a benchmark, the environment first.

    Args:
        suite: a name in `SUITES`.
        repeats: timed turns, at least 1.

    Raises:
        ValueError: an unknown suite, or no repeats.
    """
    if suite not in SUITES:
        raise ValueError(f"suite: expected one of {', '.join(SUITES)}, got {suite!r}")
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    return _lines(suite, repeats)


def _lines(suite: str, repeats: int) -> Iterator[Line]:
    yield {
        "benchmark": "environment",
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "repeats": repeats,
    }
    for benchmark in SUITES[suite]:
        yield benchmark(repeats)
