"""Counting accepted trials: in chunks that fit the cache, on all devices of the process."""

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
from gls_jax.loops import varying_like
from gls_jax.typing import Progress

__all__ = [
    "Method",
    "Plan",
    "chosen_method",
    "count_accepted",
    "count_on_devices",
    "noise_per_trial",
]

# Numbers that a chunk of trials holds at a time: about as many as fit the cache of a core.
_NUMBERS_PER_CHUNK = 2**15
# Exponentials that a device draws between two progress reports: about a second on two CPU cores.
_NOISE_PER_CALL = 2**28
# Least number of trials of a device between two progress reports.
_FEWEST_PER_CALL = 1024
# Least number of categories for which inversion is faster, in every scheme that has both methods.
_INVERSION_FROM = 32
# Exponentials that take the time of one draft by inversion, at large vocabularies.
_NOISE_PER_INVERSION = 128

# How trials are drawn: from the noise of the scheme, or by inversion.
Method = Literal["noise", "inversion"]


class Plan(NamedTuple):
    """The static arguments of a compiled program of trials.

    Attributes:
        scheme: the scheme to simulate.
        num_drafts: the list lengths.
        method: `"noise"` or `"inversion"`.
    """

    scheme: schemes.Scheme
    num_drafts: tuple[int, ...]
    method: Method


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
    plan: Plan,
    devices: Sequence[jax.Device] | None,
    progress: Progress | None,
) -> np.ndarray:
    """Accepted trials `f64[M, C]` of every pair and list length, in calls of about a second."""
    num_pairs, num_categories = log_q.shape
    most_drafts = max(plan.num_drafts)
    mesh = _mesh(num_pairs, devices)
    pairs = jax.device_put((keys, log_p, log_q), NamedSharding(mesh, P("pairs")))
    fewest = _FEWEST_PER_CALL
    if plan.method == "inversion":
        # Every call sorts each pair. As many trials as categories make that a small part.
        fewest = max(fewest, num_categories)
    noise_of_pair = noise_per_trial(plan.scheme, most_drafts, num_categories, plan.method)
    trials_per_device = max(fewest, _NOISE_PER_CALL // (num_pairs * noise_of_pair))
    trials_per_call = mesh.size * trials_per_device
    accepted = np.zeros((num_pairs, len(plan.num_drafts)), np.int64)
    for start in range(0, num_trials, trials_per_call):
        stop = min(start + trials_per_call, num_trials)
        # Each device of a group runs a part of the call's trials.
        limits = np.linspace(start, stop, mesh.shape["trials"] + 1).astype(np.int32)
        with jax.set_mesh(mesh):  # replaces a mesh that the caller may have set
            counts = _count_in_shards(*pairs, limits[:-1], limits[1:], mesh=mesh, plan=plan)
        accepted += np.asarray(counts).sum(0)
        if progress is not None:
            progress(stop * num_pairs, num_trials * num_pairs)
    return accepted.astype(np.float64)


def _mesh(num_pairs: int, devices: Sequence[jax.Device] | None) -> Mesh:
    """Groups of devices: the pairs are divided among groups, the trials within a group."""
    devices = jax.local_devices() if devices is None else checks.local_devices(devices)
    num_groups = math.gcd(num_pairs, len(devices))
    # XLA unrolls a loop of one iteration, and may then round sums differently: at least two pairs
    # per group.
    if num_groups == num_pairs:
        num_groups = 1
    return Mesh(np.reshape(devices, (num_groups, -1)), ("pairs", "trials"))


@partial(jax.jit, static_argnames=("mesh", "plan"))
def _count_in_shards(keys, log_p, log_q, starts, stops, *, mesh: Mesh, plan: Plan):
    """Accepted trials `i32[T, M, C]` of `T` ranges of trials.

    Every device counts one range for one group of pairs.
    """

    def count(keys, log_p, log_q, start, stop):
        return count_accepted(keys, log_p, log_q, start[0], stop[0], plan=plan)[None]

    pairs = P("pairs")
    ranges = P("trials")
    sharded_count = jax.shard_map(
        count,
        mesh=mesh,
        in_specs=(pairs, pairs, pairs, ranges, ranges),
        out_specs=P("trials", "pairs"),
    )
    return sharded_count(keys, log_p, log_q, starts, stops)


@partial(jax.jit, static_argnames="plan")
def count_accepted(keys, log_p, log_q, start, stop, *, plan: Plan):
    """Accepted trials `i32[M, C]` among the trials start..stop-1 of every pair."""
    start = jnp.asarray(start, jnp.int32)
    stop = jnp.asarray(stop, jnp.int32)
    most_drafts = max(plan.num_drafts)
    chunk_size = _trials_per_chunk(plan, log_q.shape[-1])
    # Not rounded up by an addition, which would overflow near 2^31 trials.
    num_chunks = (stop - start - 1) // chunk_size + 1

    def count_of_pair(pair):
        key, log_p, log_q = pair
        trial: Callable[..., jax.Array]
        if plan.method == "noise":
            trial = partial(plan.scheme.accepted, log_p=log_p, log_q=log_q, num_drafts=most_drafts)
        else:
            # Sorted once for all trials.
            trial = plan.scheme.inversion_trial(log_p, log_q, most_drafts)

        def is_accepted(index):
            by_length = trial(jax.random.fold_in(key, index))
            # The last chunk is filled up with trials that do not count.
            is_counted = index < stop.astype(jnp.uint32)
            return by_length[jnp.asarray(plan.num_drafts) - 1] & is_counted

        def add_chunk(chunk, accepted):
            first = (start + chunk * chunk_size).astype(jnp.uint32)
            indices = first + jnp.arange(chunk_size, dtype=jnp.uint32)
            return accepted + jnp.sum(jax.vmap(is_accepted)(indices), axis=0, dtype=jnp.int32)

        zero = jnp.zeros(len(plan.num_drafts), jnp.int32)
        zero = varying_like(zero, key, log_p, log_q, start, stop)
        return jax.lax.fori_loop(0, num_chunks, add_chunk, zero)

    return jax.lax.map(count_of_pair, (keys, log_p, log_q))


def _trials_per_chunk(plan: Plan, num_categories: int) -> int:
    """Number of trials that run at the same time, so that their numbers fit the cache."""
    trials = plan.scheme.trials
    if plan.method == "inversion":
        # A few random numbers and indices, whatever the number of categories.
        numbers_per_trial = 4
    elif trials is not None and trials.streaming:
        numbers_per_trial = max(plan.num_drafts)
    else:
        # The noise of all streams.
        numbers_per_trial = max(plan.num_drafts) * num_categories
    return max(1, min(4096, _NUMBERS_PER_CHUNK // numbers_per_trial))
