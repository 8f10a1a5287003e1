"""Acceptance by simulation: how often the target's token is in the list, counted over many keys.

Trial `t` of a run uses ``fold_in(key, t)``, so a count does not depend on how the trials are cut
into chunks, stopped or resumed. Memory is bounded by one chunk, whatever the number of trials. The
first K drafts of a list do not change when more are drafted, so one trial at the largest K counts
for every K of a sweep.

A trial runs in one of two ways. By noise, it draws the exponential noise of the scheme, `K N`
numbers, and is bit for bit `propose` and `verify` under its key. By inversion, it draws first
arrivals in `O(K log N)` (:mod:`gls_jax.exact.inversion`): the same distribution, but other numbers.

Pairs are spread over the devices of the process, and trials where the pairs do not divide. Counts
of accepted trials are integers, so their sum is the same on any number of devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from gls_jax import checks, races, schemes, work_shape
from gls_jax.estimate import Estimate
from gls_jax.trials import trial_loop
from gls_jax.trials.trial_loop import Method
from gls_jax.typing import LogProbs, Progress

__all__ = ["Estimate", "acceptance", "sweep"]


def acceptance(
    key: PRNGKeyArray,
    log_p: LogProbs,
    log_q: LogProbs,
    *,
    scheme: str | schemes.Scheme,
    num_drafts: int,
    num_trials: int,
    method: Method | None = None,
    memory_budget: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """Simulate a scheme's acceptance for one pair of distributions.

    Args:
        key: one typed key; trial `t` uses ``fold_in(key, t)``.
        log_p: draft log-probabilities `[N]`, or `[K, N]` for a scheme with `diverse=True`.
        log_q: target log-probabilities `[N]`.
        scheme: a registered name or a :class:`gls_jax.schemes.Scheme`.
        num_drafts: `K`.
        num_trials: number of independent trials.
        method: `"noise"` or `"inversion"`; None: the faster one that the scheme has.
        memory_budget: bytes for temporary arrays on an accelerator; None is 2 GiB. The results do
            not depend on it.
        devices: of this process, to spread the work over; all of them by default. The results do
            not depend on them.
        progress: called with `(trials done, num_trials)` about once a second on a CPU.

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
    shapes = "[N] (log_p also [K, N]) with N >= 1"
    p, q = _checked_pair(log_p, log_q, shapes, num_axes=1)
    estimate = _run(
        key[None],
        p[None],
        q[None],
        scheme=scheme,
        num_drafts=(num_drafts,),
        num_trials=num_trials,
        method=method,
        memory_budget=memory_budget,
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
    memory_budget: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """Simulate a scheme's acceptance for many pairs and a whole list of K, compiled once.

    Args:
        key: one typed key (pair `m` uses ``fold_in(key, m)``), or `M` keys.
        log_p: `[M, N]`, or `[M, K, N]` for a scheme with `diverse=True` and `K = max(num_drafts)`.
        log_q: `[M, N]`.
        scheme: a registered name or a :class:`gls_jax.schemes.Scheme`.
        num_drafts: the list lengths; one pass over the largest counts for all.
        num_trials: independent trials per pair (shared by its list lengths).
        method: `"noise"` or `"inversion"`; None: the faster one that the scheme has.
        memory_budget: bytes for temporary arrays on an accelerator; None is 2 GiB. The results do
            not depend on it.
        devices: of this process, to spread the work over; all of them by default. The results do
            not depend on them.
        progress: called with `(trials done, all trials)` about once a second on a CPU.

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
    p, q = _checked_pair(log_p, log_q, shapes, num_axes=2)
    checks.keys(key)
    num_pairs = q.shape[0]
    if key.shape not in ((), (num_pairs,)):
        raise ValueError(
            f"key: expected one typed key or {num_pairs} of them, got {list(key.shape)}"
        )
    return _run(
        key if key.ndim else races.keys.fold_in_each(key, jnp.arange(num_pairs)),
        p,
        q,
        scheme=scheme,
        num_drafts=num_drafts,
        num_trials=num_trials,
        method=method,
        memory_budget=memory_budget,
        devices=devices,
        progress=progress,
    )


def _checked_pair(
    log_p: LogProbs,
    log_q: LogProbs,
    shapes: str,
    *,
    num_axes: int,
) -> tuple[jax.Array, jax.Array]:
    """The arrays in their common float type, where they have the shapes and valid values."""
    p = checks.floats(log_p, "log_p", integers=False)
    q = checks.floats(log_q, "log_q", integers=False)
    # `log_p` may have one more axis, of the drafts, after that of the pairs.
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


def _run(
    keys,
    log_p,
    log_q,
    *,
    scheme,
    num_drafts,
    num_trials,
    method,
    memory_budget,
    devices,
    progress,
) -> Estimate:
    """:func:`sweep` of arrays whose values are checked, with a key for each pair."""
    if not isinstance(scheme, schemes.Scheme):
        scheme = schemes.get(scheme)
    counts = checks.counts(num_drafts, "num_drafts")
    num_trials = check_num_trials(num_trials)
    num_pairs, num_categories = log_q.shape
    with work_shape.using(memory_budget=memory_budget) as shape:
        # Hashable, because it is a static argument: one program and one shape compile once.
        program = trial_loop.TrialProgram(
            scheme=scheme,
            num_drafts=tuple(scheme.check_num_drafts(k) for k in counts),
            method=trial_loop.chosen_method(scheme, num_categories, method),
            shape=shape,
        )
        # Inside `jax.jit` a new array is traced, also where every input is known.
        arrays = (jnp.zeros(()), keys, log_p, log_q)
        if any(isinstance(array, jax.core.Tracer) for array in arrays):
            chunk = trial_loop.chunk_of(program, num_pairs, log_p.shape[1:], num_trials)
            accepted = trial_loop.count_accepted(
                keys, log_p, log_q, 0, num_trials, program=program, chunk=chunk
            )
            accepted = accepted.astype(log_q.dtype)
        else:
            accepted = trial_loop.count_on_devices(
                keys, log_p, log_q, num_trials, program, devices, progress
            )
    # One accepted and one rejected trial more keep the error of a rate near 0 or 1 from vanishing.
    rate = (accepted + 1) / (num_trials + 2)
    other_rate = (num_trials - accepted + 1) / (num_trials + 2)
    variance = jnp.asarray(rate * other_rate / num_trials, log_q.dtype)
    return Estimate(
        mean=jnp.asarray(accepted / num_trials, log_q.dtype),
        standard_error=jnp.sqrt(variance),
        num_trials=jnp.asarray(num_trials, jnp.int32),
    )
