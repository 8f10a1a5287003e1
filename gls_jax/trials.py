"""Monte Carlo: how often the target's token is in the list, counted over many keys.

Trial `t` of a run uses ``fold_in(key, t)``, so a count does not depend on how the trials were cut
into chunks, stopped or resumed. Memory is bounded by one chunk, whatever the number of trials.
Where the first K drafts of a scheme are a prefix of its first K + 1, one trial at the largest K
serves every K of a sweep.

A trial either draws the scheme's clocks, `K N` of them, and is bit for bit `propose` and `verify`
under its key; or it draws first arrivals by inversion, `O(K log N)` (:mod:`gls_jax.exact.inversion`),
which is the same law by other numbers.

Pairs are spread over the devices of the process, and trials where the pairs do not divide. Hits are
integers: their sum is the same on any number of devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

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

_CHUNK = 2**15  # numbers a chunk of trials holds at a time: about what a core's cache takes
_CALL = 2**28  # clocks a device draws between two progress reports: about a second on two cores
_FROM_ITEMS = (
    32  # items from which on inversion is faster than clocks, for every scheme that has both
)
_DRAFT = 128  # clocks of a large vocabulary that are drawn in the time of one draft by inversion

Method = Literal["noise", "inversion"]
"""How trials are drawn: from the noise of the scheme, or by inversion."""

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
    """Simulate a scheme's acceptance for one pair of laws.

    Args:
        key: one typed key; trial `t` uses ``fold_in(key, t)``.
        log_p: draft log-probabilities `[N]`, or `[K, N]` for a scheme with `diverse`.
        log_q: target log-probabilities `[N]`.
        scheme: a registered name or a :class:`gls_jax.schemes.Scheme`.
        num_drafts: `K`.
        num_trials: number of independent trials.
        method: `"noise"` or `"inversion"`; None: the faster one that the scheme has.
        devices: of this process, to spread the work over; all of them by default. Results do not
            depend on them.
        progress: called with `(trials done, num_trials)` about once a second.

    Returns:
        :class:`Estimate` of scalars; the standard error is of the rate ``(hits + 1) / (trials +
        2)``, and never 0.

    Raises:
        ValueError: what the scheme's door raises, what :func:`gls_jax.check_log_probs` raises, or
            `num_trials` outside 1..2^31 - 1.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import schemes, trials
    >>> log_p, log_q = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
    >>> got = trials.acceptance(
    ...     jax.random.key(0), log_p, log_q, scheme="gls", num_drafts=4, num_trials=20_000
    ... )
    >>> bool(
    ...     abs(got.mean - schemes.get("gls").acceptance(log_p, log_q, 4)) < 5 * got.standard_error
    ... )
    True
    """
    checks.key(key)
    given = {"log_p": log_p, "log_q": log_q}
    log_p, log_q = (checks.floats(value, name, integers=False) for name, value in given.items())
    if log_q.ndim != 1 or log_p.ndim not in (1, 2) or not log_q.size:
        raise ValueError(
            f"log_p and log_q: expected shapes [N] (log_p also [K, N]) with N >= 1, got {list(log_p.shape)} and "
            f"{list(log_q.shape)}; a batch of pairs goes to trials.sweep"
        )
    log_p, log_q = checks.same_categories(log_p, log_q)
    for name, value in given.items():
        checks.values(value, name)
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
    return Estimate(estimate.mean[0, 0], estimate.standard_error[0, 0], estimate.num_trials)


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
        devices: of this process, to spread the work over; all of them by default. Results do not
            depend on them.
        progress: called with `(trials done, all trials)` about once a second.

    Returns:
        :class:`Estimate` of `f[M, len(num_drafts)]`.

    Raises:
        ValueError: what the scheme's door raises, what :func:`gls_jax.check_log_probs` raises,
            shapes that do not fit, or `num_trials` outside 1..2^31 - 1.

    >>> import jax
    >>> from gls_jax import trials
    >>> log_p, log_q = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (2, 5, 10)))
    >>> trials.sweep(
    ...     jax.random.key(1), log_p, log_q, scheme="gls", num_drafts=(1, 2, 8), num_trials=100
    ... ).mean.shape
    (5, 3)
    """
    given = {"log_p": log_p, "log_q": log_q}
    log_p, log_q = (checks.floats(value, name, integers=False) for name, value in given.items())
    if (
        log_q.ndim != 2
        or log_p.ndim not in (2, 3)
        or log_p.shape[0] != log_q.shape[0]
        or not log_q.size
    ):
        raise ValueError(
            f"log_p and log_q: expected shapes [M, N] (log_p also [M, K, N]) with M, N >= 1, "
            f"got {list(log_p.shape)} and {list(log_q.shape)}"
        )
    log_p, log_q = checks.same_categories(log_p, log_q)
    for name, value in given.items():
        checks.values(value, name)
    checks.keys(key)
    if key.shape not in ((), log_q.shape[:1]):
        raise ValueError(
            f"key: expected one typed key or {log_q.shape[0]} of them, got {list(key.shape)}"
        )
    keys = key if key.ndim else races.keys.fold_in_each(key, jnp.arange(log_q.shape[0]))
    asked = {"scheme": scheme, "num_drafts": num_drafts, "num_trials": num_trials, "method": method}
    return _run(keys, log_p, log_q, **asked, devices=devices, progress=progress)


