"""An acceptance study: pairs x schemes x list lengths, exact and simulated, to one CSV file.

The work is cut into blocks of pairs under one scheme, and the blocks are shared among the
processes. After each call a process replaces its `cells.partial.<process>.npz` in the output
folder. So a run that is stopped loses at most the blocks of one call per process: one block on a
CPU, up to 64 on an accelerator. Trials are keyed by pair and trial index: a resumed run, on any
number of processes and devices, gives the numbers of an uninterrupted one.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gls_jax import bounds, checks, races, schemes, trials, work_shape
from gls_jax.distributions.pairs import Pairs
from gls_jax.exact import batched
from gls_jax.runs import cluster, files
from gls_jax.runs.results_grid import FIELDS, ResultsGrid
from gls_jax.runs.resume import configuration_hash
from gls_jax.typing import Report

__all__ = ["Row", "Study", "computable_lengths", "none_if_nan", "run"]

_FORMAT = 3  # of the results: raised whenever the same configuration would give other numbers
# Exponential variables simulated in one block: some seconds of work on a CPU.
_BLOCK_NOISE = 2**30


@dataclasses.dataclass(frozen=True)
class Study:
    """The configuration of a study.

    Attributes:
        schemes: names of registered schemes.
        num_drafts: list lengths, each within every scheme's limit.
        num_trials: simulated trials per pair and scheme.
        seed: seed of the simulation.
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
        checks.seed(self.seed)


@dataclasses.dataclass(frozen=True)
class Row:
    """Means over all pairs for one scheme and K.

    A quantity is `None` where the scheme does not have it, or where it cannot be computed at this
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
    progress: Report | None = None,
) -> list[Row]:
    """Carry out a study and write `cells.npz` (all results) and `acceptance.csv` to the folder.

    Args:
        study: the configuration.
        pairs: `M` pairs of distributions.
        folder: made if missing; files in it are replaced only by finished ones. All processes must
            see the same folder.
        resume: whether to continue the unfinished run in the folder, if there is one.
        progress: called with `(scheme, blocks done, blocks)`, of this process.

    Returns:
        One :class:`Row` per scheme and K; an empty list on processes other than process 0.

    Raises:
        ValueError: invalid study or pairs; an unfinished run is in the folder and `resume` is not
            set, or that run has another configuration.
        OSError: the folder cannot be written, another run is using it, or another process has died.
    """
    study.check()
    checks.check_log_probs(pairs.log_p, "log_p")
    checks.check_log_probs(pairs.log_q, "log_q")
    folder.mkdir(parents=True, exist_ok=True)
    process = cluster.index()
    block_size = _block_size(study, pairs)
    shape = (len(study.schemes), pairs.log_q.shape[0], len(study.num_drafts))
    # All processes write into the folder: the first one locks it for all.
    with files.alone(folder) if cluster.is_primary() else nullcontext():
        run_hash = _configuration_hash(study, pairs)
        grid = ResultsGrid(folder, run_hash, shape, block_size, resume=resume)
        # All processes must have read the finished blocks before one of them writes; so they share
        # the same remaining blocks.
        cluster.barrier(grid.state_hash)
        unknown = np.flatnonzero(~grid.done)
        num_known = int(grid.done.sum())
        if unknown.size:
            grid.write(process)  # fails before the work if the folder cannot be written
        block_indices = unknown[cluster.shard(unknown.size)].tolist()
        num_computed = 0
        for group in _groups(block_indices, grid):
            num_computed += len(group)
            scheme_name = study.schemes[grid.blocks[group[0]].scheme]
            slices = [grid.blocks[block_index].pairs for block_index in group]
            values = _compute_blocks(study, scheme_name, pairs, slices, block_size)
            for block_index, block_values in zip(group, values, strict=True):
                grid.put(block_index, block_values)
            grid.write(process)
            if progress is not None:
                progress(scheme_name, num_known + num_computed, num_known + len(block_indices))
        # All blocks are written: the first process merges them and reports.
        cluster.barrier()
        if not cluster.is_primary():
            return []
        grid.read()
        if num_missing := int((~grid.done).sum()):
            raise ValueError(
                f"{folder}: expected the results of {cluster.size()} processes, but {num_missing} "
                f"of {grid.done.size} blocks are missing; if the hosts do not share a folder, copy "
                "all cells.partial.*.npz into one and resume there"
            )
        grid.finish()
        rows = list(_rows(study, pairs, grid))
        _write_csv(folder / "acceptance.csv", rows)
        return rows


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write one line per row, under the field names; an unknown quantity is an empty field."""
    names = [field.name for field in dataclasses.fields(Row)]

    def write(file):
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)

    files.write_whole(path, write, mode="w")


def none_if_nan(value: float) -> float | None:
    """The number, or None for NaN, which stands for an unknown quantity in arrays."""
    return None if np.isnan(value) else float(value)


def computable_lengths(
    scheme: schemes.Scheme, num_drafts: Sequence[int], num_categories: int
) -> tuple[int, ...]:
    """The list lengths at which a scheme has an exact acceptance for this number of categories."""
    most = scheme.max_drafts or max(num_drafts)
    limit = scheme.acceptance_limit
    return tuple(k for k in num_drafts if k <= most and limit(num_categories, k) is None)


