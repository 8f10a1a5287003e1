"""Benchmarks: each figure beside a peer measured in the same run, warm, with compile time reported
apart.

A peer and ours take turns, and the ratio is the median over the turns: a machine that is busy for a
    while slows both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from gls_jax.bench import codec, core, decode, devices, selection
from gls_jax.bench.measure import Line, environment

__all__ = ["SUITES", "run"]

SUITES: dict[str, tuple[Callable[[int], Line], ...]] = {
    "core": core.SUITE,
    "schemes": selection.SUITE,
    "decode": decode.SUITE,
    "codec": codec.SUITE,
    "devices": devices.SUITE,
}


def run(suites: str | Sequence[str], repeats: int) -> Iterator[Line]:
    """Yield one JSON-ready line a benchmark, the environment first.

    Args:
        suites: names in `SUITES`, or `all`.
        repeats: timed turns, at least 1.

    Raises:
        ValueError: an unknown suite, or no repeats.
    """
    names = (suites,) if isinstance(suites, str) else tuple(suites)
    names = tuple(SUITES) if "all" in names else names
    for name in names:
        if name not in SUITES:
            raise ValueError(f"suite: expected one of {', '.join(SUITES)}, or all, got {name!r}")
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    return _lines(names, repeats)


def _lines(names: Sequence[str], repeats: int) -> Iterator[Line]:
    yield environment() | {"repeats": repeats}
    for name in names:
        for benchmark in SUITES[name]:
            yield benchmark(repeats)
