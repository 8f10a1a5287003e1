"""The cells of a study in files: each process writes a part, and whoever goes on reads all of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from gls_jax.runs import files

__all__ = ["FIELDS", "Cells"]

FIELDS = ("exact", "simulated", "standard_error", "bound")
_FINISHED = "cells.npz"


class Cells:
    """Numbers of every scheme, pair and list length, and which blocks of them are known.

    Args:
        folder: where the files are.
        asked: fingerprint of what the numbers depend on.
        shape: schemes, pairs, list lengths.
        size: pairs in a block.
        resume: whether to begin with what an earlier run has left in the folder.

    Attributes:
        blocks: which scheme and which pairs each block holds.
        done: which blocks are known, `bool[len(blocks)]`.

    Raises:
        ValueError: an unfinished run in the folder without `resume`, or one that was asked
            something else with it.
    """

    blocks: list[tuple[int, slice]]
    done: Bool[np.ndarray, " blocks"]

    def __init__(
        self, folder: Path, asked: str, shape: tuple[int, int, int], size: int, resume: bool
    ) -> None:
        self._folder, self._asked = folder, asked
        self._values = {field: np.full(shape, np.nan) for field in FIELDS}
        starts = range(0, shape[1], size)
        self.blocks = [
            (s, slice(at, min(at + size, shape[1]))) for s in range(shape[0]) for at in starts
        ]
        self.done = np.zeros(len(self.blocks), bool)
        if not resume and (parts := self._parts()):
            raise ValueError(
                f"{parts[0]}: an unfinished run is here; --resume goes on with it, else give another folder"
            )
        if resume:
            self.read()

    def __getitem__(self, field: str) -> np.ndarray:
        return self._values[field]

    @property
    def purpose(self) -> str:
        """Of a process: what it was asked, and which blocks it knows."""
        return hashlib.sha256(self._asked.encode() + self.done.tobytes()).hexdigest()

    def read(self) -> None:
        """Take over all blocks that the files in the folder know."""
        for path in [*self._parts(), self._folder / _FINISHED]:
            if not path.exists():
                continue
            found = files.read_arrays(path, "the cells of an earlier run")
            if str(found.get("asked")) == self._asked:
                shapes = {"done": self.done.shape} | {
                    field: self._values[field].shape for field in FIELDS
                }
                if any(
                    name not in found or found[name].shape != shape
                    for name, shape in shapes.items()
                ):
                    raise ValueError(
                        f"{path}: expected the cells of an earlier run, got other arrays"
                    )
                for block in np.flatnonzero(found["done"] & ~self.done):
                    scheme, pairs = self.blocks[block]
                    self.put(int(block), {field: found[field][scheme, pairs] for field in FIELDS})
            elif path.name != _FINISHED:
                raise ValueError(
                    f"{path}: the unfinished run here was asked something else; give another folder"
                )

    def put(self, block: int, values: Mapping[str, np.ndarray]) -> None:
        """Note the numbers of a block by field, `f[pairs, list lengths]` each; fields not named
        stay unknown.
        """
        scheme, pairs = self.blocks[block]
        for field, numbers in values.items():
            self._values[field][scheme, pairs] = numbers
        self.done[block] = True

    def write(self, process: int) -> None:
        """Write all that is known to the part of one process, in place of what it held."""
        arrays = self._values | {"done": self.done, "asked": np.array(self._asked)}
        files.write_arrays(self._part(process), arrays)

    def finish(self) -> None:
        """Make one file of the parts; at each moment the files hold everything."""
        if not self._parts():  # a finished run was found
            return
        self.write(0)
        for path in set(self._parts()) - {self._part(0)}:
            path.unlink()
        os.replace(self._part(0), self._folder / _FINISHED)
        for path in self._folder.glob(".cells.*"):  # temporary files of processes that were killed
            path.unlink(missing_ok=True)

    def _part(self, process: int) -> Path:
        return self._folder / f"cells.partial.{process}.npz"

    def _parts(self) -> list[Path]:
        paths = self._folder.glob("cells.partial.*.npz")
        return sorted(path for path in paths if path.name.split(".")[2].isdecimal())
