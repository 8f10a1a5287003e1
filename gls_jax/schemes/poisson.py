"""Poisson lists: K drafts from the arrivals of ONE race.

Source: after Liu, Wan, Gao, Gunduz 2026, arXiv 2609.21858.

Every token `i` has a Poisson process with arrivals ``T_i1 < T_i2 < ...`` of rate 1. The list is the
tokens of the first K arrivals of ``{T / p}``, K independent samples of `p`; the target takes
``argmin_i T_i1 / q_i``. It never reads the drafts (strong invariance at no cost), and

    P(target in list) = sum_j q_j (1 - (1 - 1 / M_j)^K),

because each arrival that could come before `j` does with probability ``1 - 1 / M_j``, where
``M_j = sum_i max(q_i, q_j p_i / p_j)``. Never below the list matching bound. In a tree, the r-th
draft after a node takes the r-th arrival.

**Kernel** for the planner. Given that `y` arrives first under `q` at time ``theta``, its first
arrival is known and the later ones follow after Gamma waiting times. The other tokens' arrivals
before time `s` under `p` are a Poisson count of mean ``sum_i (p_i s - theta q_i)+``, because the
race has no memory. The m-th arrival of `y` is among the first J if at most ``J - m`` of theirs come
before it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from gls_jax import bounds, races
from gls_jax.exact import inversion
from gls_jax.exact.counting import KERNEL_STEP, poisson_cdf
from gls_jax.exact.quadrature import exponential_nodes
from gls_jax.exact.ratio_order import ratio_order, total
from gls_jax.schemes.array_types import (
    Acceptances,
    AcceptedByLength,
    Active,
    DraftLogProbs,
    Drafts,
    Kernel,
    Token,
    Tokens,
    Vector,
)
from gls_jax.schemes.function_types import ExactAcceptance, TokenVerification, Trial, Trials
from gls_jax.schemes.scheme import Scheme

__all__ = [
    "SCHEME",
    "acceptance",
    "accepted",
    "inversion_trial",
    "propose",
    "propose_among",
    "verify",
]

# Streams: the first arrivals, and the root of every token's later ones.
_FIRST = 0
_LATER = 1

_GAMMA_NODES = 16  # of the Gauss-Laguerre rule over the waiting time of a later arrival


def propose(key: PRNGKeyArray, log_p: DraftLogProbs, num_drafts: int) -> Drafts:
    return propose_among(key, log_p, num_drafts, jnp.arange(log_p.shape[0], dtype=jnp.int32))


def propose_among(
    key: PRNGKeyArray, log_p: DraftLogProbs, num_drafts: int, tokens: Tokens
) -> Drafts:
    first_times = races.exponentials_at(key, 1, tokens)[_FIRST]
    # Only a token whose first arrival is among the K first can have an arrival among them.
    first_arrivals = races.arrivals(first_times, log_p)
    _, first = jax.lax.top_k(-first_arrivals, min(num_drafts, log_p.shape[0]))

    # All arrivals of those tokens that can be among the K first: K each.
    token_keys = races.keys.fold_in_each(races.stream_key(key, _LATER), tokens[first])
    gaps = jax.vmap(lambda token_key: races.exponentials(token_key, 1, num_drafts)[0])(token_keys)
    times = jnp.cumsum(gaps.at[:, 0].set(first_times[first]), axis=1)  # [token, arrival]
    arrivals = races.arrivals(times, log_p[first, None]).ravel()
    _, order = jax.lax.top_k(-arrivals, num_drafts)  # far faster than a sort
    return tokens[first[order // num_drafts]]


def verify(
    key: PRNGKeyArray,
    drafts: Drafts,
    log_p: DraftLogProbs,
    log_q: Vector,
    active: Active | None,
) -> Token:
    del drafts, log_p, active
    first_times = races.exponentials(key, 1, log_q.shape[0])[_FIRST]
    return races.winner(races.arrivals(first_times, log_q))


def accepted(
    key: PRNGKeyArray,
    log_p: DraftLogProbs,
    log_q: Vector,
    num_drafts: int,
) -> AcceptedByLength:
    drafts = propose(key, log_p, num_drafts)
    token = verify(key, drafts, log_p, log_q, None)
    return jnp.cumsum(drafts == token) > 0


def inversion_trial(log_p: DraftLogProbs, log_q: Vector, num_drafts: int) -> Trial:
    """The same trial by inversion.

    The arrivals before the target's token are a Poisson process of total mass ``theta excess``. The
    token is among the first k drafts if the sum of k exponentials exceeds that mass.
    """
    tables = inversion.pair_tables(log_p, log_q)

    def trial(key):
        noise = races.exponentials(key, 1, num_drafts + 3)[0]
        theta = noise[0]
        u, v = -jnp.expm1(-noise[1:3])
        token_index = inversion.draw_target(tables, u, v)
        return jnp.cumsum(noise[3:]) > theta * tables.excess[token_index]

    return trial


def acceptance(
    log_p: DraftLogProbs,
    log_q: Vector,
    num_drafts: tuple[int, ...],
) -> Acceptances:
    ranked = ratio_order(log_p, log_q)
    # A target token that cannot be drafted is always missed.
    matchable_q = jnp.where(ranked.p > 0, ranked.q, 0)
    # Without an excess the match is certain, and 1 / excess^2 of the gradient would leave float32.
    has_excess = ranked.excess > 1e-18
    # -log(1 - 1 / M), which keeps its digits for large M.
    neg_log_miss = jnp.log1p(1 / jnp.where(has_excess, ranked.excess, 1))
    values = []
    for k in num_drafts:
        match = jnp.where(has_excess, -jnp.expm1(-k * neg_log_miss), 1)
        values.append(total(matchable_q * match))
    return jnp.stack(values)


def _gamma_nodes(shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Quadrature of the Gamma distribution: nodes and weights, of any shape of at least 1.

    By Golub and Welsch: eigenvalues of the Jacobi matrix of the generalised Laguerre polynomials.
    `scipy.special.roots_genlaguerre` has weights that are not normalised, which overflow.
    """
    # scipy.linalg is slow to import, and only plans need it.
    from scipy.linalg import eigh_tridiagonal

    k = np.arange(_GAMMA_NODES)
    nodes, vectors = eigh_tridiagonal(2 * k + shape, np.sqrt(k[1:] * (k[1:] + shape - 1)))
    return nodes, vectors[0] ** 2


