"""Gumbel-max list sampling (GLS) as a scheme.

Source: Rowan, Phan, Khisti 2025, arXiv 2506.05632, Algorithms 1 and 2.

Draft `k` wins the race of stream `k` under `p`; the target emits ``argmin_i min_k S[k, i] / q_i``
over the streams of the active drafts. On a mismatch the target emits that same token: a fresh
sample of `q` would bias the output.

**Exact acceptance** (not in the paper). Suppose that token `j` arrives first in the target's race,
at time `m` in one of the streams, the *winning* stream. With ``r_i = q_i / p_i``,
``h(u) = sum_i max(u p_i, q_i)``, ``M_j = h(r_j)`` and everything scaled by `e^m`,

    P(no match) = sum_j q_j int_0^inf K e^{-K m} (1 - e_j) G_j(m)^{K-1} dm,
    e_j = e^{-m (M_j - 1)},   G_j(m) = 1 - m p_j int_{r_j}^inf e^{-m (h(u) - 1)} du,

where `e_j` is the probability that the winning stream drafts `j`, and `G_j` the probability that
another stream does not, given that nothing arrives for the target before `m`. `h` is piecewise
linear between the sorted ratios, so the inner integral is a sum of ``(e_t - e_{t+1}) / P_t`` over
the indices ``t >= j`` in ratio order, with `P_t` the cumulative draft mass. Summation by parts
avoids dividing small differences by small masses:

    G_j(m) = 1 - p_j / P_j e_j + p_j sum_{t > j} e_t (1 / P_{t-1} - 1 / P_t).

The cost is one sort, and at each quadrature node one exponential and one reversed cumulative sum of
`N` numbers.

**Kernel** for the planner. Given that `y` arrives first at time `m`, every other exponential starts
anew there (the race has no memory), so the streams draft independently: the winning stream drafts
`y` with probability ``e_y(m)``, every other one with ``1 - G_y(m)``.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from gls_jax import bounds, checks, races, work_shape
from gls_jax.exact import inversion
from gls_jax.exact.counting import KERNEL_STEP, add_bernoulli, binomial_counts, with_empty_row
from gls_jax.exact.quadrature import exponential_nodes
from gls_jax.exact.ratio_order import RatioOrder, cumulative, index_in, ratio_order, total
from gls_jax.loops import map_in_batches
from gls_jax.sampling import draft_list, target_of_list
from gls_jax.schemes.array_types import (
    Acceptances,
    AcceptedByLength,
    Active,
    DraftLogProbs,
    Drafts,
    Kernel,
    Scalar,
    Token,
    Tokens,
    Vector,
)
from gls_jax.schemes.function_types import ExactAcceptance, TokenVerification, Trial, Trials
from gls_jax.schemes.scheme import Scheme
from gls_jax.typing import LogProbs

__all__ = [
    "SCHEME",
    "acceptance",
    "acceptance_active",
    "accepted",
    "inversion_trial",
    "propose",
    "propose_among",
    "verify",
]

# Least draft mass in a denominator: tokens with less cumulative mass are practically never matched.
_LEAST_MASS = 1e-18


def propose(key: PRNGKeyArray, log_p: DraftLogProbs, num_drafts: int) -> Drafts:
    noise = races.exponentials(key, num_drafts, log_p.shape[-1])
    return draft_list(noise, log_p)


def propose_among(
    key: PRNGKeyArray, log_p: DraftLogProbs, num_drafts: int, tokens: Tokens
) -> Drafts:
    return tokens[draft_list(races.exponentials_at(key, num_drafts, tokens), log_p)]


def verify(
    key: PRNGKeyArray,
    drafts: Drafts,
    log_p: DraftLogProbs,
    log_q: Vector,
    active: Active | None,
) -> Token:
    del log_p  # conditional invariance: the draft distributions play no part
    noise = races.exponentials(key, drafts.shape[0], log_q.shape[0])
    return target_of_list(noise, log_q, active)


def accepted(
    key: PRNGKeyArray, log_p: DraftLogProbs, log_q: Vector, num_drafts: int
) -> AcceptedByLength:
    (_, drafts), (arrivals, tokens) = races.first_arrivals(key, num_drafts, log_p, log_q)
    return _accepted_by_length(arrivals, tokens, drafts)


def inversion_trial(log_p: DraftLogProbs, log_q: Vector, num_drafts: int) -> Trial:
    """The same trial by inversion: K independent streams."""
    if log_p.ndim == 1:
        tables, table_axis = inversion.pair_tables(log_p, log_q), None
    else:
        tables, table_axis = jax.vmap(inversion.pair_tables, (0, None))(log_p, log_q), 0

    def trial(key):
        noise = races.exponentials(key, num_drafts, 6)
        streams = jax.vmap(inversion.one_stream, (table_axis, 0))
        arrivals, tokens, drafts = streams(tables, noise)
        return _accepted_by_length(arrivals, tokens, drafts)

    return trial


def _accepted_by_length(
    arrivals: Float[Array, " K"], tokens: Drafts, drafts: Drafts
) -> AcceptedByLength:
    """For every list length: whether its target is drafted in one of its streams.

    In each stream `tokens` arrive first under `q`, at the times `arrivals`.
    """
    stream = jnp.arange(drafts.shape[0])
    is_listed = stream <= jnp.arange(drafts.shape[0])[:, None]  # [list length - 1, stream]
    winners = jnp.argmin(jnp.where(is_listed, arrivals, jnp.inf), axis=1)
    targets = tokens[winners]
    return jnp.any(is_listed & (drafts == targets[:, None]), axis=1)


def acceptance(log_p: DraftLogProbs, log_q: Vector, num_drafts: tuple[int, ...]) -> Acceptances:
    if log_p.ndim == 2:
        return _acceptance_diverse(log_p, log_q, num_drafts)
    return _acceptance_iid(log_p, log_q, tuple((k, k) for k in num_drafts))


def acceptance_active(log_p: LogProbs, log_q: LogProbs, num_active: int, num_drafts: int) -> Scalar:
    """Exact acceptance when only J of the K streams that the target reads have active drafts.

    This is the acceptance of `gls_strong` after rejections. A stream whose draft is not active can
    win for the target without a match: the integrand of a miss becomes
    ``J (1 - e_j) G^{J-1} + (K - J) G^J``.

    Args:
        log_p: `[N]`.
        log_q: `[N]`.
        num_active: `J`, from 1 to `num_drafts`.
        num_drafts: `K`.

    Returns:
        `f[]`; never below :func:`gls_jax.bounds.list_matching_strong`.

    Raises:
        ValueError: shapes that do not fit, counts out of range, or what
            :func:`gls_jax.check_log_probs` raises.

    >>> import jax.numpy as jnp
    >>> from gls_jax.schemes import gls
    >>> log_p, log_q = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]]))
    >>> [round(float(gls.acceptance_active(log_p, log_q, j, 4)), 2) for j in (1, 2, 4)]
    [0.54, 0.79, 0.96]
    """
    num_active, num_drafts = checks.active_of(num_active, num_drafts)
    log_p, log_q = checks.problem(log_p, log_q)
    value = _acceptance_iid(log_p, log_q, ((num_active, num_drafts),))[0]
    return jnp.clip(value, 0, 1)


class _Terms(NamedTuple):
    """The terms of `e` and `G` that depend on the pair (p, q) alone, in ratio order."""

    p: Vector
    excess: Vector  # M - 1
    share: Vector  # p_t / P_t
    drop: Vector  # 1 / P_t - 1 / P_{t+1}; 0 at the last index


def _terms(ranked: RatioOrder) -> _Terms:
    mass = jnp.maximum(ranked.mass, _LEAST_MASS)
    share = ranked.p / mass
    last_drop = jnp.zeros(1, share.dtype)
    drop = jnp.append(share[1:] / mass[:-1], last_drop)
    return _Terms(p=ranked.p, excess=ranked.excess, share=share, drop=drop)


def _e_and_g(terms: _Terms, m: Scalar) -> tuple[Vector, Vector]:
    """`e_j(m)` and `G_j(m)` at every index in ratio order."""
    e = jnp.exp(-m * terms.excess)
    next_e = jnp.append(e[1:], e[-1:])
    later = cumulative(terms.drop * next_e, reverse=True)
    return e, 1 - terms.share * e + terms.p * later


def _acceptance_iid(log_p, log_q, cases: tuple[tuple[int, int], ...]) -> Acceptances:
    """Acceptance for cases `(J, K)`, in one pass over the quadrature nodes.

    Time `O(N log N + N nodes)` and memory `O(N)`, also of the gradient.
    """
    ranked = ratio_order(log_p, log_q)
    # A target token that cannot be drafted is always missed.
    matchable_q = jnp.where(ranked.p > 0, ranked.q, 0)
    return _integral(_terms(ranked), matchable_q, cases)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _integral(
    terms: _Terms, matchable_q: Vector, cases: tuple[tuple[int, int], ...]
) -> Acceptances:
    nodes, weights = exponential_nodes(tuple(k for _, k in cases), matchable_q.dtype)
    values = map_in_batches(
        lambda m: _integrand(terms, matchable_q, m, cases),
        jnp.asarray(nodes),
        work_shape.current().nodes_at_once(matchable_q.shape[0]),
    )
    return jnp.sum(values * weights.T, axis=0)


@_integral.defjvp
def _integral_jvp(cases, primals, tangents):
    """Value and slopes in one pass over the nodes, without keeping the arrays of any node."""
    terms, matchable_q = primals
    nodes, weights = exponential_nodes(tuple(k for _, k in cases), matchable_q.dtype)
    value_and_slopes = jax.value_and_grad(_weighted_integrand, argnums=(0, 1))

    nodes_per_step = work_shape.current().nodes_at_once(matchable_q.shape[0])

    def at_node(m, node_weights):
        # Case by case: `vmap` would cost a fifth more time where there is one case.
        by_case = [
            value_and_slopes(terms, matchable_q, m, case, weight)
            for case, weight in zip(cases, node_weights, strict=True)
        ]
        return jax.tree.map(lambda *parts: jnp.stack(parts), *by_case)

    def add_nodes(sums, step):
        if nodes_per_step == 1:
            added = at_node(*step)
        else:
            by_node = jax.vmap(at_node)(*step)
            added = jax.tree.map(lambda values: jnp.sum(values, axis=0), by_node)
        return jax.tree.map(jnp.add, sums, added), None

    # Zeros made of the primals: inside `shard_map` they vary over the same devices.
    zeros = jnp.zeros(len(cases), matchable_q.dtype)
    zero_slopes = jax.tree.map(lambda field: zeros[:, None] * field, primals)
    zero_value = jnp.sum(zero_slopes[1], axis=1)
    steps = nodes, weights.T
    if nodes_per_step > 1:
        steps = jax.tree.map(lambda values: _in_steps(values, nodes_per_step), steps)
    (value, slopes), _ = jax.lax.scan(add_nodes, (zero_value, zero_slopes), steps)
    products = jax.tree.map(
        lambda slope, tangent: jnp.sum(slope * tangent, axis=-1), slopes, tangents
    )
    return value, sum(jax.tree.leaves(products))


def _in_steps(values: np.ndarray, most_per_step: int) -> np.ndarray:
    """Nodes or their weights in steps of one size; nodes of weight 0 fill up the last."""
    num_steps = -(-len(values) // most_per_step)
    padding = [(0, -len(values) % num_steps), *[(0, 0)] * (values.ndim - 1)]
    return np.pad(values, padding).reshape(num_steps, -1, *values.shape[1:])


def _weighted_integrand(terms: _Terms, matchable_q, m, case: tuple[int, int], weight):
    return weight * _integrand(terms, matchable_q, m, (case,))[0]


def _integrand(
    terms: _Terms, matchable_q: Vector, m, cases: tuple[tuple[int, int], ...]
) -> Acceptances:
    """The integrand of a match: K minus that of a miss.

    Summing matches instead of misses keeps the digits of a small acceptance.
    """
    e, g = _e_and_g(terms, m)
    values = []
    for j, k in cases:
        match = j * (e + (1 - e) * (1 - g ** (j - 1)))
        if k > j:
            match = match + (k - j) * (1 - g**j)
        values.append(total(matchable_q * match))
    return jnp.stack(values)


def _acceptance_diverse(
    log_p: Float[Array, "K N"], log_q: Vector, num_drafts: tuple[int, ...]
) -> Acceptances:
    """Acceptance if every stream has another draft distribution; `O(K N)` memory.

    The miss is a sum over the winning stream of its ``1 - e`` times the `G` of the other streams.
    """
    shape = work_shape.current()
    ranked = jax.vmap(ratio_order, in_axes=(0, None))(log_p, log_q)
    terms = jax.vmap(_terms)(ranked)
    # The ratio order differs between streams.
    index_of = jax.vmap(index_in)(ranked.order)
    is_possible = ranked.p > 0
    q = jnp.exp(log_q)

    @jax.checkpoint  # the gradient keeps no arrays of a node
    def misses(m) -> Float[Array, " K"]:
        """The integrand of a miss for the first 1, ..., K streams."""
        e, g = jax.vmap(_e_and_g, in_axes=(0, None))(terms, m)
        g = jnp.where(is_possible, g, 1)
        not_e = jnp.where(is_possible, 1 - e, 1)
        g = jnp.take_along_axis(g, index_of, axis=1)
        not_e = jnp.take_along_axis(not_e, index_of, axis=1)

        def add_stream(carry, stream):
            # Over the streams so far: the product of their G, and the sum over the winner of its
            # 1 - e times the product of the others' G.
            product, winner_sum = carry
            stream_g, stream_not_e = stream
            winner_sum = winner_sum * stream_g + product * stream_not_e
            return (product * stream_g, winner_sum), jnp.sum(q * winner_sum)

        start = jnp.ones_like(q), jnp.zeros_like(q)
        unroll = len(g) if shape.is_wide else 1
        _, missed = jax.lax.scan(add_stream, start, (g, not_e), unroll=unroll)
        return missed

    list_lengths = tuple(range(1, log_p.shape[0] + 1))
    nodes, weights = exponential_nodes(list_lengths, log_q.dtype)
    nodes_per_step = shape.nodes_at_once(log_p.size)
    missed = map_in_batches(misses, jnp.asarray(nodes), nodes_per_step)
    missed = jnp.sum(missed * weights.T, axis=0)
    return jnp.sum(q) - missed[jnp.asarray(num_drafts) - 1]


def kernel(log_p: Vector, log_q: Vector, num_drafts: int, *, strong: bool = False) -> Kernel:
    """The emitted-token kernel; if `strong`, the target reads all K streams for every J."""
    ranked = ratio_order(log_p, log_q)
    counts = tuple(range(1, num_drafts + 1))
    nodes, weights = exponential_nodes(counts, log_q.dtype, step=KERNEL_STEP)

    # Sum of (e_t - e_{t+1}) / P_t over the indices t from that of y, which is category 0, at every
    # node. Here e_t - e_{t+1} is not a difference, and nothing is lost by dividing.
    excess = ranked.excess[:, None]
    differences = jnp.exp(-nodes * excess) * -jnp.expm1(-nodes * ranked.rise[:, None])
    y_index = jnp.argmin(ranked.order)
    is_from_y = jnp.arange(len(ranked.order))[:, None] >= y_index
    mass = jnp.maximum(ranked.mass[:, None], _LEAST_MASS)
    inner_integral = jnp.sum(jnp.where(is_from_y, differences / mass, 0), axis=0)

    # Probability that the winning stream drafts y, and that another stream does.
    y_is_possible = ranked.p[y_index] > 0
    by_winner = jnp.where(y_is_possible, jnp.exp(-nodes * excess[y_index]), 0)
    by_other = jnp.where(y_is_possible, ranked.p[y_index] * inner_integral, 0)
    other_counts = binomial_counts(num_drafts, by_other)  # [J, J', n]

    def row(j: int):
        num_streams = num_drafts if strong else j
        # The winning stream is one of the J active ones, or one of the others.
        others = other_counts[j - 1]
        with_winner = add_bernoulli(others, by_winner)
        share = j / num_streams
        distribution = share * with_winner + (1 - share) * other_counts[j]
        return distribution @ (num_streams * weights[num_streams - 1])

    return with_empty_row(row(j) for j in counts)


SCHEME = Scheme(
    name="gls",
    invariance="conditional",
    max_drafts=None,
    needs_draft_probs=False,
    diverse=True,
    ranked=False,
    propose_fn=propose,
    propose_among_fn=propose_among,
    verification=TokenVerification(verify),
    exact=ExactAcceptance(
        acceptance, bound=bounds.list_matching, kernel=kernel, tails_are_bounds=True
    ),
    trials=Trials(accepted, inversion=inversion_trial, streaming=True),
)
