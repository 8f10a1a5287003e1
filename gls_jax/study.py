"""An acceptance study: pairs x schemes x list lengths, exact and simulated, resumable, to one CSV.

The work is cut into blocks of pairs under one scheme. Each finished block goes to `cells.partial.npz` in the output
folder (temporary name, then renamed), so a run that is stopped loses one block at most. Trials are keyed by pair and
trial index: a resumed run gives the numbers of an uninterrupted one.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gls_jax import bounds, checks, files, schemes, trials
from gls_jax.pairs import Pairs

__all__ = ["Row", "Study", "run", "write_csv"]

_FORMAT = 1  # of the cells file: raised whenever the same cells would hold other numbers
_BLOCK_CLOCKS = 2**30  # clocks simulated in one block, and so at most lost by a stop: some seconds
_PARTIAL, _FINISHED = "cells.partial.npz", "cells.npz"


@dataclasses.dataclass(frozen=True)
class Study:
    """What is asked.

    Attributes:
        schemes: registered names.
        num_drafts: list lengths, each within every scheme's limit.
        num_trials: simulated trials a pair and scheme.
        seed: of the simulation.
    """

    schemes: tuple[str, ...]
    num_drafts: tuple[int, ...]
    num_trials: int
    seed: int

    def check(self) -> None:
        """Raise `ValueError` for an unknown scheme or a number out of range, before any work."""
        if not self.schemes:
            raise ValueError(f"schemes: expected at least one of {', '.join(schemes.NAMES)}, got none")
        if len(set(self.schemes)) < len(self.schemes):
            raise ValueError(f"schemes: expected each at most once, got {', '.join(self.schemes)}")
        for name in self.schemes:
            schemes.get(name).check_token_level("acceptance")
            for k in checks.counts(self.num_drafts, "num_drafts"):
                schemes.get(name).check_num_drafts(k)
        trials.check_num_trials(self.num_trials)
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: expected an int within 0..2^32 - 1, got {self.seed}")


@dataclasses.dataclass(frozen=True)
class Row:
    """Means over all pairs for one scheme and K; `None` where a quantity is not to be had at that size."""

    scheme: str
    num_drafts: int
    exact: float | None
    simulated: float | None
    standard_error: float | None
    bound: float | None
    optimum_iid: float
    num_pairs: int
    num_trials: int


def run(
    study: Study,
    pairs: Pairs,
    folder: Path,
    *,
    resume: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Row]:
    """Carry out a study and leave `cells.npz` and `acceptance.csv` in the folder.

    Args:
        study: what is asked.
        pairs: `M` pairs of laws.
        folder: made if missing; files in it are replaced only by finished ones.
        resume: go on with the unfinished run in the folder, if there is one.
        progress: called with `(scheme, blocks done, blocks)`.

    Returns:
        One :class:`Row` a scheme and K.

    Raises:
        ValueError: the study's or the pairs' faults; an unfinished run in the folder without `resume`, or one that was
            asked something else with it.
        OSError: the folder cannot be written.
    """
    study.check()
    for name, laws in zip(("log_p", "log_q"), pairs, strict=True):
        checks.check_log_probs(laws, name)
    folder.mkdir(parents=True, exist_ok=True)
    asked = _fingerprint(study, pairs)
    size = _block_size(study, pairs)
    blocks = [(name, start) for name in study.schemes for start in range(0, pairs.log_q.shape[0], size)]
    cells = _open(folder, asked, study, pairs, len(blocks), resume)
    for at, (name, start) in enumerate(blocks):
        if not cells["done"][at]:
            stop = min(start + size, pairs.log_q.shape[0])
            part = _block(study, name, pairs, start, stop, size)
            scheme = study.schemes.index(name)
            for field, values in part.items():
                cells[field][scheme, start:stop] = values
            cells["done"][at] = True
            files.write_arrays(folder / _PARTIAL, cells)
        if progress is not None:
            progress(name, at + 1, len(blocks))
    if (folder / _PARTIAL).exists():  # not when a finished run was found
        os.replace(folder / _PARTIAL, folder / _FINISHED)
    rows = list(_rows(study, pairs, cells))
    write_csv(folder / "acceptance.csv", rows)
    return rows


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line a row, under the field names; an unknown quantity is an empty cell."""

    def write(file):
        text = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)], lineterminator="\n")
        text.writeheader()
        text.writerows(dataclasses.asdict(row) for row in rows)

    files.write_whole(path, write, mode="w")


def _fingerprint(study: Study, pairs: Pairs) -> str:
    digest = hashlib.sha256(json.dumps([_FORMAT, dataclasses.asdict(study)], sort_keys=True).encode())
    for laws in pairs:
        digest.update(repr(laws.shape).encode() + np.ascontiguousarray(laws).tobytes())
    return digest.hexdigest()


