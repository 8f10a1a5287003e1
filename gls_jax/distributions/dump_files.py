"""The files of a dump: next-token distributions of two models along texts.

A dump is a folder with one memory-mapped array per field and a manifest, `dump.json`. A row is one
position of a text: the tokens that are likely under either model, their log-probabilities under
both, and the mass that each model has on all other tokens. Column 0 is the token that follows in
the text; a column that is not used has token -1.

The arrays are filled chunk by chunk, and the manifest is replaced after each whole chunk. So a dump
that was killed is resumed after its last whole chunk.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gls_jax import checks
from gls_jax.distributions.pairs import Pairs
from gls_jax.runs import files
from gls_jax.runs.resume import Manifest, check_resumable, differing_entries

__all__ = ["DTYPES", "TAILS", "Dump", "Rows", "Writer", "has_dump", "open_dump"]

DTYPES = ("float32", "float16")
"""Types in which log-probabilities are stored."""

TAILS = ("disjoint", "merged")
"""Treatments of the mass outside the stored tokens, see :meth:`Dump.pairs`."""

_MANIFEST = "dump.json"
_FORMAT = 1  # raised whenever earlier files would be misread


class Rows(NamedTuple):
    """Two distributions at each of `P` positions, on `W` tokens.

    Attributes:
        tokens: `i32[P, W]`; column 0 is the token that follows in the text, and unused columns are
            -1.
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
    """A dump to read: memory-mapped arrays, cut to the positions that are done.

    Attributes:
        folder: of the files.
        manifest: the configuration and the progress of the dump.
        rows: :class:`Rows` of all positions.
    """

    folder: Path
    manifest: Manifest
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows.begins)

    @property
    def configuration(self) -> dict[str, Any]:
        """Everything that the numbers depend on: models, text, sampling parameters."""
        return self.manifest.configuration

    @property
    def finished(self) -> bool:
        """Whether all requested positions are done."""
        return self.manifest.progress["finished"]

    @property
    def log_prob_error(self) -> float:
        """Largest rounding error of a stored log-probability."""
        return self.manifest.progress["log_prob_error"]

    def pairs(self, start: int = 0, stop: int | None = None, *, tails: str = "disjoint") -> Pairs:
        """The distributions on `W + 2` categories, the last two for the tails.

        Args:
            start, stop: positions `start, ..., stop - 1`.
            tails: treatment of the mass outside the stored tokens. `"disjoint"`: one category per
                distribution, which the other one cannot produce; `"merged"`: one for both.

        Returns:
            :class:`gls_jax.distributions.pairs.Pairs` of `f32`, normalised.

        Raises:
            ValueError: unknown `tails`.
        """
        checks.one_of(tails, TAILS, "tails")
        # Only these positions are read from the disk.
        positions = slice(start, stop)
        p = np.exp(np.asarray(self.rows.log_p[positions], np.float32))
        q = np.exp(np.asarray(self.rows.log_q[positions], np.float32))
        tail_p = np.asarray(self.rows.tail_p[positions], np.float32)[:, None]
        tail_q = np.asarray(self.rows.tail_q[positions], np.float32)[:, None]
        # The draft's tail is in the first of the two categories; disjoint, the target's is in the
        # second, where the draft has no mass.
        no_mass = np.zeros((len(p), 1), np.float32)
        p_columns = [p, tail_p, no_mass]
        q_columns = [q, tail_q, no_mass] if tails == "merged" else [q, no_mass, tail_q]
        return Pairs(_log_normalised(p_columns), _log_normalised(q_columns))


