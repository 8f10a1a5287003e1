"""Coupled Gumbel top-K: ONE race, K distinct drafts (this library's; no earlier statement found).

The list is the K smallest ``E_i / p_i`` (sampling without replacement from `p`), the target
``argmin_i E_i / q_i``. Strongly invariant, and the verifier does not need `p`. Given that the
target is `j`, at time ``theta ~ Exp(1)``, token `i` comes before it in the list with probability
``1 - e^{-theta p_i (r_j - r_i)+}``, independently, where ``r = q / p``. So

    P(target in list) = sum_j q_j F(r_j),   F(r) = E_theta P(Poisson-binomial count <= K - 1),

never below the Poisson scheme, which has Poisson counts of the same rates instead of these
Bernoulli variables.

**Vocabularies.** `F` is a decreasing function of the ratio alone. It is evaluated on a grid of
indices in ratio order that divide the target's mass into small parts, so that the values at two
neighbours bound those of every token between them. At each index of the grid the heaviest draft
tokens, the *head*, are exact Bernoulli variables, and the tail is one Poisson count. Such a count
is never smaller than the Bernoulli variable of the same rate, so this errs downwards. Replacing the
tail token by token (Le Cam) shows that the truth is at most ``1 / (1 - s)`` times as large,
``s = sum over the tail of lambda_i^2 e^{lambda_i} / 2``. :func:`acceptance_interval` returns both
ends.

**Kernel** for the planner. Given that `y` is emitted at time ``theta``, it is in the list if fewer
than J others come before it, token `i` with probability ``1 - e^{-theta (p_i r_y - q_i)+}``. The
drafts are distinct, so exactly one of them equals `y` then, unless the list repeats its first
token.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gls_jax import bounds, checks, races, work_shape
from gls_jax.exact import inversion
from gls_jax.exact.counting import (
    KERNEL_STEP,
    add_bernoulli,
    add_bernoulli_to_arrays,
    poisson_counts,
)
from gls_jax.exact.quadrature import exponential_nodes
from gls_jax.exact.ratio_order import RatioOrder, nondecreasing_sum, ratio_order, search
from gls_jax.loops import map_in_batches, varying_like
from gls_jax.schemes.array_types import (
    Acceptances,
    AcceptedByLength,
    DraftLogProbs,
    Drafts,
    IntScalar,
    Kernel,
    Scalar,
    Tokens,
    Vector,
)
from gls_jax.schemes.function_types import ExactAcceptance, TokenVerification, Trial, Trials
from gls_jax.schemes.poisson import verify  # the same first arrival of one race
from gls_jax.schemes.scheme import Scheme
from gls_jax.typing import LogProbs

__all__ = [
    "SCHEME",
    "Interval",
    "acceptance",
    "acceptance_interval",
    "accepted",
    "inversion_trial",
    "propose",
    "propose_among",
    "verify",
]

# Up to this size every token is a Bernoulli variable, and `F` is evaluated at every ratio.
MAX_EXACT_CATEGORIES = 512
# In a larger vocabulary: tokens that are Bernoulli variables, and parts of the target's mass.
HEAD_SIZE = 256
_NUM_CUTS = 512
_SAMPLED_HEAD_SIZE = 24  # tokens that are Bernoulli variables in `sampled_acceptance`
_TRIAL_HEAD_SIZE = 64  # heaviest tokens, with one exponential each in a trial by inversion


class Interval(NamedTuple):
    """An acceptance with its error: `lower <= truth <= upper`, up to rounding."""

    lower: Acceptances
    estimate: Acceptances
    upper: Acceptances


def propose(key: PRNGKeyArray, log_p: DraftLogProbs, num_drafts: int) -> Drafts:
    noise = races.exponentials(key, 1, log_p.shape[0])[0]
    return in_order(-races.arrivals(noise, log_p), num_drafts)


def propose_among(
    key: PRNGKeyArray, log_p: DraftLogProbs, num_drafts: int, tokens: Tokens
) -> Drafts:
    noise = races.exponentials_at(key, 1, tokens)[0]
    return tokens[in_order(-races.arrivals(noise, log_p), num_drafts)]


def in_order(scores: Vector, num_drafts: int) -> Drafts:
    """The tokens of the K largest scores; `-inf` is the score of an impossible token.

    Args:
        scores: `[N]`.
        num_drafts: `K`, static.

    Returns:
        `i32[K]`, ties by index. Fewer than K possible tokens: the rest of the list repeats the
        first.
    """
    _, tokens = jax.lax.top_k(scores, min(num_drafts, scores.shape[0]))
    # Without the barrier XLA merges `tokens[0]` into the top-k, and then sorts everything.
    tokens = jax.lax.optimization_barrier(tokens)
    tokens = jnp.where(jnp.isfinite(scores[tokens]), tokens, tokens[0])
    return jnp.concatenate([tokens, jnp.full(num_drafts - tokens.shape[0], tokens[0])])


def accepted(
    key: PRNGKeyArray, log_p: DraftLogProbs, log_q: Vector, num_drafts: int
) -> AcceptedByLength:
    """One trial for every list length: the rank of the target's token in the race under `p`."""
    noise = races.exponentials(key, 1, log_q.shape[0])[0]
    token = races.winner(races.arrivals(noise, log_q))
    arrivals = races.arrivals(noise, log_p)
    rank = jnp.sum(arrivals < arrivals[token])
    return (rank < jnp.arange(1, num_drafts + 1)) & jnp.isfinite(arrivals[token])