def _block_size(study: Study, pairs: Pairs) -> int:
    count, items = pairs.log_q.shape
    clocks = items * max(study.num_drafts) * study.num_trials
    return max(1, min(count, 32, _BLOCK_CLOCKS // clocks))


def _open(folder: Path, asked: str, study: Study, pairs: Pairs, blocks: int, resume: bool) -> dict[str, np.ndarray]:
    """The cells so far: those of the unfinished run in the folder, or empty ones."""
    for name in (_PARTIAL, _FINISHED):
        path = folder / name
        if not path.exists() or (not resume and name == _FINISHED):
            continue
        if not resume:
            raise ValueError(f"{path}: an unfinished run is here; --resume goes on with it, else give another folder")
        cells = files.read_arrays(path, "the cells of an earlier run")
        if str(cells.get("asked")) == asked:
            return cells
        if name == _PARTIAL:
            raise ValueError(f"{path}: the unfinished run here was asked something else; give another folder")
    shape = (len(study.schemes), pairs.log_q.shape[0], len(study.num_drafts))
    cells = {field: np.full(shape, np.nan) for field in ("exact", "simulated", "standard_error", "bound")}
    cells |= {"done": np.zeros(blocks, bool), "asked": np.array(asked)}
    files.write_arrays(folder / _PARTIAL, cells)  # also: can the folder be written?
    return cells


def _block(study: Study, name: str, pairs: Pairs, start: int, stop: int, size: int) -> dict[str, np.ndarray]:
    """All cells of the pairs start..stop-1 under one scheme; the last block is filled up to keep one compilation."""
    indices = np.minimum(np.arange(start, start + size), stop - 1)
    log_p, log_q = (jnp.asarray(laws[indices]) for laws in pairs)
    root = jax.random.key(study.seed)
    keys = jax.vmap(partial(jax.random.fold_in, root))(jnp.asarray(indices))
    scheme, size = schemes.get(name), log_q.shape[1]
    cells = {"bound": _bound(log_p, log_q, name=name, num_drafts=study.num_drafts)}
    known = tuple(k for k in study.num_drafts if scheme.acceptance_limit(size, k) is None)
    if known:
        values = np.full((len(log_q), len(study.num_drafts)), np.nan)
        values[:, np.isin(study.num_drafts, known)] = _exact(log_p, log_q, name=name, num_drafts=known)
        cells["exact"] = values
    if scheme.verify_limit(size, max(study.num_drafts)) is None:
        estimate = trials.sweep(
            keys, log_p, log_q, scheme=scheme, num_drafts=study.num_drafts, num_trials=study.num_trials
        )
        cells["simulated"], cells["standard_error"], _ = estimate
    return {field: np.asarray(values)[: stop - start] for field, values in cells.items()}


@partial(jax.jit, static_argnames=("name", "num_drafts"))
def _exact(log_p, log_q, *, name: str, num_drafts: tuple[int, ...]):
    scheme = schemes.get(name)
    return jax.lax.map(lambda laws: scheme.acceptance_curve(laws[0], laws[1], num_drafts), (log_p, log_q))


@partial(jax.jit, static_argnames=("name", "num_drafts"))
def _bound(log_p, log_q, *, name: str, num_drafts: tuple[int, ...]):
    bound = schemes.get(name).bound or (lambda p, q, k: jnp.array(jnp.nan))
    return jax.lax.map(lambda laws: jnp.stack([bound(laws[0], laws[1], k) for k in num_drafts]), (log_p, log_q))


def _rows(study: Study, pairs: Pairs, cells: dict[str, np.ndarray]) -> Iterable[Row]:
    def optima(laws):
        p, q = laws
        return jnp.stack([bounds.optimum_iid(p, q, k) for k in study.num_drafts])

    best = np.asarray(jax.lax.map(optima, pairs)).mean(0)
    count = pairs.log_q.shape[0]
    for s, name in enumerate(study.schemes):
        for c, k in enumerate(study.num_drafts):
            column = {field: cells[field][s, :, c] for field in ("exact", "simulated", "standard_error", "bound")}
            yield Row(
                scheme=name,
                num_drafts=k,
                exact=_known(column["exact"].mean()),
                simulated=_known(column["simulated"].mean()),
                standard_error=_known(np.sqrt((column["standard_error"] ** 2).sum()) / count),
                bound=_known(column["bound"].mean()),
                optimum_iid=float(best[c]),
                num_pairs=count,
                num_trials=study.num_trials,
            )


def _known(value) -> float | None:
    return None if np.isnan(value) else float(value)
