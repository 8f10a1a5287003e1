"""An acceptance study: pairs x schemes x list lengths, exact and simulated, resumable, to one CSV.

The work is cut into blocks of pairs under one scheme, and the blocks are dealt out to the
processes. Each finished block goes to the `cells.partial.<process>.npz` of its process in the
output folder (temporary name, then renamed), so a run that is stopped loses one block a process at
most. Trials are keyed by pair and trial index: a resumed run, on any number of processes and
devices, gives the numbers of an uninterrupted one.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gls_jax import bounds, checks, races, schemes, trials
from gls_jax.distributions.pairs import Pairs
from gls_jax.exact import batched
from gls_jax.runs import cluster, files
from gls_jax.runs.results_grid import FIELDS, Cells

__all__ = ["Row", "Study", "run", "write_csv"]

_FORMAT = 2  # of the cells file: raised whenever the same cells would hold other numbers
_BLOCK_CLOCKS = 2**30  # clocks simulated in one block, and so at most lost by a stop: some seconds


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
            raise ValueError(
                f"schemes: expected at least one of {', '.join(schemes.NAMES)}, got none"
            )
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
    """Means over all pairs for one scheme and K; `None` where a quantity is not to be had at that
    size.
    """

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
        folder: made if missing; files in it are replaced only by finished ones. All processes see
            the same one.
        resume: go on with the unfinished run in the folder, if there is one.
        progress: called with `(scheme, blocks done, blocks)`, of this process.

    Returns:
        One :class:`Row` a scheme and K; none on processes other than the first.

    Raises:
        ValueError: the study's or the pairs' faults; an unfinished run in the folder without
            `resume`, or one that was asked something else with it.
        OSError: the folder cannot be written, another run is at work in it, or another process is
            gone.
    """
    study.check()
    for name, laws in zip(("log_p", "log_q"), pairs, strict=True):
        checks.check_log_probs(laws, name)
    folder.mkdir(parents=True, exist_ok=True)
    process, size = cluster.index(), _block_size(study, pairs)
    shape = (len(study.schemes), pairs.log_q.shape[0], len(study.num_drafts))
    with files.alone(folder) if process == 0 else nullcontext():
        cells = Cells(folder, _fingerprint(study, pairs), shape, size, resume)
        cluster.meet(cells.purpose)  # all have read what there is before one of them writes
        todo, known = np.flatnonzero(~cells.done), int(cells.done.sum())
        if todo.size:
            cells.write(process)  # also: can the folder be written?
        mine = todo[cluster.deal(todo.size)]
        for at, block in enumerate(mine, 1):
            scheme, those = cells.blocks[block]
            name = study.schemes[scheme]
            cells.put(int(block), _block(study, name, pairs, those.start, those.stop, size))
            cells.write(process)
            if progress is not None:
                progress(name, known + at, known + len(mine))
        cluster.meet()
        if process > 0:
            return []
        cells.read()
        if missing := int((~cells.done).sum()):
            raise ValueError(
                f"{folder}: expected the blocks of {cluster.size()} processes, but {missing} of {cells.done.size} are "
                "not here; hosts that share no folder: bring all cells.partial.*.npz into one and --resume there"
            )
        cells.finish()
        table = list(_rows(study, pairs, cells))
        write_csv(folder / "acceptance.csv", table)
        return table


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line a row, under the field names; an unknown quantity is an empty cell."""

    def write(file):
        text = csv.DictWriter(
            file, [field.name for field in dataclasses.fields(Row)], lineterminator="\n"
        )
        text.writeheader()
        text.writerows(dataclasses.asdict(row) for row in rows)

    files.write_whole(path, write, mode="w")


def _fingerprint(study: Study, pairs: Pairs) -> str:
    digest = hashlib.sha256(
        json.dumps([_FORMAT, dataclasses.asdict(study)], sort_keys=True).encode()
    )
    for laws in pairs:
        digest.update(repr(laws.shape).encode() + np.ascontiguousarray(laws).tobytes())
    return digest.hexdigest()


def _block_size(study: Study, pairs: Pairs) -> int:
    count, items = pairs.log_q.shape
    most = max(study.num_drafts)
    clocks = study.num_trials * max(
        trials.noise_per_trial(schemes.get(name), most, items) for name in study.schemes
    )
    return max(1, min(count, 32, _BLOCK_CLOCKS // clocks))


def _block(
    study: Study, name: str, pairs: Pairs, start: int, stop: int, size: int
) -> dict[str, np.ndarray]:
    """All cells of the pairs start..stop-1 under one scheme; the last block is filled up to keep
    one compilation.
    """
    indices = np.minimum(np.arange(start, start + size), stop - 1)
    log_p, log_q = (jnp.asarray(laws[indices]) for laws in pairs)
    keys = races.keys.fold_in_each(races.new_key(study.seed), indices)
    scheme, size = schemes.get(name), log_q.shape[1]
    cells: dict = {
        "bound": np.full((len(log_q), len(study.num_drafts)), np.nan)
    }  # of a scheme that has none
    if scheme.exact is not None and scheme.exact.bound is not None:
        cells["bound"] = batched.over_pairs(
            _bound_curve, log_p, log_q, static=(name, study.num_drafts)
        )
    known = tuple(k for k in study.num_drafts if scheme.acceptance_limit(size, k) is None)
    if known:
        values = np.full((len(log_q), len(study.num_drafts)), np.nan)
        exact = batched.acceptance_curves(scheme, log_p, log_q, known)
        values[:, np.isin(study.num_drafts, known)] = exact
        cells["exact"] = values
    if scheme.verify_limit(size, max(study.num_drafts)) is None:
        estimate = trials.sweep(
            keys,
            log_p,
            log_q,
            scheme=scheme,
            num_drafts=study.num_drafts,
            num_trials=study.num_trials,
        )
        cells["simulated"], cells["standard_error"], _ = estimate
    return {field: np.asarray(values)[: stop - start] for field, values in cells.items()}


def _bound_curve(log_p, log_q, name: str, num_drafts: tuple[int, ...]) -> jax.Array:
    """The scheme's lower bound on the acceptance of one pair, for several K."""
    exact = schemes.get(name).exact
    assert exact is not None and exact.bound is not None
    bound = exact.bound
    return jnp.stack([bound(log_p, log_q, k) for k in num_drafts])


def _rows(study: Study, pairs: Pairs, cells: Cells) -> Iterable[Row]:
    def optima(laws):
        p, q = laws
        return jnp.stack([bounds.optimum_iid(p, q, k) for k in study.num_drafts])

    best = np.asarray(jax.lax.map(optima, pairs)).mean(0)
    count = pairs.log_q.shape[0]
    for s, name in enumerate(study.schemes):
        for c, k in enumerate(study.num_drafts):
            column = {field: cells[field][s, :, c] for field in FIELDS}
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