class _TailState(NamedTuple):
    """The distinct tokens that have arrived before the target's in a trial by inversion."""

    step: IntScalar  # number of the next arrival from the tail
    level: Scalar  # its time, in arrivals expected from the tail
    rank: IntScalar  # distinct tokens so far
    seen: Drafts  # those from the tail, at the rank that each had; -1 elsewhere


def inversion_trial(log_p: DraftLogProbs, log_q: Vector, num_drafts: int) -> Trial:
    """The same trial by inversion: count the distinct tokens that arrive before the target's.

    The heaviest draft tokens have one exponential each. Without that, a distribution that is
    nearly a point mass would take ever more arrivals until K distinct tokens are found. The tokens
    of the tail arrive one by one, by inversion.
    """
    num_categories = log_p.shape[0]
    ranked = ratio_order(log_p, log_q)
    head_size = min(num_categories, max(_TRIAL_HEAD_SIZE, 2 * num_drafts))
    head_p, head = jax.lax.top_k(ranked.p, head_size)
    tail_p = ranked.p.at[head].set(0)
    q_table = inversion.weight_table(ranked.q)
    tail_table = inversion.weight_table(tail_p)
    excess = inversion.searchable_excess(tail_table, ranked.ratio)

    def trial(key):
        # The target's token, its time theta, and the tokens of the head that come before it.
        noise = races.exponentials(key, 1, head_size + 3)[0]
        theta = noise[0]
        u, v = -jnp.expm1(-noise[1:3])
        token = inversion.draw_index(q_table, num_categories, u, v)
        time_ahead = theta * jnp.maximum(ranked.ratio[token] - ranked.ratio[head], 0)
        head_rank = jnp.sum(noise[3:] < head_p * time_ahead, dtype=jnp.int32)

        def comes_before(state: _TailState):
            return (state.rank < num_drafts) & (theta * excess[token] > state.level)

        def arrive(state: _TailState) -> _TailState:
            noise = races.exponentials(races.stream_key(key, state.step), 1, 3)[0]
            u, v = -jnp.expm1(-noise[1:])
            # The arrival is one of the tokens whose races have begun by this time.
            num_begun = search(excess, state.level / theta)
            arrival = inversion.draw_index(tail_table, num_begun, u, v)
            is_new = jnp.all(state.seen != arrival)
            # If it is not new, writing it once more changes nothing.
            seen = jnp.where(jnp.arange(num_drafts) == state.rank, arrival, state.seen)
            return _TailState(
                step=state.step + 1,
                level=state.level + noise[0],
                rank=state.rank + is_new.astype(state.rank.dtype),
                seen=seen,
            )

        start = _TailState(
            step=jnp.int32(2),
            level=races.exponentials(races.stream_key(key, 1), 1, 1)[0, 0],
            rank=head_rank,
            seen=jnp.full(num_drafts, -1, jnp.int32),
        )
        start = varying_like(start, key, ranked)
        end = jax.lax.while_loop(comes_before, arrive, start)
        return (end.rank < jnp.arange(1, num_drafts + 1)) & (ranked.p[token] > 0)

    return trial


