"""The file of a dump: a folder with one memory-mapped array a field, filled chunk by chunk, and a
small `dump.json`.

A row is one position of a text: the tokens that either law holds likely, both laws on them, and the
mass that each has elsewhere. Column 0 is the token that follows in the text; a column that is not
used has token -1. `dump.json` is renamed into place after each whole chunk, so a dump that was
killed goes on behind its last one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gls_jax.distributions.pairs import Pairs
from gls_jax.runs import files

__all__ = ["DTYPES", "Dump", "Rows", "Writer", "fingerprint", "open_array", "open_dump"]

DTYPES = ("float32", "float16")
_FORMAT, _FACTS = 1, "dump.json"


class Rows(NamedTuple):
    """Laws at `P` positions on `W` tokens each.

    Attributes:
        tokens: `i32[P, W]`; column 0 is the token that follows in the text, -1 fills up.
        log_p, log_q: `[P, W]`, draft and target log-probabilities.
        tail_p, tail_q: `f32[P]`, mass on all other tokens.
        begins: `bool[P]`, whether a document begins here.
    """

    tokens: np.ndarray
    log_p: np.ndarray
    log_q: np.ndarray
    tail_p: np.ndarray
    tail_q: np.ndarray
    begins: np.ndarray


@dataclasses.dataclass(frozen=True)
class Dump:
    """A dump, read where it lies: the arrays are memory-mapped and cut to the positions that are
    done.

    Attributes:
        folder: where it lies.
        facts: `dump.json`: what was asked, and how far it came.
        rows: :class:`Rows` of all positions.
    """

    folder: Path
    facts: dict[str, Any]
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows.begins)

    def pairs(self, start: int = 0, stop: int | None = None, *, tails: str = "apart") -> Pairs:
        """Positions `start..stop - 1` as laws on `W + 2` items, the last two for the tails.

        Args:
            start, stop: which positions.
            tails: `"apart"`, two items that the other law cannot produce; or `"shared"`, one item
                for both.

        Returns:
            :class:`gls_jax.distributions.pairs.Pairs` of `f32`, normalised.

        Raises:
            ValueError: unknown `tails`.
        """
        if tails not in ("apart", "shared"):
            raise ValueError(f"tails: expected 'apart' or 'shared', got {tails!r}")
        some = slice(start, stop)
        # `+ 0`: of a float16 file, rounding has moved the sums.
        p, q = (
            np.exp(np.asarray(law[some], np.float32)) for law in (self.rows.log_p, self.rows.log_q)
        )
        none = np.zeros((len(p), 1), np.float32)
        tail_p, tail_q = (
            np.asarray(tail[some], np.float32)[:, None]
            for tail in (self.rows.tail_p, self.rows.tail_q)
        )
        p = np.concatenate([p, tail_p, none], axis=1)
        q = np.concatenate([q, tail_q, none] if tails == "shared" else [q, none, tail_q], axis=1)
        with np.errstate(divide="ignore"):
            return Pairs(*(np.log(law / law.sum(axis=1, keepdims=True)) for law in (p, q)))


class Writer:
    """Fills a dump.

    Attributes:
        done: positions that are there.
        chunks: whole chunks that are there.
    """

    def __init__(
        self, folder: Path, asked: dict[str, Any], positions: int, width: int, *, resume: bool
    ) -> None:
        """Go on with the dump in the folder that was asked the same, or begin one; nothing is
        written yet.

        Args:
            folder: of the dump.
            asked: all that the numbers depend on, as JSON; `dtype` among it.
            positions: rows at most.
            width: `W`.
            resume: whether to go on with a dump in the folder.

        Raises:
            ValueError: another dump is in the folder, or one is and `resume` is not set, or its
            files are broken. OSError: the files cannot be written.
        """
        asked = {**asked, "positions": positions, "width": width}
        own = fingerprint([_FORMAT, asked])
        self.folder = folder
        if (folder / _FACTS).exists():
            facts = _read_facts(folder)
            if not resume:
                raise ValueError(
                    f"{folder}: a dump is here; --resume goes on with it, else give another folder"
                )
            if facts["fingerprint"] != own:
                raise ValueError(
                    f"{folder}: the dump here was asked something else; give another folder"
                )
            self._facts, self._arrays = facts, _open_arrays(folder, asked, writable=True)
        else:
            self._facts = {
                "format": _FORMAT,
                "fingerprint": own,
                "asked": asked,
                "done": 0,
                "chunks": 0,
            }
            self._facts |= {"finished": False, "log_prob_error": 0.0}
            self._arrays = []

    @property
    def done(self) -> int:
        """Positions that are written."""
        return self._facts["done"]

    @property
    def chunks(self) -> int:
        """Pieces of text that they come from."""
        return self._facts["chunks"]

    @property
    def finished(self) -> bool:
        """Whether nothing is missing."""
        return self._facts["finished"]

    def begin(self) -> None:
        """Make the files of a new dump; those of a dump that goes on are there."""
        if not self._arrays:
            self._arrays = [
                np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
                for path, dtype, shape in _files(self.folder, self._facts["asked"])
            ]
            self._write_facts()

    def append(self, rows: Rows, *, finished: bool) -> None:
        """One more chunk: on the disk before `dump.json` counts it."""
        start, stop = self.done, self.done + len(rows.begins)
        for array, values in zip(self._arrays, rows, strict=True):
            array[start:stop] = values
            array.flush()
        error = self._facts["log_prob_error"]
        for wide, narrow in zip((rows.log_p, rows.log_q), self._arrays[1:3], strict=True):
            seen = np.isfinite(wide)
            error = max(
                error, float(np.max(np.abs(wide[seen] - narrow[start:stop][seen]), initial=0))
            )
        self._facts |= {
            "done": stop,
            "chunks": self.chunks + 1,
            "finished": finished,
            "log_prob_error": error,
        }
        self._write_facts()

    def _write_facts(self) -> None:
        text = json.dumps(self._facts, indent=1)
        files.write_whole(self.folder / _FACTS, lambda file: file.write(text + "\n"), mode="w")


def open_dump(folder: str | Path) -> Dump:
    """Read a dump, as far as it is done.

    Raises:
        FileNotFoundError: no dump there.
        ValueError: another format, facts or arrays that do not fit, or no position done.
    """
    folder = Path(folder)
    facts = _read_facts(folder)
    if not facts["done"]:
        raise ValueError(f"{folder}: expected a dump with at least one position done, got none")
    arrays = [array[: facts["done"]] for array in _open_arrays(folder, facts["asked"])]
    used = int((arrays[0] >= 0).sum(axis=1).max())
    return Dump(
        folder, facts, Rows(*(array[:, :used] if array.ndim == 2 else array for array in arrays))
    )


def fingerprint(value: Any) -> str:
    """Of anything that JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def open_array(
    path: Path, what: str, dtype: str, shape: tuple[int, ...], *, writable: bool = False
) -> np.memmap:
    """An array on the disk, known to be whole.

    Args:
        path: of the `.npy` file.
        what: it is, for the errors.
        dtype, shape: that it must have.
        writable: whether changes go to the disk.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a broken or shortened file, another shape or dtype.
    """
    expected = f"{what}, {dtype} of shape {list(shape)}"
    array = files.map_array(
        path, expected
    )  # read-only first: "r+" fills a short file up with zeros
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(
            f"{path}: expected {expected}, got {array.dtype} of shape {list(array.shape)}"
        )
    return np.lib.format.open_memmap(path, mode="r+") if writable else array


