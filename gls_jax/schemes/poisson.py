"""Poisson lists (after Liu, Wan, Gao, Gunduz 2026, arXiv 2609.21858): K drafts from ONE race.

Item `i` owns a Poisson process with arrivals ``T_i1 < T_i2 < ...`` of rate 1. The list is the items
of the first K arrivals of ``{T / p}``, K independent samples of `p`; the target takes ``argmin_i
T_i1 / q_i``. It never looks at the drafts (strong invariance at no cost), and

    P(target in list) = sum_j q_j (1 - (1 - 1 / M_j)^K),

because between arrivals that could beat it, `j` loses each with probability ``1 - 1 / M_j``. Never
below the list matching bound. In sequences the r-th chain that stands at the same context takes the
r-th arrival.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import bounds, races, simulation
from gls_jax.ratios import ratio_order, total
from gls_jax.schemes.base import Scheme

__all__ = ["SCHEME", "acceptance", "hits", "propose", "simulator", "verify"]

_FIRST, _LATER = 0, 1  # streams: the first arrivals, and the root of every item's later ones


def propose(key: PRNGKeyArray, log_p: Float[Array, "*k N"], num_drafts: int) -> Int[Array, " K"]:
    clocks = races.exponentials(key, 1, log_p.shape[0])[_FIRST]
    # Only an item whose first arrival is among the K first can have an arrival among them.
    _, items = jax.lax.top_k(-races.arrivals(clocks, log_p), min(num_drafts, log_p.shape[0]))
    later = races.stream_key(key, _LATER)
    gaps = jax.vmap(
        lambda item: races.exponentials(jax.random.fold_in(later, item), 1, num_drafts)[0]
    )(items)
    times = jnp.cumsum(gaps.at[:, 0].set(clocks[items]), axis=1)  # [item, arrival]
    _, order = jax.lax.top_k(
        -races.arrivals(times, log_p[items, None]).ravel(), num_drafts
    )  # far faster than a sort
    return items[order // num_drafts]


def verify(
    key: PRNGKeyArray,
    drafts: Int[Array, " K"],
    log_p: Float[Array, "*k N"],
    log_q: Float[Array, " N"],
    active: Bool[Array, " K"] | None,
) -> Int[Array, ""]:
    del drafts, log_p, active
    return races.winner(races.arrivals(races.exponentials(key, 1, log_q.shape[0])[_FIRST], log_q))


def hits(
    key: PRNGKeyArray, log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: int
) -> Bool[Array, " K"]:
    drafts = propose(key, log_p, num_drafts)
    return jnp.cumsum(drafts == verify(key, drafts, log_p, log_q, None)) > 0


def simulator(
    log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: int
) -> Callable[[PRNGKeyArray], Bool[Array, " K"]]:
    """The same trial without clocks: arrivals before the target's form a Poisson process of total
    ``theta excess``.
    """
    pair = simulation.tables(log_p, log_q)

    def trial(key):
        noise = races.exponentials(key, 1, num_drafts + 3)[0]
        token = simulation.target(pair, *-jnp.expm1(-noise[1:3]))
        return jnp.cumsum(noise[3:]) > noise[0] * pair.excess[token]

    return trial


def acceptance(
    log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: tuple[int, ...]
) -> Float[Array, " C"]:
    ranked = ratio_order(log_p, log_q)
    live = jnp.where(ranked.p > 0, ranked.q, 0)
    apart = (
        ranked.excess > 1e-18
    )  # else the match is certain, and 1 / excess^2 of the gradient leaves float32
    lose = jnp.log1p(1 / jnp.where(apart, ranked.excess, 1))  # -log(1 - 1 / M), exact for large M
    return jnp.stack([total(live * jnp.where(apart, -jnp.expm1(-k * lose), 1)) for k in num_drafts])


SCHEME = Scheme(
    name="poisson",
    invariance="strong",
    max_drafts=None,
    needs_draft_law=False,
    diverse=False,
    ranked=True,
    summary="one Poisson process an item; the list is the first K arrivals, with repetition",
    propose_fn=propose,
    verify_fn=verify,
    acceptance_fn=acceptance,
    hits_fn=hits,
    simulator_fn=simulator,
    bound=bounds.list_matching,
)
