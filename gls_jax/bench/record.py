"""One file for all that was measured, and what has moved since an earlier one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gls_jax.bench.measure import Line
from gls_jax.runs import files

__all__ = ["Move", "moves", "read", "write"]

_FORMAT = 1


class Move(NamedTuple):
    """A figure that is not what it was.

    Attributes:
        benchmark: its line.
        figure: its name in the line.
        before: in the earlier file; None where it was not there.
        now: in this one, likewise.
    """

    benchmark: str
    figure: str
    before: float | None
    now: float | None


def write(path: Path, lines: Sequence[Line]) -> None:
    """All lines so far, the environment among them; the file is replaced whole."""
    text = json.dumps({"format": _FORMAT, "lines": list(lines)}, indent=1) + "\n"
    files.write_whole(path, lambda file: file.write(text), mode="w")


def read(path: Path) -> list[Line]:
    """The lines of a file that :func:`write` left.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected the results of an earlier gls-jax bench --out"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        lines = found["lines"] if found["format"] == _FORMAT else None
    except (ValueError, KeyError, TypeError):
        lines = None
    if not isinstance(lines, list) or not all(
        isinstance(line, dict) and "benchmark" in line for line in lines
    ):
        raise ValueError(
            f"{path}: expected the results of an earlier gls-jax bench --out, got another file"
        )
    return lines


def moves(before: Sequence[Line], now: Sequence[Line], least: float = 0.1) -> Iterator[Move]:
    """Figures of the same benchmark that differ by more than the share `least` of the earlier one.

    A ratio to a peer of the same run compares two machines or two days; a bare time compares them
    only where nothing else has changed.

    >>> from gls_jax.bench import record
    >>> before = {"benchmark": "race", "ratio": 4.0, "seconds": 1.0}
    >>> [
    ...     (move.figure, move.before, move.now)
    ...     for move in record.moves([before], [before | {"ratio": 2.0}])
    ... ]
    [('ratio', 4.0, 2.0)]
    """
    lines = [{str(line["benchmark"]): _figures(line) for line in run} for run in (before, now)]
    for name in dict.fromkeys([*lines[1], *lines[0]]):
        old, new = (run.get(name, {}) for run in lines)
        for figure in dict.fromkeys([*new, *old]):
            was, value = old.get(figure), new.get(figure)
            if was is None or value is None or abs(value - was) > least * abs(was):
                yield Move(name, figure, was, value)


def _figures(line: Line) -> dict[str, float]:
    """The numbers of a line that have a value; the environment's are no measurements."""
    if line["benchmark"] == "environment":
        return {}
    numbers = {name: value for name, value in line.items() if isinstance(value, int | float)}
    return {
        name: float(value)
        for name, value in numbers.items()
        if not isinstance(value, bool) and value == value
    }
