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
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from scipy.special import roots_genlaguerre

from gls_jax import bounds, races
from gls_jax.exact import inversion
from gls_jax.exact.counting import KERNEL_STEP, poisson_cdf
from gls_jax.exact.quadrature import exponential_nodes
from gls_jax.exact.ratio_order import ratio_order, total
from gls_jax.schemes.scheme import ExactAcceptance, Scheme, TokenVerification, Trials

__all__ = ["SCHEME", "acceptance", "accepted", "inversion_trial", "propose", "verify"]

_FIRST, _LATER = 0, 1  # streams: the first arrivals, and the root of every item's later ones


def propose(key: PRNGKeyArray, log_p: Float[Array, "*k N"], num_drafts: int) -> Int[Array, " K"]:
    clocks = races.exponentials(key, 1, log_p.shape[0])[_FIRST]
    # Only an item whose first arrival is among the K first can have an arrival among them.
    _, items = jax.lax.top_k(-races.arrivals(clocks, log_p), min(num_drafts, log_p.shape[0]))
    keys = races.keys.fold_in_each(races.stream_key(key, _LATER), items)
    gaps = jax.vmap(lambda key: races.exponentials(key, 1, num_drafts)[0])(keys)
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


def accepted(
    key: PRNGKeyArray, log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: int
) -> Bool[Array, " K"]:
    drafts = propose(key, log_p, num_drafts)
    return jnp.cumsum(drafts == verify(key, drafts, log_p, log_q, None)) > 0


def inversion_trial(
    log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: int
) -> Callable[[PRNGKeyArray], Bool[Array, " K"]]:
    """The same trial without clocks: arrivals before the target's form a Poisson process of total
    ``theta excess``.
    """
    pair = inversion.pair_tables(log_p, log_q)

    def trial(key):
        noise = races.exponentials(key, 1, num_drafts + 3)[0]
        token = inversion.draw_target(pair, *-jnp.expm1(-noise[1:3]))
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


_GAMMA_NODES = 16  # of the Gauss-Laguerre rule over the waiting time of a later arrival


def kernel(log_p, log_q, num_drafts: int) -> Float[Array, "J J"]:
    p, q = races.weights(log_p), races.weights(log_q)
    theta, (weights,) = exponential_nodes((1,), log_q.dtype, step=KERNEL_STEP)
    others_p, others_q = p.at[0].set(0), q.at[0].set(0)
    p_y = jnp.maximum(p[0], 1e-30)

    def before(time):
        """Mean number of others' arrivals before the draft's times `[G, n]`."""
        return jnp.sum(
            jnp.maximum(others_p[:, None, None] * time - others_q[:, None, None] * theta, 0), axis=0
        )

    def at_least(m: int):
        """P(the m-th arrival of y is among the first J), for every J."""
        waits, shares = (
            roots_genlaguerre(_GAMMA_NODES, m - 2) if m > 1 else (np.zeros(1), np.ones(1))
        )
        mean = jnp.minimum(before((theta * q[0] + waits.astype(np.float32)[:, None]) / p_y), 1e6)
        share = (shares / shares.sum()).astype(np.float32)
        below = jnp.einsum(
            "kgn,g,n->k", poisson_cdf(mean, num_drafts), share, weights
        )  # at most 0, 1, ... others
        return jnp.zeros(num_drafts + 1, p.dtype).at[m:].set(below[: num_drafts + 1 - m])

    always, never = jnp.ones(num_drafts + 1, p.dtype), jnp.zeros(num_drafts + 1, p.dtype)
    tails = [
        always,
        *(jnp.where(p[0] > 0, at_least(m), 0) for m in range(1, num_drafts + 1)),
        never,
    ]
    return jnp.stack(tails[:-1], axis=1) - jnp.stack(tails[1:], axis=1)


SCHEME = Scheme(
    name="poisson",
    invariance="strong",
    max_drafts=None,
    needs_draft_probs=False,
    diverse=False,
    ranked=True,
    propose_fn=propose,
    verification=TokenVerification(verify),
    exact=ExactAcceptance(
        acceptance, bound=bounds.list_matching, kernel=kernel, tails_bracket=True
    ),
    trials=Trials(accepted, inversion=inversion_trial),
)
