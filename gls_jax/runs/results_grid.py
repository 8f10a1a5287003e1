"""Numbers of every scheme, pair and list length of a study, written to files block by block.

Each process writes a separate file, `cells.partial.<process>.npz`, with all results that it has
read or computed. A resumed run reads all of these files. The merged file is `cells.npz`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from gls_jax.runs import files
from gls_jax.runs.resume import check_resumable

__all__ = ["FIELDS", "Block", "ResultsGrid"]

FIELDS = ("exact", "simulated", "standard_error", "bound")
_RUN, _FINISHED = "an unfinished run", "cells.npz"
_HASH = "asked"  # the array of the configuration's hash, by its name in the first version's files


class Block(NamedTuple):
    """A slice of the pairs under one scheme: the unit of work.

    Attributes:
        scheme: index of the scheme.
        pairs: indices of the pairs.
    """

    scheme: int
    pairs: slice


class ResultsGrid:
    """Numbers of every scheme, pair and list length, and flags of the blocks that are done.

    Args:
        folder: folder of the files.
        configuration_hash: hash of everything that the numbers depend on.
        shape: numbers of schemes, pairs and list lengths.
        block_size: pairs per block.
        resume: whether to begin with the results of an earlier run in the folder.

    Attributes:
        blocks: all blocks.
        done: whether each block is done, `bool[len(blocks)]`.

    Raises:
        ValueError: an unfinished run is in the folder and `resume` is not set, or that run has
            another configuration.
    """

    blocks: list[Block]
    done: Bool[np.ndarray, " blocks"]

    def __init__(
        self,
        folder: Path,
        configuration_hash: str,
        shape: tuple[int, int, int],
        block_size: int,
        *,
        resume: bool,
    ) -> None:
        self._folder, self._hash = folder, configuration_hash
        self._values = {field: np.full(shape, np.nan) for field in FIELDS}
        num_schemes, num_pairs, _ = shape
        self.blocks = [
            Block(scheme, slice(start, min(start + block_size, num_pairs)))
            for scheme in range(num_schemes)
            for start in range(0, num_pairs, block_size)
        ]
        self.done = np.zeros(len(self.blocks), bool)
        for part in self._parts():
            check_resumable(part, _RUN, resume=resume, differences=[])
        if resume:
            self.read()

    def __getitem__(self, field: str) -> np.ndarray:
        return self._values[field]

    @property
    def state_hash(self) -> str:
        """Hash of the configuration and of the finished blocks; equal on processes that agree."""
        return hashlib.sha256(self._hash.encode() + self.done.tobytes()).hexdigest()

    def read(self) -> None:
        """Take over all finished blocks of the files in the folder."""
        for path in [*self._parts(), self._folder / _FINISHED]:
            if not path.exists():
                continue
            arrays = files.read_arrays(path, "the results of an earlier run")
            # The first version stored more digits of the same hash.
            if str(arrays.get(_HASH)).startswith(self._hash):
                self._take(path, arrays)
            elif path.name != _FINISHED:  # a finished run of another configuration is replaced
                check_resumable(path, _RUN, resume=True, differences=["hash"])

    def put(self, block_index: int, values: Mapping[str, np.ndarray]) -> None:
        """Enter the numbers of a block.

        Args:
            block_index: index of the block.
            values: `f[pairs, list lengths]` by field; missing fields stay NaN.
        """
        block = self.blocks[block_index]
        for field, numbers in values.items():
            self._values[field][block.scheme, block.pairs] = numbers
        self.done[block_index] = True

    def write(self, process: int) -> None:
        """Replace the file of one process by all results that are known here."""
        arrays = self._values | {"done": self.done, _HASH: np.array(self._hash)}
        files.write_arrays(self._part(process), arrays)

    def finish(self) -> None:
        """Merge the files of the processes; if this is interrupted, no result is lost."""
        if not self._parts():  # the run was finished before
            return
        self.write(0)
        for path in set(self._parts()) - {self._part(0)}:
            path.unlink()
        os.replace(self._part(0), self._folder / _FINISHED)
        # Temporary files of processes that were killed while they wrote.
        for path in self._folder.glob(".cells.*"):
            path.unlink(missing_ok=True)

    def _take(self, path: Path, arrays: dict[str, np.ndarray]) -> None:
        """Enter the blocks of a file that are not done yet."""
        for name, array in {**self._values, "done": self.done}.items():
            if name not in arrays or arrays[name].shape != array.shape:
                raise ValueError(
                    f"{path}: expected the results of an earlier run, got other arrays"
                )
        for block_index in np.flatnonzero(arrays["done"] & ~self.done):
            block = self.blocks[block_index]
            values = {field: arrays[field][block.scheme, block.pairs] for field in FIELDS}
            self.put(int(block_index), values)

    def _part(self, process: int) -> Path:
        return self._folder / f"cells.partial.{process}.npz"

    def _parts(self) -> list[Path]:
        """The files of all processes."""
        paths = self._folder.glob("cells.partial.*.npz")
        return sorted(path for path in paths if path.name.split(".")[2].isdecimal())
