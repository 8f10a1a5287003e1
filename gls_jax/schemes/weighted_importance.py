"""Weighted importance sampling with a truncated program (Khisti et al. 2025, arXiv 2410.18234,
section 5).

One draft of the list is chosen, and then `q` is sampled speculatively against the law `r` of the
chosen one (:mod:`gls_jax.decomposition`). Two drafts ``i != j`` meet like this. Items are ranked by
``q - p1 p2``, what they lack most first; the better ranked one is chosen, except that among the `s`
first ranks (5 by default) the choice is a program: move mass ``m_ij = p1_i p2_j + p1_j p2_i``
between `i` and `j` so that ``sum_i min(q_i, r_i)`` is largest.

The program is a maximum flow from the items with too much mass to those with too little. Edmonds
and Karp's shortest augmenting paths solve it inside `jit` in a fixed number of rounds, exactly up
to rounding: no solver on the host, for which a decoding loop would wait, and it can be
differentiated.

A list of K is a tournament: neighbours meet, their champions meet, an odd one out waits; a
champion's law is the `r` of its match. Drafts may have laws of their own; the drafter must supply
them. Verification is ``K - 1`` sorts. A refused champion may be replaced by another draft of the
list, which counts as accepted too: the exact value looks at each item's absence, `O(K N^2)`. Where
a flat law has more items than the program ranks the choice is poor, and even `p = q` is not always
accepted; nor does acceptance always grow with K, whose tournaments differ in shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import checks, races
from gls_jax.exact.ratio_order import ascending
from gls_jax.loops import varying_like
from gls_jax.rejection import maximal_coupling, residual
from gls_jax.schemes.gls import propose  # K independent races
from gls_jax.schemes.scheme import ExactAcceptance, Scheme, TokenVerification

__all__ = ["SCHEME", "acceptance", "propose", "truncated_at", "verify"]

_MOST_FREE, _MOST_EXACT = 15, 4096
_CHUNK = 2**18  # numbers held at a time by the exact acceptance


class _Match(NamedTuple):
    """How a champion of law `first` meets a draft of law `second`."""

    order: Int[Array, " N"]  # item at each rank
    wins: Float[Array, "s s"]  # chance that rank i is chosen over rank j, among the free ranks
    law: Float[Array, " N"]  # of the chosen one, by item


def verify(
    key: PRNGKeyArray,
    drafts: Int[Array, " K"],
    log_p: Float[Array, "*k N"],
    log_q: Float[Array, " N"],
    active: Bool[Array, " K"],
    *,
    free: int = 5,
) -> Int[Array, ""]:
    q = races.weights(log_q)
    laws = jnp.broadcast_to(races.weights(log_p), (drafts.shape[0], q.shape[0]))
    choice_key, key = races.split_key(races.private_key(key))
    uniforms = races.uniforms(choice_key, drafts.shape[0])  # one a match, and one to spare

    def meet(first, second, uniform):
        (champion, law, has), (x, other, live) = first, second
        match = _match(law, other, q, free)
        rank = (
            jnp.zeros_like(match.order)
            .at[match.order]
            .set(jnp.arange(match.order.shape[0], dtype=jnp.int32))
        )
        stays = has & ~(live & (uniform >= _wins(match.wins, rank[champion], rank[x])))
        after = jnp.where(has & live, match.law, jnp.where(has, law, other))
        return jnp.where(stays, champion, x), after, has | live

    entrants: tuple[Array, ...] = (drafts, laws, active)
    while entrants[0].shape[0] > 1:
        pairs = entrants[0].shape[0] // 2
        first, second = (tuple(x[side : 2 * pairs : 2] for x in entrants) for side in (0, 1))
        won = jax.vmap(meet)(first, second, uniforms[:pairs])
        uniforms = uniforms[pairs:]
        entrants = tuple(
            jnp.concatenate([x, y[2 * pairs :]]) for x, y in zip(won, entrants, strict=True)
        )
    champion, law, has = (x[0] for x in entrants)
    return maximal_coupling(key, champion, law, log_q, has)


def acceptance(
    log_p: Float[Array, "*k N"],
    log_q: Float[Array, " N"],
    num_drafts: tuple[int, ...],
    *,
    free: int = 5,
) -> Float[Array, " C"]:
    p, q = races.weights(log_p), races.weights(log_q)
    alike = p.ndim == 1

    @cache
    def final(start: int, size: int) -> _Match:
        """The last match of the drafts start, ..., start + size - 1."""
        first, second = _halves(start, size, alike)
        return _match(champion(*first), champion(*second), q, free)

    def champion(start: int, size: int):
        return final(start, size).law if size > 1 else p if alike else p[start]

    def one(k: int):
        law = champion(0, k)
        rest, total = residual(q, law)
        over = law > jnp.maximum(q, 1e-18)
        refused = jnp.where(over, 1 - q / jnp.where(over, law, 1), 0)

        def refused_without(item):
            """P(the champion is refused, and the item was not in the list): played with its mass
            taken out.
            """

            @cache
            def absent(start: int, size: int):
                if size == 1:
                    return (p if alike else p[start]).at[item].set(0)
                return _play(
                    final(start, size), *(absent(*half) for half in _halves(start, size, alike))
                )

            return jnp.sum(refused * absent(0, k))

        size = law.shape[0]
        without = jax.lax.map(
            refused_without, jnp.arange(size), batch_size=max(1, min(size, _CHUNK // size))
        )
        short = total > 1e-18
        replaced = jnp.sum(rest * jnp.maximum(jnp.sum(refused * law) - without, 0)) / jnp.where(
            short, total, 1
        )
        return jnp.sum(jnp.minimum(q, law)) + (replaced if k > 1 else 0)

    return jnp.stack([one(k) for k in num_drafts])


@dataclasses.dataclass(frozen=True)
class _Truncated:
    """A function with its number of free ranks: unlike `functools.partial`, equal to its copy from
    a pickle.
    """

    function: Callable
    free: int

    def __call__(self, *arguments):
        return self.function(*arguments, free=self.free)


@cache
def truncated_at(free: int) -> Scheme:
    """The scheme with another number of free ranks, 1 to 15.

    >>> from gls_jax.schemes import weighted_importance
    >>> weighted_importance.truncated_at(8).name
    'weighted_importance_8'
    """
    if (free := checks.count(free, "free")) > _MOST_FREE:
        raise ValueError(f"free: expected an int within 1..{_MOST_FREE}, got {free}")
    return dataclasses.replace(
        SCHEME,
        name=f"weighted_importance_{free}",
        verification=TokenVerification(_Truncated(verify, free)),
        exact=ExactAcceptance(_Truncated(acceptance, free), limit=acceptance_limit),
    )


def acceptance_limit(num_items: int, num_drafts: int) -> str | None:
    """Why the exact value would take too long."""
    if num_items <= _MOST_EXACT:
        return None
    return (
        f"log_q: the exact acceptance of scheme 'weighted_importance' takes the time of K N^2, expected at most "
        f"{_MOST_EXACT} items, got {num_items}; trials.acceptance simulates it at any size"
    )


def _match(first, second, q, free: int) -> _Match:
    free = min(free, q.shape[0])
    # Ties go by index, not by the last bits: `verify` and `acceptance` are compiled apart and must
    # rank alike.
    lack = jax.lax.stop_gradient(first * second - q)
    order = ascending(jax.lax.reduce_precision(lack, exponent_bits=8, mantissa_bits=14))
    law, pair = _better_ranked(first[order], second[order], free)
    start = jnp.triu(pair, 1)  # [i, j]: mass of the pair that i holds
    held = _flow(start, law[:free] - q[order][:free])
    law = law.at[:free].add(jnp.sum(held - start, axis=1))
    meets = (
        pair > 1e-18
    )  # lighter pairs decide nothing, and their squares leave float32 in a gradient
    wins = jnp.where(
        meets, held / jnp.where(meets, pair, 1), jnp.triu(jnp.ones((free, free), held.dtype), 1)
    )
    return _Match(order, wins, jnp.zeros_like(law).at[order].set(law))


def _better_ranked(a, b, free: int) -> tuple[Float[Array, " N"], Float[Array, "s s"]]:
    """By rank, the law of the better ranked one of two drafts; and the mass of the pairs of free
    ranks.
    """
    worse_a, worse_b = (jnp.append(jnp.cumsum(x[::-1])[::-1][1:], 0) for x in (a, b))
    pair = a[:free, None] * b[None, :free]
    return a * b + a * worse_b + b * worse_a, pair + pair.T


def _flow(held: Float[Array, "s s"], excess: Float[Array, " s"]) -> Float[Array, "s s"]:
    """Mass moved from items in excess to items that lack some, along shortest paths of what pairs
    hold.
    """
    size = excess.shape[0]
    if size == 1:
        return held
    far = size + 1

    def augment(carry, _):
        held, excess = carry
        steps = jnp.where(excess < 0, 0, far)
        for _ in range(size - 1):  # distance to the nearest item that lacks mass
            steps = jnp.minimum(
                steps, 1 + jnp.min(jnp.where(held > 0, steps[None, :], far), axis=1)
            )
        start = jnp.argmin(jnp.where(excess > 0, steps, far + 1))
        reached = (excess[start] > 0) & (steps[start] < far)
        path, amount, at = jnp.zeros_like(held), excess[start], start
        for _ in range(size - 1):
            after = jnp.argmin(jnp.where(held[at] > 0, steps, far))
            on = reached & (steps[at] > 0)
            path = path.at[at, after].add(jnp.where(on, 1, 0))
            amount = jnp.where(on, jnp.minimum(amount, held[at, after]), amount)
            at = jnp.where(on, after, at)
        amount = jnp.where(reached, jnp.minimum(amount, -excess[at]), 0)
        held = held + amount * (path.T - path)
        return (held, excess.at[start].add(-amount).at[at].add(amount)), None

    # Each edge is emptied at most (vertices / 2) times by shortest augmenting paths.
    rounds = (size * (size - 1) + 2 * size) * (size + 2) // 2
    return jax.lax.scan(augment, varying_like((held, excess), held, excess), None, length=rounds)[
        0
    ][0]


def _wins(wins, i, j):
    """Chance that rank `i` is chosen over rank `j`."""
    free = wins.shape[0]
    inside = wins[jnp.minimum(i, free - 1), jnp.minimum(j, free - 1)]
    return jnp.where((i < free) & (j < free) & (i != j), inside, (i <= j).astype(wins.dtype))


def _halves(start: int, size: int, alike: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """The two sides of a tournament's last match; where all drafts have one law only their numbers
    matter.
    """
    first = 1 << (size - 1).bit_length() - 1
    return (start, first), (0 if alike else start + first, size - first)


def _play(match: _Match, first, second):
    """The law of the chosen one under the match's rule, for other (unnormalised) laws."""
    free = match.wins.shape[0]
    law, pair = _better_ranked(first[match.order], second[match.order], free)
    moved = jnp.sum(
        jnp.where(jnp.eye(free, dtype=bool), 0, match.wins * pair) - jnp.triu(pair, 1), axis=1
    )
    return jnp.zeros_like(law).at[match.order].set(law.at[:free].add(moved))


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
