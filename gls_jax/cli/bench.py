"""`gls-jax bench`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

import tyro
from rich.table import Table

from gls_jax.cli.console import ERR

__all__ = ["Bench"]


@dataclasses.dataclass(frozen=True)
class Bench:
    """Speed against peers measured in the same run, one JSON line a benchmark."""

    suites: tyro.conf.Positional[tuple[str, ...]] = ("core",)
    """Which benchmarks: `core`, `schemes`, `decode`, `codec`, `devices`, or `all`."""
    repeats: int = 7
    """Timed repetitions; the median counts."""
    out: Path | None = None
    """A JSON file for all lines; it is written after every benchmark."""
    against: Path | None = None
    """Such a file of an earlier run: what moved since is shown at the end."""
    moved: float = 0.1
    """By which share a figure must have changed to be shown."""
    resumable: ClassVar[bool] = False

    def run(self) -> None:
        """Print a line a benchmark, then what moved."""
        from gls_jax import bench
        from gls_jax.bench import record
        from gls_jax.runs import files

        if not self.moved > 0:
            raise ValueError(f"moved: expected a share above 0, got {self.moved}")
        earlier = None if self.against is None else record.read(self.against)
        if self.out is not None:
            files.check_file(self.out)
            self.out.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for line in bench.run(self.suites, self.repeats):
            print(json.dumps(line), flush=True)
            lines.append(line)
            if self.out is not None:
                record.write(self.out, lines)
        if earlier is not None:
            if "all" not in self.suites:  # what was not run is not gone
                earlier = [
                    line
                    for line in earlier
                    if line["benchmark"] in {run["benchmark"] for run in lines}
                ]
            ERR.print(_table(list(record.moves(earlier, lines, self.moved)), self.against))


def _table(found, against: Path | None) -> Table | str:
    if not found:
        return f"nothing moved since {against}"
    table = Table(title=f"What moved since {against}")
    for name in ("benchmark", "figure", "before", "now", "now / before"):
        table.add_column(name, justify="left" if name in ("benchmark", "figure") else "right")
    for move in found:
        change = f"{move.now / move.before:.2f}" if move.before and move.now is not None else ""
        figures = ("" if value is None else f"{value:g}" for value in (move.before, move.now))
        table.add_row(move.benchmark, move.figure, *figures, change)
    return table