def _configuration_hash(study: Study, pairs: Pairs) -> str:
    return configuration_hash([_FORMAT, dataclasses.asdict(study)], pairs.log_p, pairs.log_q)


def _block_size(study: Study, pairs: Pairs) -> int:
    num_pairs, num_categories = pairs.log_q.shape
    longest = max(study.num_drafts)
    noise_per_trial = max(
        trials.noise_per_trial(schemes.get(name), longest, num_categories) for name in study.schemes
    )
    return max(1, min(num_pairs, 32, _BLOCK_NOISE // (study.num_trials * noise_per_trial)))


def _groups(block_indices: list[int], grid: ResultsGrid) -> Iterator[list[int]]:
    """The blocks in groups of one scheme that are computed in one call."""
    most_blocks = work_shape.current().study_blocks
    for _, same_scheme in itertools.groupby(
        block_indices, lambda block_index: grid.blocks[block_index].scheme
    ):
        remaining = list(same_scheme)
        for start in range(0, len(remaining), most_blocks):
            yield remaining[start : start + most_blocks]


def _compute_blocks(
    study: Study, scheme_name: str, pairs: Pairs, slices: Sequence[slice], block_size: int
) -> list[dict[str, np.ndarray]]:
    """The values of each block, `f[pairs, list lengths]`, by field."""
    # Where a call has several blocks, a batch of pairs is a block: its values then do not depend on
    # what else is in the call. A call of one block is filled up with a copy of it, because XLA
    # unrolls a loop of one step, and may then round sums differently.
    shape = work_shape.current()
    batch_size = None
    computed_slices = list(slices)
    if shape.study_blocks > 1:
        batch_size = min(block_size, shape.pairs_at_once(pairs.log_q.shape[1]))
        if len(slices) == 1:
            computed_slices = [*slices, *slices]
    # A last block is filled up with its last pair: blocks of one size, and few compilations.
    indices = np.concatenate(
        [
            np.minimum(block.start + np.arange(block_size), block.stop - 1)
            for block in computed_slices
        ]
    )
    log_p, log_q = jnp.asarray(pairs.log_p[indices]), jnp.asarray(pairs.log_q[indices])
    num_drafts, num_categories = study.num_drafts, log_q.shape[1]
    scheme = schemes.get(scheme_name)
    values: dict = {}
    if scheme.exact is not None and scheme.exact.bound is not None:
        static = (scheme_name, num_drafts)
        values["bound"] = batched.over_pairs(
            _bound_curve, log_p, log_q, static=static, batch_size=batch_size
        )
    # At some list lengths a scheme may be too slow or too large for this number of categories.
    known_lengths = computable_lengths(scheme, num_drafts, num_categories)
    if known_lengths:
        curves = batched.acceptance_curves(
            scheme, log_p, log_q, known_lengths, batch_size=batch_size
        )
        values["exact"] = np.full((len(log_q), len(num_drafts)), np.nan)
        values["exact"][:, np.isin(num_drafts, known_lengths)] = curves
    # Each pair has a separate key, so that blocks of any size have the same trials.
    fold_in = partial(jax.random.fold_in, races.new_key(study.seed))
    estimate = trials.sweep(
        jax.vmap(fold_in)(jnp.asarray(indices)),
        log_p,
        log_q,
        scheme=scheme,
        num_drafts=num_drafts,
        num_trials=study.num_trials,
    )
    values["simulated"] = estimate.mean
    values["standard_error"] = estimate.standard_error
    # Without the copies that filled up the blocks.
    by_block = []
    for number, block in enumerate(slices):
        start = number * block_size
        part = slice(start, start + block.stop - block.start)
        by_block.append({field: np.asarray(array)[part] for field, array in values.items()})
    return by_block


def _bound_curve(log_p, log_q, scheme_name: str, num_drafts: tuple[int, ...]) -> jax.Array:
    """The scheme's lower bound on the acceptance of one pair, for several K."""
    exact = schemes.get(scheme_name).exact
    assert exact is not None and exact.bound is not None
    bound = exact.bound
    return jnp.stack([bound(log_p, log_q, k) for k in num_drafts])


def _optimum_curve(log_p, log_q, num_drafts: tuple[int, ...]) -> jax.Array:
    """The optimum of i.i.d. drafts for one pair, for several K."""
    return jnp.stack([bounds.optimum_iid(log_p, log_q, k) for k in num_drafts])


def _rows(study: Study, pairs: Pairs, grid: ResultsGrid) -> Iterable[Row]:
    static = (tuple(study.num_drafts),)
    optimum = batched.over_pairs(_optimum_curve, *pairs, static=static).mean(axis=0)
    num_pairs = pairs.log_q.shape[0]
    for scheme_index, scheme_name in enumerate(study.schemes):
        for column, k in enumerate(study.num_drafts):
            values = {field: grid[field][scheme_index, :, column] for field in FIELDS}
            means = {field: array.mean() for field, array in values.items()}
            # The trials of different pairs are independent: variances add up.
            variance = (values["standard_error"] ** 2).sum()
            means["standard_error"] = np.sqrt(variance) / num_pairs
            yield Row(
                scheme=scheme_name,
                num_drafts=k,
                **{field: none_if_nan(mean) for field, mean in means.items()},
                optimum_iid=float(optimum[column]),
                num_pairs=num_pairs,
                num_trials=study.num_trials,
            )