def acceptance(log_p: DraftLogProbs, log_q: Vector, num_drafts: tuple[int, ...]) -> Acceptances:
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
    num_categories = ranked.p.shape[0]
    # A target token that cannot be drafted is never matched.
    matchable_q = jnp.where(ranked.p > 0, ranked.q, 0)
    if num_categories <= MAX_EXACT_CATEGORIES:
        every_index = jnp.arange(num_categories)
        match, _ = _match_at(ranked, every_index, num_categories, num_drafts)
        value = jnp.sum(matchable_q[:, None] * match, axis=0)
        return Interval(value, value, value)

    # A grid that cuts the target's mass into equal parts. A token heavier than a part is in the
    # grid, and so is the one before it.
    cumulative_q = jnp.cumsum(matchable_q)
    middles = jnp.arange(_NUM_CUTS, dtype=cumulative_q.dtype) + 0.5
    cuts = middles / _NUM_CUTS * cumulative_q[-1]
    last = num_categories - 1
    grid = jnp.minimum(search(cumulative_q, cuts), last)
    grid_before = jnp.maximum(grid - 1, 0)
    grid = jnp.sort(jnp.concatenate([jnp.array([0, last]), grid, grid_before]))
    lower, upper = _match_at(ranked, grid, HEAD_SIZE, num_drafts)

    # F decreases, so its value for a token is between those at the neighbouring grid indices.
    tokens = jnp.arange(num_categories)
    before = search(grid, tokens, side="right") - 1
    after = search(grid, tokens, side="left")
    weights = matchable_q[:, None]
    return Interval(
        lower=jnp.sum(weights * lower[after], axis=0),
        upper=jnp.sum(weights * upper[before], axis=0),
        estimate=jnp.sum(weights * (lower[before] + lower[after]), axis=0) / 2,
    )


def sampled_acceptance(
    uniform: Scalar, log_p: DraftLogProbs, log_q: Vector, num_drafts: int
) -> Scalar:
    """The probability that the list has the target's token, for one token drawn from the target.

    It is a cheap, random stand-in for the acceptance in a loss. The 24 heaviest draft tokens are
    exact Bernoulli variables. All other tokens are one Poisson count, as in the lower end of
    :func:`acceptance_interval`. So the mean over `uniform` is the acceptance if there are at most
    24 tokens, and a little less if there are more. The same holds for the gradient by `log_p`. Do
    not use the gradient by `log_q`: the drawn token depends on it.

    Args:
        uniform: within [0, 1), from which the token is drawn.
        log_p, log_q: `[N]`.
        num_drafts: `K`, static.
    """
    ranked = ratio_order(log_p, log_q)
    cumulative_q = jax.lax.stop_gradient(nondecreasing_sum(ranked.q))
    index = search(cumulative_q, uniform * cumulative_q[-1], side="right")
    index = jnp.minimum(index, ranked.q.shape[0] - 1)
    head_size = min(_SAMPLED_HEAD_SIZE, ranked.p.shape[0])
    match, _ = _match_at(ranked, index[None], head_size, (num_drafts,))
    return jnp.where(ranked.p[index] > 0, match[0, 0], 0)


def _match_at(
    ranked: RatioOrder, indices: Int[Array, " T"], head_size: int, num_drafts: tuple[int, ...]
) -> tuple[Float[Array, "T C"], Float[Array, "T C"]]:
    """Both ends of `F` at indices in ratio order; equal if the head has every token."""
    most_drafts = max(num_drafts)
    theta, (weights,) = exponential_nodes((1,), ranked.p.dtype)  # both [n]
    ratio = ranked.ratio[indices]
    _, head = jax.lax.top_k(ranked.p, head_size)
    tail_p = ranked.p.at[head].set(0)
    has_tail = head_size < ranked.p.shape[0]

    # Tokens of the tail that come before the token of an index: a Poisson count, `[T, n, K]`.
    if has_tail:
        tail_rates = _tail_excess(ranked, tail_p)[indices, None] * theta
        tail_counts = jnp.moveaxis(poisson_counts(tail_rates, most_drafts - 1), 0, -1)
    else:
        none = jnp.zeros((len(indices), len(theta), most_drafts), ratio.dtype)
        tail_counts = none.at[..., 0].set(1)

    # Then those of the head, one Bernoulli variable after the other.
    shape = work_shape.current()
    group_size = min(shape.list_tokens, head_size)
    add_head = partial(_add_head, group_size, theta, (ranked.p[head], ranked.ratio[head]))
    indices_per_step = shape.indices_at_once(len(theta) * most_drafts)
    counts = map_in_batches(add_head, (tail_counts, ratio), indices_per_step)

    # The token is in the list if at most K - 1 others come before it.
    in_list = jnp.cumsum(counts, axis=-1)[..., jnp.asarray(num_drafts) - 1]  # [T, n, C]
    lower = jnp.einsum("tnc,n->tc", in_list, weights, precision="highest")
    if not has_tail:
        return lower, lower

    # Le Cam, in relative form. As lambda_i <= p_i r theta, the squares add up to at most the
    # largest times the sum; squares of the p_i themselves would underflow.
    scale = ratio[:, None] * theta
    largest_p, total_p = jax.lax.cummax(tail_p), jnp.cumsum(tail_p)
    largest = jnp.minimum(largest_p[indices, None] * scale, 50)
    total = jnp.minimum(total_p[indices, None] * scale, 50)
    s = 0.5 * largest * total * jnp.exp(largest)
    ceiling = in_list / jnp.maximum(1 - s, 1e-6)[..., None]
    ceiling = jnp.where((s < 1)[..., None], ceiling, 1)
    # At a fixed index the probability decreases in theta, and so may its bound.
    ceiling = jax.lax.cummin(jnp.minimum(ceiling, 1), axis=1)
    return lower, jnp.einsum("tnc,n->tc", ceiling, weights, precision="highest")