def kernel(log_p: Vector, log_q: Vector, num_drafts: int) -> Kernel:
    p = races.weights(log_p)
    q = races.weights(log_q)
    theta, (weights,) = exponential_nodes((1,), log_q.dtype, step=KERNEL_STEP)
    # Token y is category 0; the others are all the rest.
    others_p = p.at[0].set(0)[:, None, None]
    others_q = q.at[0].set(0)[:, None, None]
    p_y = jnp.maximum(p[0], 1e-30)

    def mean_before(times: Float[Array, "G n"]) -> Float[Array, "G n"]:
        """Mean number of the others' arrivals before these times under p."""
        return jnp.sum(jnp.maximum(others_p * times - others_q * theta, 0), axis=0)

    def drafted_at_least(m: int) -> Float[Array, " J"]:
        """P(the m-th arrival of y is among the first J), for J = 0, ..., K."""
        # The waiting time from the first to the m-th arrival is Gamma(m - 1) distributed.
        if m > 1:
            waits, shares = _gamma_nodes(m - 1)
        else:
            waits, shares = np.zeros(1), np.ones(1)
        waits, shares = waits.astype(np.float32)[:, None], shares.astype(np.float32)
        # Larger means count as 1e6: the probabilities are 0 either way.
        times = jnp.asarray((theta * q[0] + waits) / p_y)
        means = jnp.minimum(mean_before(times), 1e6)
        # P(at most 0, 1, ... of the others come before), over waiting times and theta.
        at_most = jnp.einsum("kgn,g,n->k", poisson_cdf(means, num_drafts), shares, weights)
        among_first = jnp.zeros(num_drafts + 1, p.dtype)
        return among_first.at[m:].set(at_most[: num_drafts + 1 - m])

    # P(y is drafted at least 0, 1, ..., K + 1 times); their differences are P(0, 1, ..., K times).
    at_least = [jnp.ones(num_drafts + 1, p.dtype)]
    never = jnp.zeros(num_drafts + 1, p.dtype)
    for m in range(1, num_drafts + 1):
        at_least.append(jnp.where(p[0] > 0, drafted_at_least(m), 0))
    at_least.append(never)
    return jnp.stack(at_least[:-1], axis=1) - jnp.stack(at_least[1:], axis=1)


SCHEME = Scheme(
    name="poisson",
    invariance="strong",
    max_drafts=None,
    needs_draft_probs=False,
    diverse=False,
    ranked=True,
    propose_fn=propose,
    propose_among_fn=propose_among,
    verification=TokenVerification(verify),
    exact=ExactAcceptance(
        acceptance, bound=bounds.list_matching, kernel=kernel, tails_are_bounds=True
    ),
    trials=Trials(accepted, inversion=inversion_trial),
)
