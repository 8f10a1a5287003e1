"""Weighted importance sampling with a truncated linear program.

Source: Khisti et al. 2025, arXiv 2410.18234, section 5.

One draft of the list is chosen, and then `q` is sampled speculatively against the distribution `r`
of the chosen one (:mod:`gls_jax.decomposition`).

**A match** chooses one of two drafts ``i != j``. Tokens are ranked by ``q - p1 p2``: first those
that the pair lacks most. The better ranked draft is chosen, except among the `s` first ranks (5 by
default), which are *free*: there a linear program divides the mass ``m_ij = p1_i p2_j + p1_j p2_i``
of each pair between `i` and `j` so that ``sum_i min(q_i, r_i)`` is largest. The program is a
maximum flow from the tokens with too much mass to those with too little
(:mod:`gls_jax.schemes.max_flow`).

**A list of K** is a tournament: neighbours meet, then their champions, and an odd one out waits.
The distribution of a champion is the `r` of its match. Drafts may have different distributions; the
drafter must supply them. Verification takes ``K - 1`` sorts.

If the champion is rejected, the token that replaces it may be another draft of the list, which
counts as accepted too. The exact acceptance needs the probability of each token to be absent from
the list, `O(K N^2)`. For a flat distribution with more tokens than free ranks the choice is poor,
and even `p = q` is not always accepted. Nor does the acceptance always grow with K, because the
tournaments differ in shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import checks, races
from gls_jax.exact.ratio_order import ascending
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
from gls_jax.schemes.gls import propose  # K independent races
from gls_jax.schemes.max_flow import PairMass, balance
from gls_jax.schemes.scheme import ExactAcceptance, Scheme, TokenVerification

__all__ = ["SCHEME", "acceptance", "propose", "truncated_at", "verify"]

_MOST_FREE = 15
_MOST_EXACT = 4096
_CHUNK = 2**18  # numbers held at a time by the exact acceptance
_NEGLIGIBLE = 1e-18  # lighter masses decide nothing, and their squares leave float32 in a gradient


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
    free: int = 5,
) -> Token:
    q = races.weights(log_q)
    p = jnp.broadcast_to(races.weights(log_p), (drafts.shape[0], q.shape[0]))
    choice_key, test_key = races.split_key(races.private_key(key))
    uniforms = races.uniforms(choice_key, drafts.shape[0])  # one a match, and one to spare

    entrants = _Entrants(drafts, p, active)
    meet = jax.vmap(partial(_meet, q=q, free=free))
    while entrants.tokens.shape[0] > 1:
        # Neighbours meet; an odd one out waits behind the winners.
        num_pairs = entrants.tokens.shape[0] // 2
        first = _take(entrants, slice(0, 2 * num_pairs, 2))
        second = _take(entrants, slice(1, 2 * num_pairs, 2))
        odd_one = _take(entrants, slice(2 * num_pairs, None))
        won = meet(first, second, uniforms[:num_pairs])
        uniforms = uniforms[num_pairs:]
        entrants = jax.tree.map(lambda *parts: jnp.concatenate(parts), won, odd_one)
    champion = _take(entrants, 0)
    return maximal_coupling(test_key, champion.tokens, champion.p, log_q, champion.is_active)


def _take(entrants: _Entrants, which: int | slice) -> _Entrants:
    return jax.tree.map(lambda field: field[which], entrants)


def _meet(first: _Entrants, second: _Entrants, uniform: Scalar, q: Vector, free: int):
    """The winner of one match, as an entrant; a draft that is not active loses."""
    match = match_of(first.p, second.p, q, free)
    ranks = jnp.arange(match.order.shape[0], dtype=jnp.int32)
    rank_of = jnp.zeros_like(match.order).at[match.order].set(ranks)
    chance = win_probability(match.wins, rank_of[first.tokens], rank_of[second.tokens])
    first_loses = second.is_active & (uniform >= chance)
    first_stays = first.is_active & ~first_loses
    without_match = jnp.where(first.is_active, first.p, second.p)
    return _Entrants(
        tokens=jnp.where(first_stays, first.tokens, second.tokens),
        p=jnp.where(first.is_active & second.is_active, match.chosen_p, without_match),
        is_active=first.is_active | second.is_active,
    )


class Match(NamedTuple):
    """How one of two drafts is chosen.

    Attributes:
        order: token at each rank, `[N]`.
        wins: `[s, s]`, probability that rank i is chosen over rank j, among the free ranks.
        chosen_p: distribution of the chosen draft, by token, `[N]`.
    """

    order: Int[Array, " N"]
    wins: PairMass
    chosen_p: Vector


def match_of(first_p: Vector, second_p: Vector, q: Vector, free: int) -> Match:
    """The match of two drafts with these distributions."""
    free = min(free, q.shape[0])
    # Ties go by index, not by rounding: `verify` and `acceptance` are compiled separately, and must
    # rank alike.
    surplus = jax.lax.stop_gradient(first_p * second_p - q)
    order = ascending(jax.lax.reduce_precision(surplus, exponent_bits=8, mantissa_bits=14))
    chosen_p, pair_mass = _choose_better_ranked(first_p[order], second_p[order], free)

    # Among the free ranks mass moves from tokens with more than q to tokens with less.
    start = jnp.triu(pair_mass, 1)  # [i, j]: mass of the pair that i holds
    held = balance(start, chosen_p[:free] - q[order][:free])
    chosen_p = chosen_p.at[:free].add(jnp.sum(held - start, axis=1))

    has_mass = pair_mass > _NEGLIGIBLE
    share = held / jnp.where(has_mass, pair_mass, 1)
    better_ranked = jnp.triu(jnp.ones((free, free), held.dtype), 1)
    wins = jnp.where(has_mass, share, better_ranked)
    return Match(order, wins, jnp.zeros_like(chosen_p).at[order].set(chosen_p))


def _choose_better_ranked(a: Vector, b: Vector, free: int) -> tuple[Vector, PairMass]:
    """The distribution of the better ranked of two drafts, and the mass of the free pairs.

    Args:
        a, b: weights of the two drafts by rank, not necessarily normalised.
        free: number of free ranks.
    """
    worse_a, worse_b = _sums_behind(a), _sums_behind(b)
    pair_mass = a[:free, None] * b[None, :free]
    return a * b + a * worse_b + b * worse_a, pair_mass + pair_mass.T


def _sums_behind(values: Vector) -> Vector:
    return jnp.append(jnp.cumsum(values[::-1])[::-1][1:], 0)


def win_probability(wins: PairMass, i: IntScalar, j: IntScalar) -> Scalar:
    """Probability that the draft of rank `i` is chosen over that of rank `j`."""
    free = wins.shape[0]
    by_program = wins[jnp.minimum(i, free - 1), jnp.minimum(j, free - 1)]
    by_rank = (i <= j).astype(wins.dtype)
    return jnp.where((i < free) & (j < free) & (i != j), by_program, by_rank)


def acceptance(
    log_p: DraftLogProbs,
    log_q: Vector,
    num_drafts: tuple[int, ...],
    *,
    free: int = 5,
) -> Acceptances:
    p = races.weights(log_p)
    q = races.weights(log_q)
    is_shared = p.ndim == 1

    @cache  # drafts with one distribution have one bracket for each size
    def bracket(start: int, size: int) -> _Bracket:
        if size == 1:
            return _Bracket(p if is_shared else p[start])
        # The larger half is a power of two, as in `verify`.
        first_size = 1 << (size - 1).bit_length() - 1
        first = bracket(start, first_size)
        second = bracket(0 if is_shared else start + first_size, size - first_size)
        match = match_of(first.champion_p, second.champion_p, q, free)
        return _Bracket(match.chosen_p, last=(match, first, second))

    return jnp.stack([_acceptance(bracket(0, k), q) for k in num_drafts])


@dataclasses.dataclass(frozen=True, eq=False)
class _Bracket:
    """The tournament of some neighbouring drafts, compared by identity.

    Attributes:
        champion_p: distribution of its champion, `[N]`.
        last: its last match and the tournaments of the two sides; None for a single draft.
    """

    champion_p: Vector
    last: tuple[Match, _Bracket, _Bracket] | None = None


def _acceptance(bracket: _Bracket, q: Vector) -> Scalar:
    replaced = 0 if bracket.last is None else _replaced(bracket, q)
    return jnp.sum(jnp.minimum(q, bracket.champion_p)) + replaced


def _replaced(bracket: _Bracket, q: Vector) -> Scalar:
    """P(the champion is rejected, and the token that replaces it is another draft of the list)."""
    champion_p = bracket.champion_p
    left, left_mass = residual(q, champion_p)
    has_excess = champion_p > jnp.maximum(q, _NEGLIGIBLE)
    kept_share = q / jnp.where(has_excess, champion_p, 1)
    reject_prob = jnp.where(has_excess, 1 - kept_share, 0)  # of the champion, by its token

    def rejected_without(token):
        """P(the champion is rejected, and the token is not in the list)."""
        return jnp.sum(reject_prob * _champion_without(bracket, token))

    num_categories = q.shape[0]
    batch_size = max(1, min(num_categories, _CHUNK // num_categories))
    tokens = jnp.arange(num_categories)
    rejected_and_absent = jax.lax.map(rejected_without, tokens, batch_size=batch_size)

    # Whatever the rejected champion, its replacement is a sample of the residual.
    rejected = jnp.sum(reject_prob * champion_p)
    rejected_and_listed = jnp.maximum(rejected - rejected_and_absent, 0)
    has_residual = left_mass > _NEGLIGIBLE
    return jnp.sum(left * rejected_and_listed) / jnp.where(has_residual, left_mass, 1)


def _champion_without(bracket: _Bracket, token: IntScalar) -> Vector:
    """``P(the champion is i, and no draft is the token)`` for every `i`.

    The matches are played by the same rules, with the token's mass taken out.
    """

    @cache
    def without(part: _Bracket) -> Vector:
        if part.last is None:
            return part.champion_p.at[token].set(0)
        match, first, second = part.last
        return _play(match, without(first), without(second))

    return without(bracket)


def _play(match: Match, first: Vector, second: Vector) -> Vector:
    """The distribution of the chosen draft under a match's rule, for other weights of the two."""
    free = match.wins.shape[0]
    chosen, pair_mass = _choose_better_ranked(first[match.order], second[match.order], free)
    is_same = jnp.eye(free, dtype=bool)
    held = jnp.where(is_same, 0, match.wins * pair_mass)
    moved = jnp.sum(held - jnp.triu(pair_mass, 1), axis=1)
    chosen = chosen.at[:free].add(moved)
    return jnp.zeros_like(chosen).at[match.order].set(chosen)


