"""Gumbel-max list sampling as a scheme (Rowan, Phan, Khisti 2025, arXiv 2506.05632, Algorithms 1
and 2).

Draft `k` wins the race of its own stream under `p`; the target emits ``argmin_i min_k S[k, i] /
q_i`` over the streams of the active drafts. On a mismatch the token to emit is that same one: a
fresh sample of `q` would bias the output.

Exact acceptance (not in the paper). Item `j` reaches the target in a given stream at time `m` and
no other item has beaten it there, while stream `k` drafts something else. With ``r_i = q_i / p_i``,
``h(u) = sum_i max(u p_i, q_i)``, ``M_j = h(r_j)`` and everything scaled by `e^m`,

    P(no match) = sum_j q_j int_0^inf K e^{-K m} (1 - e_j) G_j(m)^{K-1} dm,
    e_j = e^{-m (M_j - 1)},   G_j(m) = 1 - m p_j int_{r_j}^inf e^{-m (h(u) - 1)} du,

`G_j` being the chance that another stream does not draft `j`, given that the target's minimum is
not there before `m`. `h` is piecewise linear between the sorted ratios, so the inner integral is a
sum over the later places `t` of ``(e_t - e_{t+1}) / P_t``, ``P_t`` the cumulative draft mass. Added
by parts, so that nothing small is divided by something small,

    G_j(m) = 1 - p_j / P_j e_j + p_j sum_{t > j} e_t (1 / P_{t-1} - 1 / P_t):

one sort, then one exponential and one reversed cumulative sum of `N` numbers a node.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import bounds, checks, races
from gls_jax.exact import inversion
from gls_jax.exact.counting import KERNEL_STEP, add_bernoulli, binomial_counts, with_empty_row
from gls_jax.exact.quadrature import exponential_nodes
from gls_jax.exact.ratio_order import RatioOrder, cumulative, ratio_order, total
from gls_jax.sampling import draft_list, target_of_list
from gls_jax.schemes.scheme import ExactAcceptance, Scheme, TokenVerification, Trials
from gls_jax.typing import LogProbs

__all__ = [
    "SCHEME",
    "acceptance",
    "acceptance_active",
    "accepted",
    "inversion_trial",
    "propose",
    "verify",
]

_LEAST_MASS = (
    1e-18  # of what stands in a denominator: items behind less draft mass are never matched anyway
)


def propose(key: PRNGKeyArray, log_p: Float[Array, "*k N"], num_drafts: int) -> Int[Array, " K"]:
    return draft_list(races.exponentials(key, num_drafts, log_p.shape[-1]), log_p)


def verify(
    key: PRNGKeyArray,
    drafts: Int[Array, " K"],
    log_p: Float[Array, "*k N"],
    log_q: Float[Array, " N"],
    active: Bool[Array, " K"] | None,
) -> Int[Array, ""]:
    del log_p  # conditional invariance: the draft laws play no part
    clocks = races.exponentials(key, drafts.shape[0], log_q.shape[0])
    return target_of_list(clocks, log_q, active)


def accepted(
    key: PRNGKeyArray, log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: int
) -> Bool[Array, " K"]:
    """One trial for every K: the target of the first K streams is a running minimum over streams."""
    (_, drafts), (first, items) = races.first_arrivals(key, num_drafts, log_p, log_q)
    return _accepted(first, items, drafts)


def inversion_trial(
    log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: int
) -> Callable[[PRNGKeyArray], Bool[Array, " K"]]:
    """The same trial without clocks: K independent streams, each by inversion."""
    prepare, each = inversion.pair_tables, None
    if log_p.ndim == 2:  # a law a stream
        prepare, each = jax.vmap(inversion.pair_tables, (0, None)), 0
    pair = prepare(log_p, log_q)

    def trial(key):
        return _accepted(
            *jax.vmap(inversion.one_stream, (each, 0))(pair, races.exponentials(key, num_drafts, 6))
        )

    return trial


def _accepted(first, items, drafts) -> Bool[Array, " K"]:
    """For every K: whether what arrives first in the first K streams is drafted in one of them."""
    listed = jnp.arange(drafts.shape[0]) <= jnp.arange(drafts.shape[0])[:, None]  # [K, stream]
    targets = items[jnp.argmin(jnp.where(listed, first, jnp.inf), axis=1)]
    return jnp.any(listed & (drafts == targets[:, None]), axis=1)


def acceptance(
    log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: tuple[int, ...]
) -> Float[Array, " C"]:
    if log_p.ndim == 2:
        return _acceptance_diverse(log_p, log_q, num_drafts)
    return _acceptance_iid(log_p, log_q, tuple((k, k) for k in num_drafts))


def acceptance_active(
    log_p: LogProbs, log_q: LogProbs, num_active: int, num_drafts: int
) -> Float[Array, ""]:
    """Exact acceptance when the target's minimum runs over `K` streams of which only `J` drafts can
    still match.

    That is `gls_strong` after rejections. Streams whose draft is out of play can win for the target
    without a match: the integrand becomes ``J (1 - e_j) G^{J-1} + (K - J) G^J``.

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
    return jnp.clip(_acceptance_iid(log_p, log_q, ((num_active, num_drafts),))[0], 0, 1)


