"""Bounds that need no simulation: lower bounds on a match, and the optimum over all schemes.

`p` is the draft distribution, `q` the target distribution, `K` the number of drafts, ``M_j = sum_i
max(q_i, q_j p_i / p_j)``. The acceptances are ordered:

    list_matching <= gls <= optimum_iid
    list_matching <= poisson <= gumbel_topk <= optimum_distinct
    poisson <= optimum_iid
    single <= specinfer <= spectr <= optimum_iid
    weighted_importance <= optimum_iid
    specinfer_wor <= optimum_distinct
    communication_free <= minhash

(tested on random pairs; `specinfer <= spectr` is an observation). `topk` is in no such order: its
drafts are not samples of `p`, and its acceptance may exceed both optima. All functions take
log-probabilities `[N]`, run under `jit` and `vmap` and are differentiable away from ties. All but
`optimum_distinct` cost `O(N log N)`. If the drafts have different distributions, `log_p` is
`[K, N]` and each stream contributes one term.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gls_jax import checks, races
from gls_jax.exact.counting import add_bernoulli
from gls_jax.exact.ratio_order import RatioOrder, excess, ratio_order
from gls_jax.loops import varying_like
from gls_jax.typing import LogProbs, Numbers

__all__ = [
    "communication_free",
    "list_decoding",
    "list_matching",
    "list_matching_given_target",
    "list_matching_relaxed",
    "list_matching_strong",
    "optimum",
    "optimum_distinct",
    "optimum_iid",
    "prefix_order",
    "total_variation",
]


def list_matching(
    log_p: LogProbs,
    log_q: LogProbs,
    num_drafts: int,
) -> Float[Array, ""]:
    """List matching lemma: ``P(target in list) >= sum_j q_j K / (K - 1 + M_j)``.

    Theorem 1 of Rowan, Phan, Khisti 2025 (arXiv 2506.05632). Equality for `K = 1`, `p = q` and `p`
    a point mass.

    Args:
        log_p: `[N]`, or `[K, N]` for one distribution per draft.
        log_q: `[N]`.
        num_drafts: `K`, static.

    Returns:
        `f[]`, a probability.

    Raises:
        ValueError: shapes that do not match, `num_drafts < 1`, or what
            :func:`gls_jax.check_log_probs` raises; so do all functions here.

    >>> import jax.numpy as jnp
    >>> from gls_jax import bounds
    >>> p, q = jnp.array([0.5, 0.5]), jnp.array([0.9, 0.1])
    >>> [round(float(bounds.list_matching(jnp.log(p), jnp.log(q), k)), 4) for k in (1, 2, 8)]
    [0.6, 0.7429, 0.9182]
    """
    q, match = _given_target(log_p, log_q, num_drafts, num_drafts)
    return jnp.sum(q * match)


def list_matching_given_target(
    log_p: LogProbs,
    log_q: LogProbs,
    num_drafts: int,
) -> Float[Array, " N"]:
    """List matching lemma given the target: ``K / (K - 1 + M_j)``, `f[N]`.

    It bounds ``P(j in list | target = j)`` from below.
    """
    return _given_target(log_p, log_q, num_drafts, num_drafts)[1]


def list_matching_relaxed(
    log_p: LogProbs,
    log_q: LogProbs,
    num_drafts: int,
) -> Float[Array, " N"]:
    """Relaxed conditional bound ``(1 + q_j / (K p_j))^-1``, `f[N]`.

    It needs only the two probabilities of `j`, and is never above
    :func:`list_matching_given_target`. The compression bounds use this form. `log_p` is `[N]`.

    >>> import jax.numpy as jnp
    >>> from gls_jax import bounds
    >>> log_p, log_q = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]]))
    >>> [round(float(x), 4) for x in bounds.list_matching_relaxed(log_p, log_q, 2)]
    [0.5263, 0.9091]
    """
    num_drafts = checks.count(num_drafts, "num_drafts")
    log_p, log_q = checks.problem(log_p, log_q)
    is_possible = log_p >= races.LIGHTEST
    # Finite log-probabilities only, so that gradients are not NaN.
    finite_log_p = jnp.where(is_possible, log_p, 0)
    finite_log_q = jnp.maximum(log_q, 2 * races.LIGHTEST)
    log_odds = math.log(num_drafts) + finite_log_p - finite_log_q
    return jnp.where(is_possible, jax.nn.sigmoid(log_odds), 0)


def list_matching_strong(
    log_p: LogProbs,
    log_q: LogProbs,
    num_active: int,
    num_drafts: int,
) -> Float[Array, ""]:
    """Bound of the strongly invariant variant: ``sum_j q_j J / (K - 1 + M_j)``.

    The target's minimum runs over all `K` streams although only `J = num_active` drafts can still
    match.

    Args:
        log_p: `[N]`, or `[J, N]`: the distributions of the active drafts.
        log_q: `[N]`.
        num_active: `J`, from 1 to `num_drafts`.
        num_drafts: `K`.
    """
    q, match = _given_target(log_p, log_q, num_active, num_drafts)
    return jnp.sum(q * match)


def list_decoding(
    information_density: Numbers,
    num_decoders: int,
    num_bins: int,
) -> Float[Array, ...]:
    """Terms ``(1 + 2^i / (K L))^-1`` of the list decoding bound.

    Their mean bounds from below the probability that one of `K` decoders finds the encoder's
    candidate. Proposition 4 of Rowan, Phan, Khisti 2025 (arXiv 2506.05632), for many candidates.
    The information density `i` is the information of the target about the source beyond that of
    the side information. The message replaces ``log2 L`` bits of it, the list ``log2 K``.

    Args:
        information_density: ``i = log2 p_{W|A}(w | a) / p_{W|T}(w | t)`` in bits, `f[...]`, of
            draws of the joint distribution.
        num_decoders: `K`.
        num_bins: `L`.

    Returns:
        `f[...]`, of the shape of `information_density`.

    >>> import jax.numpy as jnp
    >>> from gls_jax import bounds
    >>> [round(float(x), 3) for x in bounds.list_decoding(jnp.array([0.0, 3.0, 9.0]), 4, 2)]
    [0.889, 0.5, 0.015]
    """
    num_decoders = checks.count(num_decoders, "num_decoders")
    num_bins = checks.count(num_bins, "num_bins")
    # In bits, as the information density: (1 + 2^-x)^-1 is the sigmoid of x ln 2.
    density = checks.floats(information_density, "information_density")
    missing_bits = math.log2(num_decoders * num_bins) - density
    return jax.nn.sigmoid(missing_bits * math.log(2))


def communication_free(log_p: LogProbs, log_q: LogProbs) -> Float[Array, ""]:
    """``(1 - TV) / (1 + TV)``: the most that one draft without communication can promise.

    For every such scheme there is a pair of this total variation on which it matches no more often
    (Daliri, Musco, Suresh 2024, arXiv 2408.07978). Gumbel and Weighted MinHash are never below it.
    It is exactly the probability that both MinHash parties keep the same dart; their categories
    agree more often (:func:`gls_jax.couplings.minhash_match`).
    """
    distance = total_variation(log_p, log_q)
    return (1 - distance) / (1 + distance)


def total_variation(log_p: LogProbs, log_q: LogProbs) -> Float[Array, ""]:
    """``TV(p, q) = sum_i |p_i - q_i| / 2``.

    >>> import jax.numpy as jnp
    >>> from gls_jax import bounds
    >>> log_p, log_q = jnp.log(jnp.array([[1.0, 0.0], [0.0, 1.0]]))
    >>> float(bounds.total_variation(log_p, log_q))
    1.0
    """
    log_p, log_q = checks.problem(log_p, log_q)
    return jnp.sum(jnp.abs(jnp.exp(log_p) - jnp.exp(log_q))) / 2


def optimum_iid(
    log_p: LogProbs,
    log_q: LogProbs,
    num_drafts: int,
) -> Float[Array, ""]:
    """Highest acceptance of any verification with `K` i.i.d. drafts.

    It is ``min(1, 1 + min_H q(H) - p(H)^K)``, the optimal-transport value of SpecTr (Sun et al.
    2023) and Khisti et al. 2025 (arXiv 2410.18234). The minimising set `H` is a prefix of the
    categories in the order of `q / p`.

    >>> import jax.numpy as jnp
    >>> from gls_jax import bounds
    >>> log_p, log_q = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]]))
    >>> [round(float(bounds.optimum_iid(log_p, log_q, k)), 4) for k in (1, 2, 4)]
    [0.6, 0.85, 1.0]
    """
    num_drafts = checks.count(num_drafts, "num_drafts")
    log_p, log_q = checks.problem(log_p, log_q)
    ranked = ratio_order(log_p, log_q)
    # Independent drafts are all in a prefix of mass P with probability P^K.
    return _optimum(ranked, jnp.minimum(ranked.mass, 1) ** num_drafts)


def prefix_order(log_p: LogProbs, log_q: LogProbs) -> Int[Array, " N"]:
    """Categories in the order of `q / p`, those with `p = 0` last, `i32[N]`.

    :func:`optimum` looks at the prefixes of this order.
    """
    log_p, log_q = checks.problem(log_p, log_q)
    return ratio_order(log_p, log_q).order


def optimum(
    log_p: LogProbs,
    log_q: LogProbs,
    contained: Numbers,
) -> Float[Array, ""]:
    """Highest acceptance for lists of any distribution, from the prefixes of the ratio order.

    It is ``1 + min_H [q(H) - P(all drafts in H)]`` over the prefixes `H`. The minimum over ALL sets
    is the optimal-transport value (Sun et al. 2023). For i.i.d. drafts a prefix attains it. For
    other lists this is an upper bound; for lists without replacement no set was better in 300
    random problems.

    Args:
        log_p: `[N]`, which orders the categories.
        log_q: `[N]`.
        contained: `f[N]`, entry `t` the probability that all drafts are among the first `t + 1`
            categories of :func:`prefix_order`.

    >>> import jax.numpy as jnp
    >>> from gls_jax import bounds
    >>> p, log_q = jnp.array([0.5, 0.5]), jnp.log(jnp.array([0.9, 0.1]))
    >>> order = bounds.prefix_order(jnp.log(p), log_q)
    >>> contained = jnp.cumsum(p[order]) ** 2  # two independent drafts
    >>> round(float(bounds.optimum(jnp.log(p), log_q, contained)), 4)
    0.85
    """
    log_p, log_q = checks.problem(log_p, log_q)
    probs = checks.floats(contained, "contained")
    if probs.shape != log_q.shape:
        raise ValueError(f"contained: expected shape [{log_q.shape[0]}], got {list(probs.shape)}")
    # The values as they were given: inside `jit` even constants are traced once converted.
    checks.within_unit(contained, "contained")
    return _optimum(ratio_order(log_p, log_q), probs)


def optimum_distinct(
    log_p: LogProbs,
    log_q: LogProbs,
    num_drafts: int,
) -> Float[Array, ""]:
    """:func:`optimum` for K drafts without replacement: lists of `gumbel_topk` and `specinfer_wor`.

    All drafts are in `H` if the race has K arrivals in `H` before the first one outside. The
    arrivals in `H` up to a given time are a Poisson-binomial count, to which one category after the
    other is added. The first arrival outside comes at rate ``1 - p(H)``, and its time is integrated
    over on a logarithmic grid. A list that is longer than the distribution has categories counts as
    all of them. `O(N K)` for each of 488 nodes.

    >>> import jax.numpy as jnp
    >>> from gls_jax import bounds
    >>> log_p, log_q = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
    >>> [round(float(bounds.optimum_distinct(log_p, log_q, k)), 4) for k in (1, 2, 3)]
    [0.6, 0.8857, 1.0]
    """
    num_drafts = checks.count(num_drafts, "num_drafts")
    log_p, log_q = checks.problem(log_p, log_q)
    ranked = ratio_order(log_p, log_q)
    # The rate outside each prefix, summed from the far end: no digits are lost.
    outside = jnp.append(jnp.cumsum(ranked.p[::-1])[::-1][1:], 0)
    # From a time when nothing has arrived to a time when the lightest category has.
    step = 0.25
    times = jnp.exp(jnp.arange(-38, 84, step, dtype=log_q.dtype))

    def add_category(counts, category):
        # `counts [K, node]`: probability of 0, ..., K - 1 arrivals in H.
        p, outside_rate = category
        # The category has arrived by then with probability 1 - e^{-p t}.
        counts = add_bernoulli(counts, -jnp.expm1(-p * times))
        # Density of the first arrival outside, in log(time): hence the factor `times`.
        density = outside_rate * times * jnp.exp(-outside_rate * times)
        too_few = step * jnp.sum(density * jnp.sum(counts, axis=0))
        return counts, jnp.where(outside_rate > 0, 1 - too_few, 1)

    start = jnp.zeros((num_drafts, times.shape[0]), log_q.dtype).at[0].set(1)
    start = varying_like(start, ranked)
    _, contained = jax.lax.scan(add_category, start, (ranked.p, outside))
    return _optimum(ranked, contained)


def _optimum(
    ranked: RatioOrder,
    contained: Float[Array, " N"],
) -> Float[Array, ""]:
    slack = jnp.cumsum(ranked.q) - jnp.minimum(contained, 1)
    # Prefixes end before the categories that cannot be drafted.
    slack = jnp.where(ranked.p > 0, slack, 0)
    return 1 + jnp.minimum(jnp.min(slack), 0)


def _given_target(log_p, log_q, num_active: int, num_drafts: int):
    """`q`, and the sum of ``1 / (K - 1 + M_j)`` over the active streams."""
    num_active, num_drafts = checks.active_of(num_active, num_drafts)
    log_p, log_q = checks.list_problem(log_p, log_q, num_active)
    terms = 1 / (num_drafts + excess(log_p, log_q))
    match = num_active * terms if log_p.ndim == 1 else jnp.sum(terms, axis=0)
    return jnp.exp(log_q), match