class Writer:
    """Fills a dump.

    Args:
        folder: of the dump.
        configuration: everything that the numbers depend on, as JSON, with `dtype`.
        num_positions: rows at most.
        width: `W`.
        resume: whether to continue a dump in the folder.

    Nothing is written before :meth:`begin`.

    Raises:
        ValueError: a dump in the folder without `resume`, or one of another configuration or with
            broken files.
        OSError: the files cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        configuration: dict[str, Any],
        num_positions: int,
        width: int,
        *,
        resume: bool,
    ) -> None:
        self._folder = folder
        self._arrays: list[np.memmap] = []
        self._manifest = Manifest(
            format=_FORMAT,
            configuration={**configuration, "positions": num_positions, "width": width},
            progress={"done": 0, "chunks": 0, "finished": False, "log_prob_error": 0.0},
        )
        if has_dump(folder):
            earlier = _read_manifest(folder)
            differences = differing_entries(earlier.configuration, self._manifest.configuration)
            check_resumable(folder, "a dump", resume=resume, differences=differences)
            self._manifest = earlier
            self._arrays = _open_arrays(folder, earlier.configuration, writable=True)

    @property
    def done(self) -> int:
        """Positions that are written."""
        return self._manifest.progress["done"]

    @property
    def chunks(self) -> int:
        """Chunks of text that they come from."""
        return self._manifest.progress["chunks"]

    @property
    def finished(self) -> bool:
        """Whether all positions are written."""
        return self._manifest.progress["finished"]

    def begin(self) -> None:
        """Create the files of a new dump; an earlier one has them."""
        if self._arrays:
            return
        for path, dtype, shape in _array_files(self._folder, self._manifest.configuration):
            self._arrays.append(files.new_array(path, dtype, shape))
        self._manifest.write(self._folder / _MANIFEST)

    def append(self, rows: Rows, *, finished: bool) -> None:
        """Write one more chunk; it is on the disk before the manifest counts it."""
        start, stop = self.done, self.done + len(rows.begins)
        for array, values in zip(self._arrays, rows, strict=True):
            array[start:stop] = values
            array.flush()
        # The rounding error of float16; 0 with float32.
        log_prob_error = self._manifest.progress["log_prob_error"]
        stored = Rows(*self._arrays)
        for exact, rounded in ((rows.log_p, stored.log_p), (rows.log_q, stored.log_q)):
            is_finite = np.isfinite(exact)
            errors = np.abs(exact[is_finite] - rounded[start:stop][is_finite])
            log_prob_error = max(log_prob_error, float(np.max(errors, initial=0)))
        progress = {"done": stop, "chunks": self.chunks + 1}
        progress |= {"finished": finished, "log_prob_error": log_prob_error}
        self._manifest = dataclasses.replace(self._manifest, progress=progress)
        self._manifest.write(self._folder / _MANIFEST)


def has_dump(folder: Path) -> bool:
    """Whether a folder has a dump, finished or not."""
    return (folder / _MANIFEST).exists()


def open_dump(folder: str | Path) -> Dump:
    """Read a dump, as far as it is done.

    Raises:
        FileNotFoundError: no dump there.
        ValueError: another format, a broken manifest, arrays that do not fit it, or no position
            done.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    done = manifest.progress["done"]
    if not done:
        raise ValueError(f"{folder}: expected a dump with at least one position done, got none")
    # Beyond that the arrays are empty, or hold a chunk that was being written.
    rows = Rows(*(array[:done] for array in _open_arrays(folder, manifest.configuration)))
    # A token that is likely under both models takes one column, not two. Columns that are unused in
    # every row are cut off.
    width = int((rows.tokens >= 0).sum(axis=1).max())
    rows = rows._replace(
        tokens=rows.tokens[:, :width], log_p=rows.log_p[:, :width], log_q=rows.log_q[:, :width]
    )
    return Dump(folder, manifest, rows)


def _log_normalised(columns: list[np.ndarray]) -> np.ndarray:
    probabilities = np.concatenate(columns, axis=1)
    sums = probabilities.sum(axis=1, keepdims=True)  # not 1 after rounding to float16
    with np.errstate(divide="ignore"):
        return np.log(probabilities / sums)


def _open_arrays(
    folder: Path, configuration: dict[str, Any], *, writable: bool = False
) -> list[np.memmap]:
    return [
        files.open_array(path, f"the array {path.stem} of a dump", dtype, shape, writable=writable)
        for path, dtype, shape in _array_files(folder, configuration)
    ]


def _array_files(
    folder: Path, configuration: dict[str, Any]
) -> list[tuple[Path, str, tuple[int, ...]]]:
    """Path, dtype and shape of the array of each field of :class:`Rows`."""
    # Arrays have their final size from the beginning.
    row = (configuration["positions"],)
    table = (configuration["positions"], configuration["width"])
    kinds = {
        "tokens": ("int32", table),
        "log_p": (configuration["dtype"], table),
        "log_q": (configuration["dtype"], table),
        "tail_p": ("float32", row),
        "tail_q": ("float32", row),
        "begins": ("bool", row),
    }
    return [(folder / f"{name}.npy", *kinds[name]) for name in Rows._fields]


def _read_manifest(folder: Path) -> Manifest:
    path = folder / _MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected the folder of a dump (gls-jax dump)"
        )
    return Manifest.read(path, run="a dump", format=_FORMAT, is_valid=_is_valid)


def _is_valid(manifest: Manifest) -> bool:
    progress = manifest.progress
    return (
        progress["done"] in range(manifest.configuration["positions"] + 1)
        and isinstance(progress["chunks"], int)
        and isinstance(progress["finished"], bool)
        and isinstance(progress["log_prob_error"], float)
    )