def _acceptance_iid(log_p, log_q, cases: tuple[tuple[int, int], ...]) -> Float[Array, " C"]:
    """Cases `(J, K)` in one pass over the nodes: time `O(N log N + N nodes)`, memory `O(N)`, also
    of the gradient.
    """
    ranked = ratio_order(log_p, log_q)
    live = jnp.where(
        ranked.p > 0, ranked.q, 0
    )  # a target token that no draft can be is always missed
    return _integral(_places(ranked), live, cases)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _integral(
    places: _Places, live: Float[Array, " N"], cases: tuple[tuple[int, int], ...]
) -> Float[Array, " C"]:
    nodes, weights = exponential_nodes(tuple(k for _, k in cases), live.dtype)
    values = jax.lax.map(lambda m: _integrand(places, live, m, cases), jnp.asarray(nodes))
    return jnp.sum(values * weights.T, axis=0)


@_integral.defjvp
def _integral_and_slopes(cases, primals, tangents):
    """Value and gradient in one pass: what a node adds to either needs no other node, and no node's
    arrays are kept.
    """
    nodes, weights = exponential_nodes(tuple(k for _, k in cases), primals[1].dtype)

    def add(sums, at):
        m, weight = at
        # Case by case: `vmap` over them costs a fifth of the time where there is one.
        added = []
        for case, share in zip(cases, weight, strict=True):

            def part(places, live, case=case, share=share):
                return share * _integrand(places, live, m, (case,))[0]

            added.append(jax.value_and_grad(part, argnums=(0, 1))(*primals))
        return jax.tree.map(lambda total, *each: total + jnp.stack(each), sums, *added), None

    zero = jnp.zeros(len(cases), primals[1].dtype)
    start = jax.tree.map(lambda field: zero[:, None] * field, primals)
    (value, slopes), _ = jax.lax.scan(add, (jnp.sum(start[1], axis=1), start), (nodes, weights.T))
    products = jax.tree.map(
        lambda slope, tangent: jnp.sum(slope * tangent, axis=-1), slopes, tangents
    )
    return value, sum(jax.tree.leaves(products))


def _integrand(
    places: _Places, live: Float[Array, " N"], m, cases: tuple[tuple[int, int], ...]
) -> Float[Array, " C"]:
    """K minus that of a miss: hits are summed, so that a small acceptance keeps its digits."""
    unbeaten, other = _at(places, m)
    hits = (
        j * (unbeaten + (1 - unbeaten) * (1 - other ** (j - 1)))
        + ((k - j) * (1 - other**j) if k > j else 0)
        for j, k in cases
    )
    return jnp.stack([total(live * f) for f in hits])


class _Places(NamedTuple):
    """What the integral needs of a pair of laws, in order of `q / p`; each field is `[N]`."""

    p: Float[Array, " N"]
    excess: Float[Array, " N"]  # M - 1
    share: Float[Array, " N"]  # p_t / P_t
    drop: Float[Array, " N"]  # 1 / P_t - 1 / P_{t+1}; 0 at the last place