def _open_arrays(folder: Path, asked: dict[str, Any], *, writable: bool = False) -> list[np.memmap]:
    return [
        open_array(path, f"the array {path.stem} of a dump", dtype, shape, writable=writable)
        for path, dtype, shape in _files(folder, asked)
    ]


def _files(folder: Path, asked: dict[str, Any]) -> list[tuple[Path, str, tuple[int, ...]]]:
    """Path, dtype and shape of the array of each field."""
    one = (asked["positions"],)
    wide, law = (*one, asked["width"]), asked["dtype"]
    kinds = (
        ("int32", wide),
        (law, wide),
        (law, wide),
        ("float32", one),
        ("float32", one),
        ("bool", one),
    )
    return [(folder / f"{name}.npy", *kind) for name, kind in zip(Rows._fields, kinds, strict=True)]


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / _FACTS
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected the folder of a dump (gls-jax dump)"
        )
    facts = files.read_json(path, "the facts of a dump")
    if isinstance(facts, dict) and facts.get("format", _FORMAT) != _FORMAT:
        raise ValueError(f"{path}: expected format {_FORMAT}, got {facts['format']}")
    try:
        good = facts["fingerprint"] == fingerprint([_FORMAT, facts["asked"]])
        good &= facts["done"] in range(facts["asked"]["positions"] + 1) and isinstance(
            facts["chunks"], int
        )
        good &= isinstance(facts["finished"], bool) and isinstance(facts["log_prob_error"], float)
    except (KeyError, TypeError):
        good = False
    if not good:
        raise ValueError(
            f"{path}: expected the facts of a dump (asked and its fingerprint, done within its positions, chunks, "
            "finished, log_prob_error), got other ones"
        )
    return facts
