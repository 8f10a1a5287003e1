"""Benchmarks against peers that are measured in the same run.

Calls are warm, and compile time is reported apart. A peer and our code take turns, and the ratio is
the median over the turns, so that a machine that is busy for a while slows both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from experiments.bench import (
    codec_suite,
    core_suite,
    decode_suite,
    devices_suite,
    roofline_suite,
    schemes_suite,
)
from experiments.bench.timing import Benchmark, Line, environment

# Names of benchmarks and figures must not change: results are compared by them.
SUITES: dict[str, tuple[Benchmark, ...]] = {
    "core": core_suite.SUITE,
    "schemes": schemes_suite.SUITE,
    "decode": decode_suite.SUITE,
    "codec": codec_suite.SUITE,
    "devices": devices_suite.SUITE,
    "roofline": roofline_suite.SUITE,
}


def run(suites: str | Sequence[str], repeats: int) -> Iterator[Line]:
    """Yield one JSON-ready line for each benchmark, the environment first.

    Args:
        suites: names in `SUITES`, or `all`.
        repeats: timed turns, at least 1.

    Raises:
        ValueError: an unknown suite, or no repeats.
    """
    names = (suites,) if isinstance(suites, str) else tuple(suites)
    if "all" in names:
        names = tuple(SUITES)
    for name in names:
        if name not in SUITES:
            raise ValueError(f"suite: expected one of {', '.join(SUITES)}, or all, got {name!r}")
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    # A separate generator, so that bad input is refused before the first line is asked for.
    return _lines(names, repeats)


def _lines(names: Sequence[str], repeats: int) -> Iterator[Line]:
    yield environment() | {"repeats": repeats}
    for name in names:
        for benchmark in SUITES[name]:
            yield benchmark(repeats)
