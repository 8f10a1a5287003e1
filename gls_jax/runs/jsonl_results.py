"""Results in a file, one JSON object per line, each on the disk as soon as it is finished.

If several processes share the work, each appends to a separate part in the same folder,
`FILE.part0`, `FILE.part1`, ...; a resumed run reads all parts.
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
from gls_jax.runs.resume import check_resumable

__all__ = ["JsonlResults"]

# Every line begins with this, so an incomplete last line must begin with it, too.
_BEGINNING = b'{"request": '
# Key of the hash in a line. It is an old word, kept so that earlier files can be continued.
_HASH = "ask"


class JsonlResults:
    """A file of results that grows by whole lines.

    A line is on the disk before the next one begins. An incomplete line at the end, left by an
    interrupted write, is cut off when the run continues.

    Args:
        path: the file; None keeps the results in memory only.
        resume: whether to continue an existing file.
        hashes: by the number of a request, the hash of everything that its result depends on.
        process: index of the process whose part is written; None writes the file itself.

    Attributes:
        done: results so far, by the number of their request.

    Raises:
        ValueError: the file exists and `resume` is not set, or it holds something other than
            results, or a result has another hash.
        OSError: the file cannot be written.

    >>> from gls_jax.runs.jsonl_results import JsonlResults
    >>> results = JsonlResults(None, False, {0: "hash of request 0"})
    >>> results.append({"request": 0, "text": "Hello"})
    >>> results.done[0]["text"]
    'Hello'
    """

    def __init__(
        self, path: Path | None, resume: bool, hashes: Mapping[int, str], process: int | None = None
    ) -> None:
        self._path, self._hashes = path, hashes
        self.done: dict[int, dict[str, Any]] = {}
        # Bytes of the whole lines in the written file, and whether those after them are cut off.
        self._whole_size = 0
        self._is_trimmed = False
        if path is None:
            return
        files.check_folder(path.parent)
        self._written_path = path
        if process is not None:
            self._written_path = path.with_name(f"{path.name}.part{process}")
        for file in (path, *self._parts()):
            if file.exists():
                whole_size = self._read(file, resume)
                if file == self._written_path:
                    self._whole_size = whole_size

    def append(self, record: dict[str, Any]) -> None:
        """Keep the result of the request with the number `record["request"]`."""
        number = record["request"]
        record = record | {_HASH: self._hashes[number]}
        self.done[number] = record
        if self._path is None:
            return
        self._written_path.parent.mkdir(parents=True, exist_ok=True)
        with self._written_path.open("ab") as file:
            if not self._is_trimmed:
                file.truncate(self._whole_size)
                self._is_trimmed = True
            file.write(_line(record))
            file.flush()
            # The line must also survive a crash of the machine.
            os.fsync(file.fileno())

    def merge(self) -> None:
        """Make one file of all parts, in the order of the requests; without parts do nothing."""
        parts = [] if self._path is None else self._parts()
        if self._path is None or not parts:
            return
        for part in parts:
            self._read(part, resume=True)
        lines = [_line(self.done[number]) for number in sorted(self.done)]
        files.write_whole(self._path, lambda file: file.writelines(lines))
        # Only now: a run killed before this line finds every result at least once.
        for part in parts:
            part.unlink()

    def _parts(self) -> list[Path]:
        assert self._path is not None
        # The pattern of the glob also fits a user's copies, such as `FILE.part0.bak`.
        candidates = self._path.parent.glob(f"{glob.escape(self._path.name)}.part*")
        prefix_length = len(self._path.name)
        return sorted(
            path for path in candidates if re.fullmatch(r"\.part\d+", path.name[prefix_length:])
        )

    def _read(self, path: Path, resume: bool) -> int:
        """Take over the results of a file. Returns the size of its whole lines in bytes."""
        if not path.is_file():
            raise ValueError(f"{path}: expected a file of results, got something else")
        check_resumable(path, "a file of results", resume=resume, differences=[])
        whole_size = 0
        *lines, incomplete_line = path.read_bytes().split(b"\n")
        for line_number, line in enumerate(lines, 1):
            whole_size += len(line) + 1
            try:
                record = json.loads(line)
                number, hash_found = record["request"], record[_HASH]
            except (ValueError, KeyError, TypeError):
                number = None
            if not isinstance(number, int):
                raise ValueError(
                    f"{path}, line {line_number}: expected a result, got something else"
                )
            # A result of a request that is not among the present ones is kept as it is.
            if hash_found != self._hashes.get(number, hash_found):
                raise ValueError(
                    f"{path}, line {line_number}: "
                    "expected a result of this request and these options, got another"
                )
            self.done[number] = record
        if not incomplete_line.startswith(_BEGINNING[: len(incomplete_line)]):
            raise ValueError(f"{path}: expected results, got something else after the last of them")
        return whole_size


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()
