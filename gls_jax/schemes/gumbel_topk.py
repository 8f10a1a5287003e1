"""Coupled Gumbel top-K (this library's; no earlier statement found): ONE clock an item, K distinct
drafts.

The list is the K smallest ``E_i / p_i`` (sampling without replacement from `p`), the target
``argmin_i E_i / q_i``. Strongly invariant, needs no draft law. Given that the target is `j` at time
``theta ~ Exp(1)``, item `i` stands before it in the list with probability ``1 - e^{-theta p_i (r_j
- r_i)+}``, independently, where ``r = q / p``. So

    P(target in list) = sum_j q_j F(r_j),   F(r) = E_theta P(Poisson-binomial count <= K - 1),

never below the Poisson scheme, which has Poisson counts of the same rates instead of these
Bernoullis.

**Vocabularies.** `F` is a decreasing function of the ratio alone. It is evaluated at places that
cut the target's mass into small parts, so that two neighbours bracket every item between them. At
each place the heaviest draft items are exact Bernoullis and the rest is one Poisson count. A
Poisson count is never smaller than the Bernoulli of the same rate, so this errs downwards;
replacing the tail item by item (Le Cam) shows that the truth is at most ``1 / (1 - s)`` times as
large, ``s = sum over the tail of lambda_i^2 e^{lambda_i} / 2``. :func:`acceptance_interval` returns
both ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import bounds, checks, races
from gls_jax.exact import inversion
from gls_jax.exact.counting import KERNEL_STEP, add_bernoulli, poisson_counts
from gls_jax.exact.quadrature import exponential_nodes
from gls_jax.exact.ratio_order import RatioOrder, ratio_order
from gls_jax.loops import varying_like
from gls_jax.schemes.poisson import verify  # the same first arrival of one race
from gls_jax.schemes.scheme import ExactAcceptance, Scheme, TokenVerification, Trials
from gls_jax.typing import LogProbs

__all__ = [
    "SCHEME",
    "Interval",
    "acceptance",
    "acceptance_interval",
    "accepted",
    "inversion_trial",
    "propose",
    "verify",
]

_EXACT_ITEMS = 512  # up to here every item is a Bernoulli and every ratio is evaluated
_CLOCKS = 64  # of the heaviest items in a trial without clocks
_HEAD, _PLACES = 256, 512  # beyond: exact Bernoullis, and places on the ratio axis
_PLACES_A_STEP = 27  # divides 2 _PLACES + 2


class Interval(NamedTuple):
    """An acceptance with its error: `lower <= truth <= upper`, up to float rounding; `estimate`
    lies between.
    """

    lower: Float[Array, " C"]
    estimate: Float[Array, " C"]
    upper: Float[Array, " C"]


def propose(key: PRNGKeyArray, log_p: Float[Array, "*k N"], num_drafts: int) -> Int[Array, " K"]:
    arrivals = races.arrivals(races.exponentials(key, 1, log_p.shape[0])[0], log_p)
    _, items = jax.lax.top_k(-arrivals, min(num_drafts, log_p.shape[0]))
    items = jax.lax.optimization_barrier(
        items
    )  # XLA would merge `items[0]` into the top-k, and then sort everything
    # Fewer than K possible items: the rest of the list repeats the first.
    items = jnp.where(jnp.isfinite(arrivals[items]), items, items[0])
    return jnp.concatenate([items, jnp.full(num_drafts - items.shape[0], items[0])])


def accepted(
    key: PRNGKeyArray, log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: int
) -> Bool[Array, " K"]:
    """One trial for every K: the target's rank among the arrivals under `p`."""
    clocks = races.exponentials(key, 1, log_q.shape[0])[0]
    token = races.winner(races.arrivals(clocks, log_q))
    arrivals = races.arrivals(clocks, log_p)
    rank = jnp.sum(arrivals < arrivals[token])
    return (rank < jnp.arange(1, num_drafts + 1)) & jnp.isfinite(arrivals[token])


