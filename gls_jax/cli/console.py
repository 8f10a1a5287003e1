"""Output for people: tables on stdout, progress bars on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gls_jax.typing import Report

__all__ = ["ERR", "print_json", "print_table", "progress"]

ERR = Console(stderr=True)


@contextmanager
def progress(is_shown: bool = True) -> Iterator[Report]:
    """Yields `report(kind of work, done, total)`, with one bar for each kind of work.

    Bars are shown where stderr is a terminal, and disappear at the end.
    """
    columns = (
        TextColumn("{task.description:>24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    # In a log file, or for processes that print nothing, bars would only be noise.
    is_disabled = not (is_shown and ERR.is_terminal)
    with Progress(*columns, console=ERR, transient=True, disable=is_disabled) as bars:
        tasks: dict = {}

        def report(kind: str, done: int, total: int) -> None:
            if kind not in tasks:
                tasks[kind] = bars.add_task(kind, total=total)
            bars.update(tasks[kind], completed=done)

        yield report


def print_json(value: Any, *, ensure_ascii: bool = True) -> None:
    """Print a value as one line of JSON; commands have an option `json`, and so no such module."""
    print(json.dumps(value, ensure_ascii=ensure_ascii))


def print_table(table: Table, files: str) -> None:
    """Print a table, and the names of the written files below it."""
    console = Console()
    console.print(table)
    console.print(files, highlight=False)
