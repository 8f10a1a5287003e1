"""`python -m experiments bench`: options, the printed lines and the table of changes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.table import Table

from experiments import bench
from experiments.bench import results_file
from experiments.bench.timing import Line
from gls_jax.cli.console import ERR
from gls_jax.runs import files


def run_command(options: Sequence[str]) -> None:
    """Run the benchmarks with the options of a command line."""
    tyro.cli(Bench, prog="python -m experiments bench", args=options).run()


@dataclasses.dataclass(frozen=True)
class Bench:
    """Speed against peers measured in the same run, one JSON line for each benchmark.

    Attributes:
        suites: Which benchmarks: `core`, `schemes`, `decode`, `codec`, `devices`,
            `roofline` (a count instead of a clock), or `all`.
        repeats: Timed repetitions; figures are medians.
        out: A JSON file for all lines; it is written after every benchmark.
        against: Such a file of an earlier run: what changed since then is shown at the end.
        moved: The share by which a figure must have changed to be shown.
    """

    suites: tyro.conf.Positional[tuple[str, ...]] = ("core",)
    repeats: int = 7
    out: Path | None = None
    against: Path | None = None
    moved: float = 0.1

    def run(self) -> None:
        """Print a line for each benchmark, then what changed."""
        # Everything that can be refused is refused before the first benchmark.
        if not self.moved > 0:
            raise ValueError(f"moved: expected a share above 0, got {self.moved}")
        earlier = None if self.against is None else results_file.read(self.against)
        if self.out is not None:
            files.check_file(self.out)
            self.out.parent.mkdir(parents=True, exist_ok=True)
        # The file has all lines so far, so that a run that is interrupted is not lost.
        lines: list[Line] = []
        for line in bench.run(self.suites, self.repeats):
            print(json.dumps(line), flush=True)
            lines.append(line)
            if self.out is not None:
                results_file.write(self.out, lines)
        if earlier is not None:
            self._print_changes(earlier, lines)

    def _print_changes(self, earlier: list[Line], lines: list[Line]) -> None:
        if "all" not in self.suites:
            # A benchmark that was not run now has not disappeared.
            names = [line["benchmark"] for line in lines]
            earlier = [line for line in earlier if line["benchmark"] in names]
        changes = list(results_file.changes(earlier, lines, self.moved))
        if changes:
            ERR.print(_changes_table(changes, f"What changed since {self.against}"))
        else:
            ERR.print(f"nothing changed since {self.against}")


def _changes_table(changes: Sequence[results_file.Change], title: str) -> Table:
    table = Table(title=title)
    for name in ("benchmark", "figure"):
        table.add_column(name)
    for name in ("before", "now", "now / before"):
        table.add_column(name, justify="right")
    for change in changes:
        before = "" if change.before is None else f"{change.before:g}"
        now = "" if change.now is None else f"{change.now:g}"
        # No ratio to nothing, or to zero.
        ratio = ""
        if change.before and change.now is not None:
            ratio = f"{change.now / change.before:.2f}"
        table.add_row(change.benchmark, change.figure, before, now, ratio)
    return table