def check_num_trials(value: Any) -> int:
    """`num_trials` as an int within 1..2^31 - 1, or a `ValueError`."""
    num_trials = checks.count(value, "num_trials")
    if num_trials >= 2**31:
        raise ValueError(f"num_trials: expected at most 2^31 - 1, got {num_trials}")
    return num_trials


def noise_per_trial(
    scheme: schemes.Scheme, num_drafts: int, num_items: int, method: Method | None = None
) -> int:
    """What a trial costs, counted in clocks."""
    return num_drafts * (num_items if _by_noise(scheme, num_items, method) else _DRAFT)


def _by_noise(scheme: schemes.Scheme, num_items: int, method: Method | None) -> bool:
    if method is not None:
        return checks.one_of(method, ("noise", "inversion"), "method") == "noise"
    has_inversion = scheme.trials is not None and scheme.trials.inversion is not None
    return not has_inversion or num_items < _FROM_ITEMS


def _run(
    keys, log_p, log_q, *, scheme, num_drafts, num_trials, method, devices, progress
) -> Estimate:
    scheme = scheme if isinstance(scheme, schemes.Scheme) else schemes.get(scheme)
    counts = tuple(scheme.check_num_drafts(k) for k in checks.counts(num_drafts, "num_drafts"))
    num_trials = check_num_trials(num_trials)
    num_pairs, num_items = log_q.shape
    knobs = {
        "scheme": scheme,
        "num_drafts": counts,
        "by_noise": _by_noise(scheme, num_items, method),
    }
    new = jnp.zeros(
        ()
    )  # inside of `jax.jit` traced like all that is made there, also where every input is known
    if any(isinstance(x, jax.core.Tracer) for x in (new, keys, log_p, log_q)):
        hits = _count(keys, log_p, log_q, 0, num_trials, **knobs)
        rate = hits.astype(log_q.dtype)
    else:
        mesh = _mesh(num_pairs, devices)
        pairs = jax.device_put((keys, log_p, log_q), NamedSharding(mesh, P("pairs")))
        hits = np.zeros((num_pairs, len(counts)), np.int64)
        # What a pair needs to be prepared without clocks is small beside as many trials as it has
        # items.
        least = max(1024, 0 if knobs["by_noise"] else num_items)
        cost = num_pairs * noise_per_trial(scheme, max(counts), num_items, method)
        per_call = mesh.size * max(least, _CALL // cost)
        for start in range(0, num_trials, per_call):
            stop = min(start + per_call, num_trials)
            ends = np.linspace(start, stop, mesh.shape["trials"] + 1).astype(np.int32)
            with jax.set_mesh(mesh):  # in place of a mesh that the caller has set
                found = _spread(*pairs, ends[:-1], ends[1:], mesh=mesh, **knobs)
            hits += np.asarray(found).sum(0)
            if progress is not None:
                progress(stop * num_pairs, num_trials * num_pairs)
        rate = hits.astype(np.float64)
    hit, miss = (rate + 1) / (num_trials + 2), (num_trials - rate + 1) / (num_trials + 2)
    error = jnp.sqrt(jnp.asarray(hit * miss / num_trials, log_q.dtype))
    return Estimate(
        jnp.asarray(rate / num_trials, log_q.dtype), error, jnp.asarray(num_trials, jnp.int32)
    )


def _mesh(num_pairs: int, devices: Sequence[jax.Device] | None) -> Mesh:
    """As many groups of devices as the pairs divide into; the devices of a group share its trials."""
    devices = jax.local_devices() if devices is None else checks.local_devices(devices)
    # A loop of one round is no loop to XLA, and its sums may round in another way: two pairs a
    # group at least.
    groups = math.gcd(num_pairs, len(devices))
    if groups == num_pairs:
        groups = 1
    return Mesh(np.reshape(devices, (groups, -1)), ("pairs", "trials"))


@partial(jax.jit, static_argnames=("mesh", "scheme", "num_drafts", "by_noise"))
def _spread(keys, log_p, log_q, starts, stops, *, mesh: Mesh, **knobs):
    """Hits `i32[T, M, len(num_drafts)]` of `T` ranges of trials, every device at its own pairs and
    range.
    """

    def count(keys, log_p, log_q, start, stop):
        return _count(keys, log_p, log_q, start[0], stop[0], **knobs)[None]

    pairs, ranges = P("pairs"), P("trials")
    in_specs, out_specs = (pairs, pairs, pairs, ranges, ranges), P("trials", "pairs")
    return jax.shard_map(count, mesh=mesh, in_specs=in_specs, out_specs=out_specs)(
        keys, log_p, log_q, starts, stops
    )


@partial(jax.jit, static_argnames=("scheme", "num_drafts", "by_noise"))
def _count(
    keys,
    log_p,
    log_q,
    start,
    stop,
    *,
    scheme: schemes.Scheme,
    num_drafts: tuple[int, ...],
    by_noise: bool,
):
    """Hits `i32[M, len(num_drafts)]` over the trials start..stop-1 of every pair."""
    start, stop = jnp.asarray(start, jnp.int32), jnp.asarray(stop, jnp.int32)
    most = max(num_drafts)
    held = (
        4
        if not by_noise
        else most
        if scheme.trials is not None and scheme.trials.streaming
        else most * log_q.shape[-1]
    )
    lanes = max(1, min(4096, _CHUNK // held))

    def pair(args):
        key, log_p, log_q = args
        trial = (
            None if by_noise else scheme.inversion_trial(log_p, log_q, most)
        )  # once for all trials

        def counted(index):
            own = jax.random.fold_in(key, index)
            found = trial(own) if trial is not None else scheme.accepted(own, log_p, log_q, most)
            return found[jnp.asarray(num_drafts) - 1] & (index < stop.astype(jnp.uint32))

        def chunk(at, hits):
            indices = (start + at * lanes).astype(jnp.uint32) + jnp.arange(lanes, dtype=jnp.uint32)
            return hits + jnp.sum(jax.vmap(counted)(indices), axis=0, dtype=jnp.int32)

        chunks = (
            stop - start - 1
        ) // lanes + 1  # not rounded up by an addition: that overflows near 2^31
        none = varying_like(jnp.zeros(len(num_drafts), jnp.int32), key, log_p, log_q, start, stop)
        return jax.lax.fori_loop(0, chunks, chunk, none)

    return jax.lax.map(pair, (keys, log_p, log_q))
