"""The file of a benchmark run, and what has changed since an earlier one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.bench.timing import Line
from gls_jax.runs import files

_FORMAT = 1


class Change(NamedTuple):
    """A figure that differs from the earlier run.

    Attributes:
        benchmark: name of its line.
        figure: name of the figure in the line.
        before: value in the earlier run; None where it has no such figure.
        now: value in this run, likewise.
    """

    benchmark: str
    figure: str
    before: float | None
    now: float | None


def write(path: Path, lines: Sequence[Line]) -> None:
    """Write all lines so far, the environment among them; the file is replaced whole."""
    files.write_json(path, {"format": _FORMAT, "lines": list(lines)})


def read(path: Path) -> list[Line]:
    """Read the lines that :func:`write` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file.
    """
    expected = "the results of an earlier python -m experiments bench --out"
    content = files.read_json(path, expected)
    # No object, or an object without these entries: both are another file.
    with contextlib.suppress(KeyError, TypeError):
        if content["format"] == _FORMAT and _is_lines(content["lines"]):
            return content["lines"]
    raise ValueError(f"{path}: expected {expected}, got another file")


def _is_lines(value: object) -> bool:
    if not isinstance(value, list):
        return False
    return all(isinstance(line, dict) and "benchmark" in line for line in value)


def changes(
    before: Sequence[Line], now: Sequence[Line], threshold: float = 0.1
) -> Iterator[Change]:
    """Figures that differ by more than the share `threshold` of their earlier value.

    A ratio to a peer of the same run can be compared between machines and days; a bare time only
    where nothing but the code has changed.

    >>> from experiments.bench import results_file
    >>> before = {"benchmark": "race", "ratio": 4.0, "seconds": 1.0}
    >>> now = before | {"ratio": 2.0}
    >>> list(results_file.changes([before], [now]))
    [Change(benchmark='race', figure='ratio', before=4.0, now=2.0)]
    """
    old_figures = {str(line["benchmark"]): _figures(line) for line in before}
    new_figures = {str(line["benchmark"]): _figures(line) for line in now}
    # The order is that of this run; what only the earlier run has comes last.
    for benchmark in dict.fromkeys([*new_figures, *old_figures]):
        old_line = old_figures.get(benchmark, {})
        new_line = new_figures.get(benchmark, {})
        for figure in dict.fromkeys([*new_line, *old_line]):
            old = old_line.get(figure)
            new = new_line.get(figure)
            if old is None or new is None or abs(new - old) > threshold * abs(old):
                yield Change(benchmark, figure, before=old, now=new)


def _figures(line: Line) -> dict[str, float]:
    """The numbers of a line, without NaN; those of the environment are not measured."""
    figures: dict[str, float] = {}
    if line["benchmark"] == "environment":
        return figures
    for name, value in line.items():
        # A bool is an int in Python, and NaN is the number that differs from itself.
        if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
            figures[name] = float(value)
    return figures
