"""`gls-jax bench`."""

from __future__ import annotations

import dataclasses
import json
from typing import ClassVar

import tyro

__all__ = ["Bench"]


@dataclasses.dataclass(frozen=True)
class Bench:
    """Speed against peers measured in the same run, one JSON line a benchmark."""

    suite: tyro.conf.Positional[str] = "core"
    """Which benchmarks: `core`, `schemes`, `decode`, `codec` or `devices`."""
    repeats: int = 7
    """Timed repetitions; the median counts."""
    resumable: ClassVar[bool] = False

    def run(self) -> None:
        """Print a line a benchmark."""
        from gls_jax import bench

        for line in bench.run(self.suite, self.repeats):
            print(json.dumps(line), flush=True)