def inversion_trial(
    log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: int
) -> Callable[[PRNGKeyArray], Bool[Array, " K"]]:
    """The same trial without clocks: count the distinct items that arrive before the target's.

    The heaviest draft items have clocks of their own; without that, a law that is nearly a point
    mass would take ever more arrivals until K distinct ones are found. The rest arrive one by one,
    by inversion.
    """
    size = log_p.shape[0]
    ranked = ratio_order(log_p, log_q)
    head = min(size, max(_CLOCKS, 2 * num_drafts))
    p_heavy, heavy = jax.lax.top_k(ranked.p, head)
    light = ranked.p.at[heavy].set(0)
    q, tail, excess = (
        inversion.weight_table(ranked.q),
        inversion.weight_table(light),
        _tail_excess(ranked, light),
    )

    def trial(key):
        noise = races.exponentials(key, 1, head + 3)[0]
        theta, (u, v) = noise[0], -jnp.expm1(-noise[1:3])
        token = inversion.draw_index(q, size, u, v)
        ahead = theta * jnp.maximum(ranked.ratio[token] - ranked.ratio[heavy], 0)
        rank = jnp.sum(noise[3:] < p_heavy * ahead, dtype=jnp.int32)

        def more(state):
            _, level, rank, _ = state
            return (rank < num_drafts) & (theta * excess[token] > level)

        def arrive(state):
            step, level, rank, seen = state
            noise = races.exponentials(races.stream_key(key, step), 1, 3)[0]
            u, v = -jnp.expm1(-noise[1:])
            item = inversion.draw_index(tail, jnp.searchsorted(excess, level / theta), u, v)
            new = jnp.all(seen != item)
            seen = jnp.where(
                jnp.arange(num_drafts) == rank, item, seen
            )  # an item that is there already changes nothing
            return step + 1, level + noise[0], rank + new.astype(rank.dtype), seen

        first = races.exponentials(races.stream_key(key, 1), 1, 1)[0, 0]
        start = (jnp.int32(2), first, rank, jnp.full(num_drafts, -1, jnp.int32))
        start = varying_like(start, key, ranked)
        rank = jax.lax.while_loop(more, arrive, start)[2]
        return (rank < jnp.arange(1, num_drafts + 1)) & (ranked.p[token] > 0)

    return trial


def acceptance(
    log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: tuple[int, ...]
) -> Float[Array, " C"]:
    return _interval(log_p, log_q, num_drafts).estimate


def acceptance_interval(log_p: LogProbs, log_q: LogProbs, num_drafts: tuple[int, ...]) -> Interval:
    """Acceptance for several K with its lower and upper end; they are equal for `N <= 512`.

    Args:
        log_p, log_q: `[N]`.
        num_drafts: the list lengths, static.

    Returns:
        :class:`Interval` of `f[len(num_drafts)]`.

    Raises:
        ValueError: shapes that do not fit, a list length below 1, or what
            :func:`gls_jax.check_log_probs` raises.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax.schemes import gumbel_topk
    >>> logits = 2 * jax.random.normal(jax.random.key(0), (2, 20_000))
    >>> log_p, log_q = jax.nn.log_softmax(logits[0]), jax.nn.log_softmax(logits.mean(0))
    >>> ends = gumbel_topk.acceptance_interval(log_p, log_q, (4,))
    >>> bool((ends.lower <= ends.estimate).all() and (ends.estimate <= ends.upper).all())
    True
    """
    log_p, log_q = checks.problem(log_p, log_q)
    return _interval(log_p, log_q, checks.counts(num_drafts, "num_drafts"))


def _interval(log_p, log_q, num_drafts: tuple[int, ...]) -> Interval:
    ranked = ratio_order(log_p, log_q)
    size = ranked.p.shape[0]
    mass = jnp.where(
        ranked.p > 0, ranked.q, 0
    )  # a target token that no draft can be is never matched
    if size <= _EXACT_ITEMS:
        lower, _ = _conditional(ranked, jnp.arange(size), size, num_drafts)
        value = jnp.sum(mass[:, None] * lower, axis=0)
        return Interval(value, value, value)
    total = jnp.cumsum(mass)
    cuts = (jnp.arange(_PLACES, dtype=total.dtype) + 0.5) / _PLACES * total[-1]
    # An item above a cut of its own gets a place of its own, and so does its forerunner.
    places = jnp.minimum(jnp.searchsorted(total, cuts), size - 1)
    places = jnp.sort(
        jnp.concatenate([jnp.array([0, size - 1]), places, jnp.maximum(places - 1, 0)])
    )
    lower, upper = _conditional(ranked, places, _HEAD, num_drafts)
    before = jnp.searchsorted(places, jnp.arange(size), side="right") - 1
    after = jnp.searchsorted(places, jnp.arange(size), side="left")
    worst = jnp.sum(mass[:, None] * lower[after], axis=0)
    best = jnp.sum(mass[:, None] * upper[before], axis=0)
    middle = jnp.sum(mass[:, None] * (lower[before] + lower[after]), axis=0) / 2
    return Interval(worst, middle, best)