# Of two nested checkpoints this one keeps nothing of a group for the gradient, and the one inside
# nothing of a token.
@partial(jax.checkpoint, static_argnums=0)
def _add_head(
    group_size: int,
    theta: Float[Array, " n"],
    head: tuple[Vector, Vector],
    tail_counts_and_ratio: tuple[Float[Array, "n K"], Scalar],
) -> Float[Array, "n K"]:
    """The tokens of the head that come before the token of an index, added to those of the tail.

    Args:
        group_size: tokens added in one step.
        theta: arrival times of the target's token.
        head: probability and ratio of each token of the head.
        tail_counts_and_ratio: the distribution of the tail's count at each `theta`, and the ratio
            of the index.
    """
    counts, index_ratio = tail_counts_and_ratio
    # Tokens of probability 0 fill up the last group.
    missing = -head[0].shape[0] % group_size
    groups = jax.tree.map(
        lambda values: jnp.pad(values, (0, missing)).reshape(-1, group_size), head
    )

    @jax.checkpoint
    def add_group(counts, group):
        for token_p, token_ratio in zip(*group, strict=True):
            time_ahead = jnp.maximum(index_ratio - token_ratio, 0)
            comes_before = -jnp.expm1(-theta * (token_p * time_ahead))
            counts = add_bernoulli_to_arrays(counts, comes_before)
        return counts, None

    # One array for each count: XLA then makes one kernel of a group.
    start = varying_like(tuple(counts.T), counts, index_ratio, groups)
    all_counts, _ = jax.lax.scan(add_group, start, groups)
    return jnp.stack(all_counts, axis=-1)


def _tail_excess(ranked: RatioOrder, tail_p: Vector) -> Vector:
    """Total rate of the tail at every index in ratio order, divided by theta.

    It is a sum of non-negative terms.
    """
    rises = jnp.cumsum(tail_p)[:-1] * jnp.diff(ranked.ratio)
    return jnp.concatenate([jnp.zeros(1, tail_p.dtype), jnp.cumsum(rises)])


def kernel(log_p: Vector, log_q: Vector, num_drafts: int) -> Kernel:
    p = races.weights(log_p)
    q = races.weights(log_q)
    theta, (weights,) = exponential_nodes((1,), log_q.dtype, step=KERNEL_STEP)

    # How many of the others come before y, which is category 0, at every theta.
    y_ratio = q[0] / jnp.maximum(p[0], 1e-30)
    rates = jnp.maximum(p[1:] * y_ratio - q[1:], 0)
    comes_before = -jnp.expm1(-theta * rates[:, None])  # [others, n]

    def add_token(counts, probability):
        return add_bernoulli(counts, probability), None

    none_before = jnp.zeros((num_drafts, len(theta)), p.dtype).at[0].set(1)
    counts, _ = jax.lax.scan(add_token, none_before, comes_before)
    # P(y is among the first 1, 2, ..., K tokens of the race).
    in_list = jnp.where(p[0] > 0, jnp.cumsum(counts @ weights), 0)

    # Fewer possible tokens than drafts: the rest of the list repeats the first, and so y is drafted
    # several times if it is the first.
    num_active = jnp.arange(1, num_drafts + 1)
    repeats = jnp.maximum(num_active - jnp.sum(p > 0), 0)
    kernel = jnp.zeros((num_drafts + 1, num_drafts + 1), p.dtype).at[0, 0].set(1)
    kernel = kernel.at[num_active, 0].set(1 - in_list)
    kernel = kernel.at[num_active, 1].add(in_list - in_list[0])
    return kernel.at[num_active, 1 + repeats].add(in_list[0])


SCHEME = Scheme(
    name="gumbel_topk",
    invariance="strong",
    max_drafts=None,
    needs_draft_probs=False,
    diverse=False,
    ranked=True,
    propose_fn=propose,
    propose_among_fn=propose_among,
    verification=TokenVerification(verify),
    exact=ExactAcceptance(acceptance, bound=bounds.list_matching, kernel=kernel),
    trials=Trials(accepted, inversion=inversion_trial),
)
