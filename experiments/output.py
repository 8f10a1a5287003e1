"""Rows of results: their fields, the files and the figure they go to, and tables for a terminal."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from gls_jax.runs import files
from gls_jax.studies import figures

PUBLISHED_FOLDER = Path(__file__).parent / "published"


def column(rows: Iterable[NamedTuple], field: str) -> list:
    """The values of a field."""
    return [getattr(row, field) for row in rows]


def distinct(rows: Iterable[NamedTuple], field: str) -> list:
    """The values of a field, each once, in the order of the rows."""
    return list(dict.fromkeys(column(rows, field)))


def select(rows: Iterable[Any], **values: Any) -> list:
    """The rows whose fields have these values."""
    return [row for row in rows if all(getattr(row, name) == values[name] for name in values)]


def read_published(name: str) -> Iterator[dict[str, str]]:
    """The lines of a table of numbers from a paper."""
    with (PUBLISHED_FOLDER / name).open() as file:
        yield from csv.DictReader(line for line in file if not line.startswith("#"))


def save_results(folder: Path, name: str, rows: Sequence[NamedTuple], figure: Figure) -> None:
    """Write `name.csv` and `name.png`."""
    write_csv(folder / f"{name}.csv", rows)
    save_figure(folder / f"{name}.png", figure)


def write_csv(path: Path, rows: Sequence[NamedTuple]) -> None:
    """Write one line for each row under the names of its fields; None is an empty cell."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(file: IO[str]) -> None:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0]._fields)
        writer.writerows(rows)

    files.write_whole(path, write, mode="w")


def save_figure(path: Path, figure: Figure) -> None:
    """Write the figure as a `.png` file, in the resolution of all experiments."""
    figures.save_figure(path, figure, dpi=90)


def table(title: str, header: Sequence[str], lines: Iterable[Sequence], note: str = "") -> Table:
    """A table of words, to the left, and numbers, to the right with four digits; None is empty."""
    lines = list(lines)
    result = Table(title=title, caption=note or None, box=box.SIMPLE_HEAD)
    for column_name, *cells in zip(header, *lines, strict=True):
        is_text = all(isinstance(cell, str) for cell in cells)
        result.add_column(column_name, justify="left" if is_text else "right")
    for line in lines:
        result.add_row(*map(_cell_text, line))
    return result


def _cell_text(cell: object) -> str:
    if cell is None:
        return ""
    return f"{cell:.4f}" if isinstance(cell, float) else str(cell)