def _places(ranked: RatioOrder) -> _Places:
    mass = jnp.maximum(ranked.mass, _LEAST_MASS)
    share = ranked.p / mass
    return _Places(
        ranked.p, ranked.excess, share, jnp.append(share[1:] / mass[:-1], jnp.zeros(1, share.dtype))
    )


def _at(places: _Places, m: Float[Array, ""]) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """`e_j(m)` and `G_j(m)` of every place."""
    unbeaten = jnp.exp(-m * places.excess)
    later = cumulative(places.drop * jnp.append(unbeaten[1:], unbeaten[-1:]), reverse=True)
    return unbeaten, 1 - places.share * unbeaten + places.p * later


def _acceptance_diverse(log_p: Float[Array, "K N"], log_q, num_drafts):
    """One law a stream: sum over the winning stream of its own factor times the others' `G`; `O(K
    N)` memory.
    """
    ranked = jax.vmap(ratio_order, in_axes=(0, None))(log_p, log_q)
    places = jax.vmap(_places)(ranked)
    numbers = jnp.arange(log_q.shape[0], dtype=jnp.int32)
    back = jax.vmap(lambda order: jnp.zeros_like(order).at[order].set(numbers))(
        ranked.order
    )  # place of each item
    live = ranked.p > 0
    q = jnp.exp(log_q)
    counts = tuple(range(1, log_p.shape[0] + 1))
    nodes, weights = exponential_nodes(counts, log_q.dtype)

    @jax.checkpoint
    def node(m) -> Float[Array, " K"]:
        unbeaten, other = jax.vmap(_at, in_axes=(0, None))(places, m)
        other, beaten = jnp.where(live, other, 1), jnp.where(live, 1 - unbeaten, 1)
        other, beaten = (jnp.take_along_axis(x, back, axis=1) for x in (other, beaten))

        def stream(carry, factors):
            nobody, won = (
                carry  # prod_k G_k, and sum over the winner of its factor times the others' G
            )
            g, b = factors
            won = won * g + nobody * b
            return (nobody * g, won), jnp.sum(q * won)

        return jax.lax.scan(stream, (jnp.ones_like(q), jnp.zeros_like(q)), (other, beaten))[1]

    missed = jnp.sum(jax.lax.map(node, jnp.asarray(nodes)) * weights.T, axis=0)
    return jnp.sum(q) - missed[jnp.asarray(num_drafts) - 1]


def kernel(log_p, log_q, num_drafts: int, *, strong: bool = False) -> Float[Array, "J J"]:
    ranked = ratio_order(log_p, log_q)
    counts = tuple(range(1, num_drafts + 1))
    theta, weights = exponential_nodes(counts, log_q.dtype, step=KERNEL_STEP)
    excess = ranked.excess[:, None]
    gaps = jnp.exp(-theta * excess) * -jnp.expm1(-theta * ranked.rise[:, None])
    here = jnp.argmin(ranked.order)  # place of column 0
    behind = jnp.arange(len(ranked.order))[:, None] >= here
    beyond = jnp.sum(jnp.where(behind, gaps / jnp.maximum(ranked.mass[:, None], 1e-18), 0), axis=0)
    possible = ranked.p[here] > 0
    won = jnp.where(possible, jnp.exp(-theta * excess[here]), 0)  # the first stream drafts y
    lost = jnp.where(possible, ranked.p[here] * beyond, 0)  # another one does
    several = binomial_counts(num_drafts, lost)  # [J, J', n]

    def row(j: int):
        streams = num_drafts if strong else j
        with_first = add_bernoulli(several[j - 1], won)
        law = j / streams * with_first + (1 - j / streams) * several[j]
        return law @ (streams * weights[streams - 1])

    return with_empty_row(row(j) for j in counts)


SCHEME = Scheme(
    name="gls",
    invariance="conditional",
    max_drafts=None,
    needs_draft_probs=False,
    diverse=True,
    ranked=False,
    propose_fn=propose,
    verification=TokenVerification(verify),
    exact=ExactAcceptance(
        acceptance, bound=bounds.list_matching, kernel=kernel, tails_bracket=True
    ),
    trials=Trials(accepted, inversion=inversion_trial, streaming=True),
)
