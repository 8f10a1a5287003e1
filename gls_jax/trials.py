"""Monte Carlo: how often the target's token is in the list, counted over many keys.

Trial `t` of a run uses ``fold_in(key, t)``, so a count does not depend on how the trials are cut
into chunks, stopped or resumed. Memory is bounded by one chunk, whatever the number of trials. The
first K drafts of a list do not change when more are drafted, so one trial at the largest K serves
every K of a sweep.

A trial is made in one of two ways. By noise, it draws the exponential noise of the scheme, `K N`
numbers, and is bit for bit `propose` and `verify` under its key. By inversion, it draws first
arrivals in `O(K log N)` (:mod:`gls_jax.exact.inversion`): the same distribution, but other numbers.

Pairs are spread over the devices of the process, and trials where the pairs do not divide. Counts
of accepted trials are integers, so their sum is the same on any number of devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PRNGKeyArray

from gls_jax import checks, races, schemes
from gls_jax.estimate import Estimate
from gls_jax.loops import varying_like
from gls_jax.typing import LogProbs

__all__ = ["Estimate", "acceptance", "sweep"]

# A chunk of trials holds so many numbers at a time: about what the cache of a core takes.
_NUMBERS_PER_CHUNK = 2**15
# A device draws so many exponentials between two progress reports: about a second on two CPU cores.
_NOISE_PER_CALL = 2**28
# A device makes at least so many trials between two progress reports.
_FEWEST_PER_CALL = 1024
# From so many categories on, inversion is the faster method, for every scheme that has both.
_INVERSION_FROM = 32
# So many exponentials are drawn in the time of one draft by inversion, at large vocabularies.
_NOISE_PER_INVERSION = 128

# How trials are drawn: from the noise of the scheme, or by inversion.
Method = Literal["noise", "inversion"]
# Called with the number of trials done and the number of all trials.
Progress = Callable[[int, int], None]


def acceptance(
    key: PRNGKeyArray,
    log_p: LogProbs,
    log_q: LogProbs,
    *,
    scheme: str | schemes.Scheme,
    num_drafts: int,
    num_trials: int,
    method: Method | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """Simulate a scheme's acceptance for one pair of distributions.

    Args:
        key: one typed key; trial `t` uses ``fold_in(key, t)``.
        log_p: draft log-probabilities `[N]`, or `[K, N]` for a scheme with `diverse`.
        log_q: target log-probabilities `[N]`.
        scheme: a registered name or a :class:`gls_jax.schemes.Scheme`.
        num_drafts: `K`.
        num_trials: number of independent trials.
        method: `"noise"` or `"inversion"`; None: the faster one that the scheme has.
        devices: of this process, to spread the work over; all of them by default. The results do
            not depend on them.
        progress: called with `(trials done, num_trials)` about once a second.

    Returns:
        :class:`Estimate` of scalars; the standard error is that of the rate ``(accepted + 1) /
        (num_trials + 2)``, and never 0.

    Raises:
        ValueError: arguments that the scheme does not take, what :func:`gls_jax.check_log_probs`
            raises, or `num_trials` outside 1..2^31 - 1.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import schemes, trials
    >>> log_p, log_q = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
    >>> estimate = trials.acceptance(
    ...     jax.random.key(0), log_p, log_q, scheme="gls", num_drafts=4, num_trials=20_000
    ... )
    >>> exact = schemes.get("gls").acceptance(log_p, log_q, 4)
    >>> bool(abs(estimate.mean - exact) < 5 * estimate.standard_error)
    True
    """
    checks.key(key)
    log_p, log_q = _checked_pair(log_p, log_q, "[N] (log_p also [K, N]) with N >= 1", num_axes=1)
    estimate = _run(
        key[None],
        log_p[None],
        log_q[None],
        scheme=scheme,
        num_drafts=(num_drafts,),
        num_trials=num_trials,
        method=method,
        devices=devices,
        progress=progress,
    )
    return Estimate(
        mean=estimate.mean[0, 0],
        standard_error=estimate.standard_error[0, 0],
        num_trials=estimate.num_trials,
    )


def sweep(
    key: PRNGKeyArray,
    log_p: LogProbs,
    log_q: LogProbs,
    *,
    scheme: str | schemes.Scheme,
    num_drafts: Sequence[int],
    num_trials: int,
    method: Method | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """Simulate a scheme's acceptance for many pairs and a whole list of K, compiled once.

    Args:
        key: one typed key (pair `m` uses ``fold_in(key, m)``), or `M` keys.
        log_p: `[M, N]`, or `[M, K, N]` for a scheme with `diverse` and `K = max(num_drafts)`.
        log_q: `[M, N]`.
        scheme: a registered name or a :class:`gls_jax.schemes.Scheme`.
        num_drafts: the list lengths; one pass over the largest serves all.
        num_trials: independent trials a pair (shared by its list lengths).
        method: `"noise"` or `"inversion"`; None: the faster one that the scheme has.
        devices: of this process, to spread the work over; all of them by default. The results do
            not depend on them.
        progress: called with `(trials done, all trials)` about once a second.

    Returns:
        :class:`Estimate` of `f[M, len(num_drafts)]`.

    Raises:
        ValueError: arguments that the scheme does not take, what :func:`gls_jax.check_log_probs`
            raises, shapes that do not fit, or `num_trials` outside 1..2^31 - 1.

    >>> import jax
    >>> from gls_jax import trials
    >>> log_p, log_q = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (2, 5, 10)))
    >>> trials.sweep(
    ...     jax.random.key(1), log_p, log_q, scheme="gls", num_drafts=(1, 2, 8), num_trials=100
    ... ).mean.shape
    (5, 3)
    """
    shapes = "[M, N] (log_p also [M, K, N]) with M, N >= 1"
    log_p, log_q = _checked_pair(log_p, log_q, shapes, num_axes=2)
    checks.keys(key)
    num_pairs = log_q.shape[0]
    if key.shape not in ((), (num_pairs,)):
        raise ValueError(
            f"key: expected one typed key or {num_pairs} of them, got {list(key.shape)}"
        )
    return _run(
        key if key.ndim else races.keys.fold_in_each(key, jnp.arange(num_pairs)),
        log_p,
        log_q,
        scheme=scheme,
        num_drafts=num_drafts,
        num_trials=num_trials,
        method=method,
        devices=devices,
        progress=progress,
    )


def _checked_pair(
    log_p: LogProbs,
    log_q: LogProbs,
    shapes: str,
    *,
    num_axes: int,
):
    """The arrays in their common float type, where they have the shapes and valid values."""
    p = checks.floats(log_p, "log_p", integers=False)
    q = checks.floats(log_q, "log_q", integers=False)
    # `log_p` may have one more axis, of the drafts, behind that of the pairs.
    has_axes = q.ndim == num_axes and p.ndim in (num_axes, num_axes + 1)
    if not has_axes or p.shape[: num_axes - 1] != q.shape[:-1] or not q.size:
        got = f"{list(p.shape)} and {list(q.shape)}"
        if num_axes == 1:
            got += "; a batch of pairs goes to trials.sweep"
        raise ValueError(f"log_p and log_q: expected shapes {shapes}, got {got}")
    p, q = checks.same_categories(p, q)
    checks.values(log_p, "log_p")
    checks.values(log_q, "log_q")
    return p, q


def check_num_trials(value: Any) -> int:
    """`num_trials` as an int within 1..2^31 - 1, or a `ValueError`."""
    num_trials = checks.count(value, "num_trials")
    if num_trials >= 2**31:
        raise ValueError(f"num_trials: expected at most 2^31 - 1, got {num_trials}")
    return num_trials


def noise_per_trial(
    scheme: schemes.Scheme,
    num_drafts: int,
    num_categories: int,
    method: Method | None = None,
) -> int:
    """The cost of a trial, as the number of exponentials that take as much time."""
    if _method_of(scheme, num_categories, method) == "noise":
        return num_drafts * num_categories
    return num_drafts * _NOISE_PER_INVERSION


def _method_of(
    scheme: schemes.Scheme,
    num_categories: int,
    method: Method | None,
) -> str:
    """The method that is asked for, or else the faster one that the scheme has."""
    if method is not None:
        return checks.one_of(method, ("noise", "inversion"), "method")
    has_inversion = scheme.trials is not None and scheme.trials.inversion is not None
    return "inversion" if has_inversion and num_categories >= _INVERSION_FROM else "noise"


class _Plan(NamedTuple):
    """What a compiled program of trials depends on, besides shapes.

    Attributes:
        scheme: of the trials.
        num_drafts: the list lengths.
        method: `"noise"` or `"inversion"`.
    """

    scheme: schemes.Scheme
    num_drafts: tuple[int, ...]
    method: str


def _run(
    keys,
    log_p,
    log_q,
    *,
    scheme,
    num_drafts,
    num_trials,
    method,
    devices,
    progress,
) -> Estimate:
    """:func:`sweep` of arrays whose values are checked, with a key for each pair."""
    if not isinstance(scheme, schemes.Scheme):
        scheme = schemes.get(scheme)
    counts = checks.counts(num_drafts, "num_drafts")
    # Hashable, for it is a static argument: one plan and one shape compile once.
    plan = _Plan(
        scheme=scheme,
        num_drafts=tuple(scheme.check_num_drafts(k) for k in counts),
        method=_method_of(scheme, log_q.shape[-1], method),
    )
    num_trials = check_num_trials(num_trials)
    # Inside `jax.jit` a new array is traced, also where every input is known.
    arrays = (jnp.zeros(()), keys, log_p, log_q)
    if any(isinstance(array, jax.core.Tracer) for array in arrays):
        accepted = _count_accepted(keys, log_p, log_q, 0, num_trials, plan=plan)
        accepted = accepted.astype(log_q.dtype)
    else:
        accepted = _count_on_devices(keys, log_p, log_q, num_trials, plan, devices, progress)
    # One accepted and one rejected trial more keep the error of a rate near 0 or 1 from vanishing.
    rate = (accepted + 1) / (num_trials + 2)
    other_rate = (num_trials - accepted + 1) / (num_trials + 2)
    variance = jnp.asarray(rate * other_rate / num_trials, log_q.dtype)
    return Estimate(
        mean=jnp.asarray(accepted / num_trials, log_q.dtype),
        standard_error=jnp.sqrt(variance),
        num_trials=jnp.asarray(num_trials, jnp.int32),
    )


def _count_on_devices(
    keys,
    log_p,
    log_q,
    num_trials: int,
    plan: _Plan,
    devices,
    progress,
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
        # Each device of a group makes a part of the call's trials.
        limits = np.linspace(start, stop, mesh.shape["trials"] + 1).astype(np.int32)
        with jax.set_mesh(mesh):  # in place of a mesh that the caller may have set
            counts = _count_in_shares(*pairs, limits[:-1], limits[1:], mesh=mesh, plan=plan)
        accepted += np.asarray(counts).sum(0)
        if progress is not None:
            progress(stop * num_pairs, num_trials * num_pairs)
    return accepted.astype(np.float64)


def _mesh(num_pairs: int, devices: Sequence[jax.Device] | None) -> Mesh:
    """Groups of devices: the pairs are divided among groups, the trials within a group."""
    devices = jax.local_devices() if devices is None else checks.local_devices(devices)
    num_groups = math.gcd(num_pairs, len(devices))
    # XLA unrolls a loop of one round, and may then round sums in another way: two pairs a group at
    # least.
    if num_groups == num_pairs:
        num_groups = 1
    return Mesh(np.reshape(devices, (num_groups, -1)), ("pairs", "trials"))


@partial(jax.jit, static_argnames=("mesh", "plan"))
def _count_in_shares(keys, log_p, log_q, starts, stops, *, mesh: Mesh, plan: _Plan):
    """Accepted trials `i32[T, M, C]` of `T` ranges of trials.

    Every device counts those of its own pairs and its own range.
    """

    def count(keys, log_p, log_q, start, stop):
        return _count_accepted(keys, log_p, log_q, start[0], stop[0], plan=plan)[None]

    pairs = P("pairs")
    ranges = P("trials")
    share_map = jax.shard_map(
        count,
        mesh=mesh,
        in_specs=(pairs, pairs, pairs, ranges, ranges),
        out_specs=P("trials", "pairs"),
    )
    return share_map(keys, log_p, log_q, starts, stops)


@partial(jax.jit, static_argnames="plan")
def _count_accepted(keys, log_p, log_q, start, stop, *, plan: _Plan):
    """Accepted trials `i32[M, C]` among the trials start..stop-1 of every pair."""
    start = jnp.asarray(start, jnp.int32)
    stop = jnp.asarray(stop, jnp.int32)
    most_drafts = max(plan.num_drafts)
    chunk_size = _trials_per_chunk(plan, log_q.shape[-1])
    # Not rounded up by an addition, which would overflow near 2^31 trials.
    num_chunks = (stop - start - 1) // chunk_size + 1

    def count_of_pair(pair):
        key, log_p, log_q = pair
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


def _trials_per_chunk(plan: _Plan, num_categories: int) -> int:
    """How many trials run at the same time, so that their numbers fit the cache."""
    trials = plan.scheme.trials
    if plan.method == "inversion":
        # A few random numbers and places, whatever the number of categories.
        numbers_per_trial = 4
    elif trials is not None and trials.streaming:
        numbers_per_trial = max(plan.num_drafts)
    else:
        # The noise of all streams.
        numbers_per_trial = max(plan.num_drafts) * num_categories
    return max(1, min(4096, _NUMBERS_PER_CHUNK // numbers_per_trial))