@dataclasses.dataclass(frozen=True)
class _Truncated:
    """A function with its number of free ranks.

    Unlike a `functools.partial` it equals its copy from a pickle.
    """

    function: Callable
    free: int

    def __call__(self, *arguments):
        return self.function(*arguments, free=self.free)


@cache
def truncated_at(free: int) -> Scheme:
    """The scheme with another number of free ranks.

    Args:
        free: 1 to 15.

    Raises:
        ValueError: another number.

    >>> from gls_jax.schemes import weighted_importance
    >>> weighted_importance.truncated_at(8).name
    'weighted_importance_8'
    """
    free = checks.count(free, "free")
    if free > _MOST_FREE:
        raise ValueError(f"free: expected an int within 1..{_MOST_FREE}, got {free}")
    return dataclasses.replace(
        SCHEME,
        name=f"weighted_importance_{free}",
        verification=TokenVerification(_Truncated(verify, free)),
        exact=ExactAcceptance(_Truncated(acceptance, free), limit=acceptance_limit),
    )


def acceptance_limit(num_categories: int, num_drafts: int) -> str | None:
    if num_categories <= _MOST_EXACT:
        return None
    return (
        "log_q: the exact acceptance of scheme 'weighted_importance' takes the time of K N^2, "
        f"expected at most {_MOST_EXACT} categories, got {num_categories}; "
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
