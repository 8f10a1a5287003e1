"""Weighted importance sampling with a truncated linear program.

Source: Khisti et al. 2025, arXiv 2410.18234, section 5.

One draft of the list is selected. Then `q` is sampled by the maximal coupling with `r`, the
distribution of the selected draft (:mod:`gls_jax.decomposition`).

**A comparison** selects one of two drafts. Tokens are ranked in decreasing order of ``q - p1 p2``
(the code sorts ``p1 p2 - q`` ascending): tokens that the two drafts cover least come first. Of two
tokens ``i != j`` the better ranked is selected, except if both are among the first `s` ranks (5 by
default), which are *free*. There a linear program divides the mass ``p1_i p2_j + p1_j p2_i``
between `i` and `j` so that ``sum_i min(q_i, r_i)`` is largest. It is a maximum flow from the tokens
with too much mass to those with too little (:mod:`gls_jax.schemes.max_flow`).

**A list of K** is a tournament: compare adjacent drafts, then the winners; an unpaired draft
advances. The distribution of a winner is the `r` of its comparison, and the winner of the last
comparison is the selected draft. Drafts may have different distributions; the drafter must supply
them. Verification takes ``K - 1`` sorts.

If the selected draft is rejected, the token that replaces it may be another draft of the list,
which counts as accepted too. The exact acceptance therefore needs the probability that each token
is absent from the list, which takes `O(K N^2)` time. For a flat distribution with more tokens than
free ranks the selected draft is a poor one, and even ``p = q`` is not always accepted. Nor does the
acceptance always grow with K, because the tournaments differ in shape. It is kept for comparison
with the paper: :mod:`gls_jax.schemes.optimal` is never below it and takes one sort.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import checks, races, work_shape
from gls_jax.exact.ratio_order import ascending, index_in
from gls_jax.loops import map_in_batches
from gls_jax.rejection import maximal_coupling, residual
from gls_jax.schemes.array_types import (
    Acceptances,
    Active,
    DraftLogProbs,
    Drafts,
    IntScalar,
    Scalar,
    Token,
    Vector,
)
from gls_jax.schemes.function_types import ExactAcceptance, TokenVerification
from gls_jax.schemes.gls import propose  # K independent races
from gls_jax.schemes.max_flow import PairMass, balance
from gls_jax.schemes.scheme import Scheme

__all__ = ["SCHEME", "acceptance", "propose", "truncated_at", "verify"]

_MAX_FREE_RANKS = 15
_MAX_EXACT_CATEGORIES = 4096
_NEGLIGIBLE = 1e-18  # smaller masses are treated as 0; squaring them in the gradient underflows


class _Entrants(NamedTuple):
    """The drafts that are still in the tournament, `k` of them."""

    tokens: Int[Array, " k"]
    p: Float[Array, "k N"]
    is_active: Bool[Array, " k"]


def verify(
    key: PRNGKeyArray,
    drafts: Drafts,
    log_p: DraftLogProbs,
    log_q: Vector,
    active: Active,
    *,
    num_free_ranks: int = 5,
) -> Token:
    """Select one active draft by the tournament, and accept it or replace it."""
    q = races.weights(log_q)
    p = jnp.broadcast_to(races.weights(log_p), (drafts.shape[0], q.shape[0]))
    selection_key, test_key = races.split_key(races.private_key(key))
    uniforms = races.uniforms(selection_key, drafts.shape[0])  # one per comparison, one unused

    entrants = _Entrants(drafts, p, active)
    select = jax.vmap(partial(_select_one_of_two, q=q, num_free_ranks=num_free_ranks))
    while entrants.tokens.shape[0] > 1:
        # Adjacent entrants are compared. An unpaired one goes after the winners.
        num_comparisons = entrants.tokens.shape[0] // 2
        first = _take(entrants, slice(0, 2 * num_comparisons, 2))
        second = _take(entrants, slice(1, 2 * num_comparisons, 2))
        unpaired = _take(entrants, slice(2 * num_comparisons, None))
        winners = select(first, second, uniforms[:num_comparisons])
        uniforms = uniforms[num_comparisons:]
        entrants = jax.tree.map(lambda *parts: jnp.concatenate(parts), winners, unpaired)
    selected = _take(entrants, 0)
    return maximal_coupling(test_key, selected.tokens, selected.p, log_q, selected.is_active)


def _take(entrants: _Entrants, which: int | slice) -> _Entrants:
    return jax.tree.map(lambda field: field[which], entrants)


def _select_one_of_two(
    first: _Entrants, second: _Entrants, uniform: Scalar, q: Vector, num_free_ranks: int
) -> _Entrants:
    """The winner of one comparison, as an entrant; a draft that is not active loses."""
    comparison = compare(first.p, second.p, q, num_free_ranks)
    rank_of = index_in(comparison.order)
    win_prob = win_probability(comparison.win_probs, rank_of[first.tokens], rank_of[second.tokens])
    first_loses = second.is_active & (uniform >= win_prob)
    first_wins = first.is_active & ~first_loses
    p_if_only_one_is_active = jnp.where(first.is_active, first.p, second.p)
    both_active = first.is_active & second.is_active
    return _Entrants(
        tokens=jnp.where(first_wins, first.tokens, second.tokens),
        p=jnp.where(both_active, comparison.selected_p, p_if_only_one_is_active),
        is_active=first.is_active | second.is_active,
    )


class Comparison(NamedTuple):
    """The rule that selects one of two drafts.

    Attributes:
        order: token at each rank, `[N]`.
        win_probs: `[s, s]`, probability that rank i is selected over rank j, among the free ranks.
        selected_p: distribution of the selected draft, by token, `[N]`.
    """

    order: Int[Array, " N"]
    win_probs: PairMass
    selected_p: Vector


def compare(first_p: Vector, second_p: Vector, q: Vector, num_free_ranks: int) -> Comparison:
    """The comparison of two drafts with these distributions."""
    num_free_ranks = min(num_free_ranks, q.shape[0])
    surplus = jax.lax.stop_gradient(first_p * second_p - q)
    # `verify` and `acceptance` are compiled separately, with other rounding, and must rank alike.
    # With 14 bits of mantissa near ties become ties, which go by index.
    order = ascending(jax.lax.reduce_precision(surplus, exponent_bits=8, mantissa_bits=14))
    selected_p, pair_mass = _select_better_ranked(first_p[order], second_p[order], num_free_ranks)

    # [i, j]: the mass of tokens i and j that i receives, at first all of it for the better rank.
    better_ranked_mass = jnp.triu(pair_mass, 1)
    # Among the free ranks mass moves from tokens with more than q to tokens with less.
    excess = selected_p[:num_free_ranks] - q[order][:num_free_ranks]
    received_mass = balance(better_ranked_mass, excess)
    moved_mass = jnp.sum(received_mass - better_ranked_mass, axis=1)
    selected_p = selected_p.at[:num_free_ranks].add(moved_mass)

    is_divisible = pair_mass > _NEGLIGIBLE
    received_fraction = received_mass / jnp.where(is_divisible, pair_mass, 1)
    is_better = jnp.triu(jnp.ones((num_free_ranks, num_free_ranks), received_mass.dtype), 1)
    return Comparison(
        order=order,
        win_probs=jnp.where(is_divisible, received_fraction, is_better),
        selected_p=jnp.zeros_like(selected_p).at[order].set(selected_p),
    )


def _select_better_ranked(
    first_p: Vector, second_p: Vector, num_free_ranks: int
) -> tuple[Vector, PairMass]:
    """The distribution of the better ranked of two drafts, and the mass of every two free tokens.

    `first_p` and `second_p` are weights by rank, not necessarily normalised.
    """
    first_worse = _sums_of_worse_ranks(first_p)
    second_worse = _sums_of_worse_ranks(second_p)
    better_p = first_p * second_p + first_p * second_worse + second_p * first_worse
    pair_mass = first_p[:num_free_ranks, None] * second_p[None, :num_free_ranks]
    return better_p, pair_mass + pair_mass.T


def _sums_of_worse_ranks(values: Vector) -> Vector:
    return jnp.append(jnp.cumsum(values[::-1])[::-1][1:], 0)


def win_probability(win_probs: PairMass, i: IntScalar, j: IntScalar) -> Scalar:
    """Probability that the draft of rank `i` is selected over that of rank `j`."""
    num_free_ranks = win_probs.shape[0]
    last_free = num_free_ranks - 1
    by_program = win_probs[jnp.minimum(i, last_free), jnp.minimum(j, last_free)]
    by_rank = (i <= j).astype(win_probs.dtype)
    are_free = (i < num_free_ranks) & (j < num_free_ranks)
    return jnp.where(are_free & (i != j), by_program, by_rank)


def acceptance(
    log_p: DraftLogProbs,
    log_q: Vector,
    num_drafts: tuple[int, ...],
    *,
    num_free_ranks: int = 5,
) -> Acceptances:
    """Exact acceptance for each list length, in `O(K N^2)` time."""
    p = races.weights(log_p)
    q = races.weights(log_q)
    is_shared = p.ndim == 1

    @cache  # drafts that share one distribution have one subtree for each size
    def subtree(start: int, size: int) -> _Subtree:
        if size == 1:
            return _Subtree(p if is_shared else p[start])
        # The first part is the larger one. Its size is a power of two, as in `verify`.
        first_size = 1 << ((size - 1).bit_length() - 1)
        first = subtree(start, first_size)
        second = subtree(0 if is_shared else start + first_size, size - first_size)
        comparison = compare(first.winner_p, second.winner_p, q, num_free_ranks)
        return _Subtree(comparison.selected_p, last=(comparison, first, second))

    return jnp.stack([_acceptance(subtree(0, k), q) for k in num_drafts])


@dataclasses.dataclass(frozen=True, eq=False)
class _Subtree:
    """The tournament of some adjacent drafts. Two are equal only if they are the same object.

    Attributes:
        winner_p: distribution of its winner, `[N]`.
        last: its last comparison and the subtrees of the two sides; None for a single draft.
    """

    winner_p: Vector
    last: tuple[Comparison, _Subtree, _Subtree] | None = None


def _acceptance(tree: _Subtree, q: Vector) -> Scalar:
    replacement_accepted = 0 if tree.last is None else _replacement_accepted(tree, q)
    return jnp.sum(jnp.minimum(q, tree.winner_p)) + replacement_accepted


def _replacement_accepted(tree: _Subtree, q: Vector) -> Scalar:
    """P(the selected draft is rejected, and its replacement is another draft of the list)."""
    selected_p = tree.winner_p
    residual_q, residual_mass = residual(q, selected_p)
    has_excess = selected_p > jnp.maximum(q, _NEGLIGIBLE)
    accept_prob = q / jnp.where(has_excess, selected_p, 1)
    # Of the selected draft, by its token.
    reject_prob = jnp.where(has_excess, 1 - accept_prob, 0)

    def rejected_without(token):
        """P(the selected draft is rejected, and the token is not in the list)."""
        return jnp.sum(reject_prob * _selected_and_absent(tree, token))

    num_categories = q.shape[0]
    tokens_at_once = work_shape.current().rows_at_once(num_categories)
    tokens = jnp.arange(num_categories)
    rejected_and_absent = map_in_batches(rejected_without, tokens, tokens_at_once)

    # The replacement is a sample of the residual, whichever token was rejected.
    rejected = jnp.sum(reject_prob * selected_p)
    rejected_and_listed = jnp.maximum(rejected - rejected_and_absent, 0)
    has_residual = residual_mass > _NEGLIGIBLE
    return jnp.sum(residual_q * rejected_and_listed) / jnp.where(has_residual, residual_mass, 1)


def _selected_and_absent(tree: _Subtree, token: IntScalar) -> Vector:
    """``P(token i is selected, and no draft is `token`)`` for every `i`.

    The comparisons follow the same rules, with the token's mass removed from every draft.
    """

    @cache
    def without_token(subtree: _Subtree) -> Vector:
        if subtree.last is None:
            return subtree.winner_p.at[token].set(0)
        comparison, first, second = subtree.last
        return _selection_distribution(comparison, without_token(first), without_token(second))

    return without_token(tree)


def _selection_distribution(comparison: Comparison, first_p: Vector, second_p: Vector) -> Vector:
    """The distribution of the selected draft under the rule, for other weights of the two."""
    order = comparison.order
    num_free_ranks = comparison.win_probs.shape[0]
    selected_p, pair_mass = _select_better_ranked(first_p[order], second_p[order], num_free_ranks)
    is_same = jnp.eye(num_free_ranks, dtype=bool)
    received_mass = jnp.where(is_same, 0, comparison.win_probs * pair_mass)
    moved_mass = jnp.sum(received_mass - jnp.triu(pair_mass, 1), axis=1)
    selected_p = selected_p.at[:num_free_ranks].add(moved_mass)
    return jnp.zeros_like(selected_p).at[order].set(selected_p)


@dataclasses.dataclass(frozen=True)
class _Truncated:
    """A partial application that, unlike `functools.partial`, compares equal after pickling."""

    function: Callable
    num_free_ranks: int

    def __call__(self, *arguments):
        return self.function(*arguments, num_free_ranks=self.num_free_ranks)


@cache
def truncated_at(num_free_ranks: int) -> Scheme:
    """The scheme with another number of free ranks.

    Args:
        num_free_ranks: `s`, 1 to 15.

    Raises:
        ValueError: `num_free_ranks` is not within 1..15.

    >>> from gls_jax.schemes import weighted_importance
    >>> weighted_importance.truncated_at(8).name
    'weighted_importance_8'
    """
    num_free_ranks = checks.count(num_free_ranks, "num_free_ranks")
    if num_free_ranks > _MAX_FREE_RANKS:
        raise ValueError(
            f"num_free_ranks: expected an int within 1..{_MAX_FREE_RANKS}, got {num_free_ranks}"
        )
    return dataclasses.replace(
        SCHEME,
        name=f"weighted_importance_{num_free_ranks}",
        verification=TokenVerification(_Truncated(verify, num_free_ranks)),
        exact=ExactAcceptance(_Truncated(acceptance, num_free_ranks), limit=acceptance_limit),
    )


def acceptance_limit(num_categories: int, num_drafts: int) -> str | None:
    if num_categories <= _MAX_EXACT_CATEGORIES:
        return None
    return (
        "log_q: the exact acceptance of scheme 'weighted_importance' takes O(K N^2) time, "
        f"expected at most {_MAX_EXACT_CATEGORIES} categories, got {num_categories}; "
        "trials.acceptance simulates it at any size"
    )


SCHEME = Scheme(
    name="weighted_importance",
    invariance="none",
    max_drafts=None,
    needs_draft_probs=True,
    diverse=True,
    ranked=False,
    propose_fn=propose,
    verification=TokenVerification(verify),
    exact=ExactAcceptance(acceptance, limit=acceptance_limit),
)