def _conditional(ranked: RatioOrder, places, head: int, num_drafts: tuple[int, ...]):
    """Lower and upper end of `F` at places of the ratio order, each `[T, C]`; equal where every
    item is in the head.
    """
    most = max(num_drafts)
    nodes, weights = exponential_nodes((1,), ranked.p.dtype)  # theta [n]
    ratio = ranked.ratio[places]
    _, heavy = jax.lax.top_k(ranked.p, head)
    light = ranked.p.at[heavy].set(0)
    if head == ranked.p.shape[0]:
        law = (
            jnp.zeros((len(places), len(nodes), most), ratio.dtype).at[..., 0].set(1)
        )  # nobody counted yet
    else:
        rates = _tail_excess(ranked, light)[places, None] * nodes
        law = jnp.moveaxis(poisson_counts(rates, most - 1), 0, -1)

    heads = ranked.p[heavy], ranked.ratio[heavy]

    @jax.checkpoint  # else the gradient keeps `law` for every item of the head
    def count(place):
        law, ratio = place

        def add(law, item):
            p, r = item
            enters = -jnp.expm1(-nodes * (p * jnp.maximum(ratio - r, 0)))
            return add_bernoulli(law, enters), None

        return jax.lax.scan(add, varying_like(law.T, law, ratio, heads), heads)[0].T

    law = jax.lax.map(count, (law, ratio), batch_size=_PLACES_A_STEP)
    below = jnp.cumsum(law, axis=-1)[..., jnp.asarray(num_drafts) - 1]  # [T, n, C]
    lower = jnp.einsum("tnc,n->tc", below, weights[0], precision="highest")
    if head == ranked.p.shape[0]:
        return lower, lower
    # Le Cam, relative form. lambda_i <= p_i r theta, so the squares sum to at most (largest) x
    # (sum); squares of the p_i themselves would underflow.
    scale = ratio[:, None] * nodes
    largest, total = (
        jnp.minimum(x[places, None] * scale, 50) for x in (jax.lax.cummax(light), jnp.cumsum(light))
    )
    loss = 0.5 * largest * total * jnp.exp(largest)
    ceiling = jnp.where((loss < 1)[..., None], below / jnp.maximum(1 - loss, 1e-6)[..., None], 1)
    ceiling = jax.lax.cummin(
        jnp.minimum(ceiling, 1), axis=1
    )  # F at a fixed place decreases in theta
    return lower, jnp.einsum("tnc,n->tc", ceiling, weights[0], precision="highest")


def _tail_excess(ranked: RatioOrder, light) -> Float[Array, " N"]:
    """Total rate of the tail at every place, as a sum of non-negative terms: no digits lost to the
    head.
    """
    return jnp.concatenate(
        [jnp.zeros(1, light.dtype), jnp.cumsum(jnp.cumsum(light)[:-1] * jnp.diff(ranked.ratio))]
    )


def kernel(log_p, log_q, num_drafts: int) -> Float[Array, "J J"]:
    p, q = races.weights(log_p), races.weights(log_q)
    theta, (weights,) = exponential_nodes((1,), log_q.dtype, step=KERNEL_STEP)
    ratio = q[0] / jnp.maximum(p[0], 1e-30)
    enters = -jnp.expm1(-theta * jnp.maximum(p[1:] * ratio - q[1:], 0)[:, None])  # [others, n]

    def add(law, chance):
        return add_bernoulli(law, chance), None

    nobody = jnp.zeros((num_drafts, len(theta)), p.dtype).at[0].set(1)
    law, _ = jax.lax.scan(add, nobody, enters)
    listed = jnp.where(p[0] > 0, jnp.cumsum(law @ weights), 0)  # among the first 1, 2, ... K
    # Fewer possible items than drafts: the rest of the list repeats the first.
    counts = jnp.arange(1, num_drafts + 1)
    repeats = jnp.maximum(counts - jnp.sum(p > 0), 0)
    kernel = jnp.zeros((num_drafts + 1, num_drafts + 1), p.dtype).at[0, 0].set(1)
    kernel = kernel.at[counts, 0].set(1 - listed)
    return kernel.at[counts, 1].add(listed - listed[0]).at[counts, 1 + repeats].add(listed[0])


SCHEME = Scheme(
    name="gumbel_topk",
    invariance="strong",
    max_drafts=None,
    needs_draft_probs=False,
    diverse=False,
    ranked=True,
    propose_fn=propose,
    verification=TokenVerification(verify),
    exact=ExactAcceptance(acceptance, bound=bounds.list_matching, kernel=kernel),
    trials=Trials(accepted, inversion=inversion_trial),
)
