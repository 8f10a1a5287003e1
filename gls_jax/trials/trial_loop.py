"""Counting accepted trials: chunk after chunk, on all devices of the process.

A chunk is a number of trials of a block of pairs, one trial in each lane. On a CPU it is small
enough for the cache of a core, and a block is one pair. On an accelerator a chunk has about a
million lanes, as far as memory permits, and a block as many pairs as fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Key

from gls_jax import checks, schemes
from gls_jax.loops import map_in_batches, varying_like
from gls_jax.typing import Progress
from gls_jax.work_shape import WorkShape

__all__ = [
    "Chunk",
    "Method",
    "TrialProgram",
    "chosen_method",
    "chunk_of",
    "count_accepted",
    "count_in_chunks",
    "count_on_devices",
    "noise_per_trial",
]

# Least number of trials of a device between two progress reports.
_FEWEST_PER_CALL = 1024
# Least number of categories for which inversion is faster, in every scheme that has both methods.
# The same on every platform, because the methods draw different numbers.
_INVERSION_FROM = 32
# Exponentials that take the time of one draft by inversion, at large vocabularies.
_NOISE_PER_INVERSION = 128
# Bytes for each category that inversion holds for a pair: about 12 arrays, also while it sorts.
_TABLE_BYTES = 48
# Numbers that a trial by inversion holds. On a CPU XLA keeps most of them in registers. On an
# accelerator, for each draft: its exponentials, their bits, and the indices of its searches.
_INVERSION_NUMBERS = 4
_INVERSION_NUMBERS_PER_DRAFT = 32

# How trials are drawn: from the noise of the scheme, or by inversion.
Method = Literal["noise", "inversion"]


class TrialProgram(NamedTuple):
    """The static arguments of a compiled program of trials.

    Attributes:
        scheme: the scheme to simulate.
        num_drafts: the list lengths.
        method: `"noise"` or `"inversion"`.
        shape: how wide to compute.
    """

    scheme: schemes.Scheme
    num_drafts: tuple[int, ...]
    method: Method
    shape: WorkShape


class Chunk(NamedTuple):
    """The size of a chunk.

    Attributes:
        num_pairs: pairs of a block.
        num_trials: trials of each of them.
    """

    num_pairs: int
    num_trials: int


def noise_per_trial(
    scheme: schemes.Scheme,
    num_drafts: int,
    num_categories: int,
    method: Method | None = None,
) -> int:
    """Cost of one trial, in units of the time that one exponential takes."""
    if chosen_method(scheme, num_categories, method) == "noise":
        return num_drafts * num_categories
    return num_drafts * _NOISE_PER_INVERSION


def chosen_method(
    scheme: schemes.Scheme,
    num_categories: int,
    method: Method | None,
) -> Method:
    """`method` if it is not None, or else the faster one that the scheme has."""
    if method is not None:
        checks.one_of(method, ("noise", "inversion"), "method")
        return method
    has_inversion = scheme.trials is not None and scheme.trials.inversion is not None
    return "inversion" if has_inversion and num_categories >= _INVERSION_FROM else "noise"


def count_on_devices(
    keys: Key[Array, " M"],
    log_p: Float[Array, "M *k N"],
    log_q: Float[Array, "M N"],
    num_trials: int,
    program: TrialProgram,
    devices: Sequence[jax.Device] | None,
    progress: Progress | None,
) -> np.ndarray:
    """Accepted trials `f64[M, C]` of every pair and list length, in calls of about a second."""
    num_pairs, num_categories = log_q.shape
    most_drafts = max(program.num_drafts)
    mesh = _mesh(num_pairs, devices)
    pairs = jax.device_put((keys, log_p, log_q), NamedSharding(mesh, P("pairs")))
    fewest = _FEWEST_PER_CALL
    if program.method == "inversion":
        # Every call sorts each pair. As many trials as categories make that a small part.
        fewest = max(fewest, num_categories)
    cost_of_trial = noise_per_trial(program.scheme, most_drafts, num_categories, program.method)
    # Trials of all pairs that one device computes in a call; several devices compute more.
    trials_of_one = max(fewest, program.shape.noise_per_report // (num_pairs * cost_of_trial))
    trials_per_call = min(mesh.size * trials_of_one, num_trials)
    # A device has a part of the pairs, and a part of the trials of each.
    chunk = chunk_of(
        program,
        num_pairs // mesh.shape["pairs"],
        log_p.shape[1:],
        -(-trials_per_call // mesh.shape["trials"]),
    )
    accepted = np.zeros((num_pairs, len(program.num_drafts)), np.int64)
    for start in range(0, num_trials, trials_per_call):
        stop = min(start + trials_per_call, num_trials)
        # Each device of a group runs a part of the call's trials.
        limits = np.linspace(start, stop, mesh.shape["trials"] + 1).astype(np.int32)
        with jax.set_mesh(mesh):  # replaces a mesh that the caller may have set
            counts = _count_in_shards(
                *pairs, limits[:-1], limits[1:], mesh=mesh, program=program, chunk=chunk
            )
        accepted += np.asarray(counts).sum(0)
        if progress is not None:
            progress(stop * num_pairs, num_trials * num_pairs)
    return accepted.astype(np.float64)


def chunk_of(
    program: TrialProgram, num_pairs: int, draft_shape: tuple[int, ...], num_trials: int
) -> Chunk:
    """The chunk for that many pairs and trials of each.

    Args:
        program: what is simulated.
        num_pairs: pairs of the call.
        draft_shape: of the draft distributions of one pair, `[N]` or `[K, N]`.
        num_trials: trials of each pair in the call.
    """
    shape = program.shape
    trials = program.scheme.trials
    most_drafts = max(program.num_drafts)
    if program.method == "inversion":
        # Whatever the number of categories.
        numbers_per_trial = _INVERSION_NUMBERS
        if shape.is_wide:
            numbers_per_trial = _INVERSION_NUMBERS_PER_DRAFT * most_drafts
    elif trials is not None and trials.streaming and not shape.is_wide:
        numbers_per_trial = most_drafts
    else:
        # The noise of all streams.
        numbers_per_trial = most_drafts * draft_shape[-1]
    num_lanes = max(1, min(shape.most_trials, shape.trial_numbers // numbers_per_trial))
    if not shape.is_wide:
        return Chunk(num_pairs=1, num_trials=num_lanes)
    most_pairs = max(1, shape.memory_budget // (_TABLE_BYTES * math.prod(draft_shape)))
    pairs_at_once = min(num_pairs, most_pairs, num_lanes)
    # No more lanes than trials, rounded up to a power of two: few programs are compiled, and up to
    # half of the lanes of the only chunk compute trials that do not count.
    trials_at_once = min(num_lanes // pairs_at_once, 1 << (num_trials - 1).bit_length())
    return Chunk(num_pairs=pairs_at_once, num_trials=trials_at_once)


def _mesh(num_pairs: int, devices: Sequence[jax.Device] | None) -> Mesh:
    """Groups of devices: the pairs are divided among groups, the trials within a group."""
    devices = jax.local_devices() if devices is None else checks.local_devices(devices)
    num_groups = math.gcd(num_pairs, len(devices))
    # XLA unrolls a loop of one iteration, and may then round sums differently: at least two pairs
    # per group.
    if num_groups == num_pairs:
        num_groups = 1
    return Mesh(np.reshape(devices, (num_groups, -1)), ("pairs", "trials"))


@partial(jax.jit, static_argnames=("mesh", "program", "chunk"))
def _count_in_shards(
    keys, log_p, log_q, starts, stops, *, mesh: Mesh, program: TrialProgram, chunk: Chunk
):
    """Accepted trials `i32[T, M, C]` of `T` ranges of trials.

    Every device counts one range for one group of pairs.
    """

    def count(keys, log_p, log_q, start, stop):
        counts = count_accepted(keys, log_p, log_q, start[0], stop[0], program=program, chunk=chunk)
        return counts[None]

    pairs = P("pairs")
    ranges = P("trials")
    sharded_count = jax.shard_map(
        count,
        mesh=mesh,
        in_specs=(pairs, pairs, pairs, ranges, ranges),
        out_specs=P("trials", "pairs"),
    )
    return sharded_count(keys, log_p, log_q, starts, stops)


@partial(jax.jit, static_argnames=("program", "chunk"))
def count_accepted(keys, log_p, log_q, start, stop, *, program: TrialProgram, chunk: Chunk):
    """Accepted trials `i32[M, C]` among the trials start..stop-1 of every pair.

    Args:
        keys: one for each of `M` pairs.
        log_p: `[M, N]`, or `[M, K, N]` for one distribution per draft.
        log_q: `[M, N]`.
        start, stop: limits of the trials, integers.
        program: what is simulated, for `C` list lengths.
        chunk: trials that are computed at the same time.
    """
    start = jnp.asarray(start, jnp.int32)
    stop = jnp.asarray(stop, jnp.int32)
    return count_in_chunks(keys, log_p, log_q, start, stop, program, chunk)


def count_in_chunks(keys, log_p, log_q, start, stop, program: TrialProgram, chunk: Chunk):
    """:func:`count_accepted`, not compiled.

    With limits that are Python integers the length of the loop is known, which a count of the
    program's steps needs.
    """
    most_drafts = max(program.num_drafts)
    # Not rounded up by an addition, which would overflow near 2^31 trials.
    num_chunks = (stop - start - 1) // chunk.num_trials + 1
    start = jnp.asarray(start, jnp.int32)
    stop = jnp.asarray(stop, jnp.int32)

    def count_of_pair(pair):
        key, log_p, log_q = pair
        trial: Callable[..., jax.Array]
        if program.method == "noise":
            trial = partial(
                program.scheme.accepted, log_p=log_p, log_q=log_q, num_drafts=most_drafts
            )
        else:
            # Sorted once for all trials.
            trial = program.scheme.inversion_trial(log_p, log_q, most_drafts)

        def is_accepted(index):
            by_length = trial(jax.random.fold_in(key, index))
            # The last chunk is filled up with trials that do not count.
            is_counted = index < stop.astype(jnp.uint32)
            return by_length[jnp.asarray(program.num_drafts) - 1] & is_counted

        def add_chunk(number, accepted):
            first = (start + number * chunk.num_trials).astype(jnp.uint32)
            indices = first + jnp.arange(chunk.num_trials, dtype=jnp.uint32)
            return accepted + jnp.sum(jax.vmap(is_accepted)(indices), axis=0, dtype=jnp.int32)

        zero = jnp.zeros(len(program.num_drafts), jnp.int32)
        zero = varying_like(zero, key, log_p, log_q, start, stop)
        return jax.lax.fori_loop(0, num_chunks, add_chunk, zero)

    return map_in_batches(count_of_pair, (keys, log_p, log_q), chunk.num_pairs)
