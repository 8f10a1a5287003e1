"""Finished results in a file, one JSON object a line, written as they come and never lost.

Where several processes share the work each has a file of its own beside it, `FILE.part0`,
`FILE.part1`, ...; whoever goes on reads all of them.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gls_jax.runs import files

__all__ = ["Journal"]

_BEGINNING = b'{"request": '


class Journal:
    """A file of results that grows by whole lines.

    A line is on the disk before the next one is begun; what an interrupted write has left of one is
    cut off when the run goes on.

    Args:
        path: the file; None keeps the results in memory alone.
        resume: whether to go on with a file that exists.
        asks: fingerprint of each request: what its result depends on.
        process: whose part to write; None writes the file itself.

    Attributes:
        done: the results so far by the number of their request.

    Raises:
        ValueError: a file that exists without `resume`, or holds something else, or results of
        other options. OSError: a file that cannot be written.
    """

    def __init__(
        self, path: Path | None, resume: bool, asks: Mapping[int, str], process: int | None = None
    ) -> None:
        self._path, self._asks = path, asks
        self.done: dict[int, dict[str, Any]] = {}
        self._size = 0  # of the whole lines that were found
        self._whole = False  # whether what is behind them was cut off
        if path is not None:
            files.check_folder(path.parent)
            self._own = path if process is None else path.with_name(f"{path.name}.part{process}")
            for file in (path, *self._parts()):
                if file.exists():
                    size = self._read(file, resume)
                    self._size = size if file == self._own else self._size

    def append(self, record: dict[str, Any]) -> None:
        """Keep one result."""
        number = record["request"]
        self.done[number] = record = record | {"ask": self._asks[number]}
        if self._path is None:
            return
        line = _line(record)
        self._own.parent.mkdir(parents=True, exist_ok=True)
        with self._own.open("ab") as file:
            if not self._whole:
                file.truncate(self._size)
                self._whole = True
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def merge(self) -> None:
        """Make one file of the parts, if there are any, in the order of the requests."""
        if self._path is None or not (parts := self._parts()):
            return
        for part in parts:
            self._read(part, resume=True)
        lines = [_line(self.done[number]) for number in sorted(self.done)]
        files.write_whole(self._path, lambda file: file.writelines(lines))
        for part in parts:
            part.unlink()

    def _parts(self) -> list[Path]:
        assert self._path is not None
        paths = self._path.parent.glob(f"{glob.escape(self._path.name)}.part*")
        return sorted(
            path for path in paths if re.fullmatch(r"\.part\d+", path.name[len(self._path.name) :])
        )

    def _read(self, path: Path, resume: bool) -> int:
        """Take over the results of a file; the size of its whole lines."""
        size = 0
        if not path.is_file():
            raise ValueError(f"{path}: expected a file of results, got something else")
        if not resume:
            raise ValueError(
                f"{path}: expected a new file, or --resume to go on with it, got one that exists"
            )
        *lines, cut_off = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            size += len(line) + 1
            try:
                record = json.loads(line)
                request, ask = record["request"], record["ask"]
            except (ValueError, KeyError, TypeError):
                request = None
            if not isinstance(request, int):
                raise ValueError(f"{path}, line {number}: expected a result, got something else")
            self.done[request] = record
            if ask != self._asks.get(request, ask):
                raise ValueError(
                    f"{path}, line {number}: expected a result of this request and these options, got another"
                )
        if not cut_off.startswith(_BEGINNING[: len(cut_off)]):
            raise ValueError(
                f"{path}: expected results, got something else behind the last of them"
            )
        return size


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()
