"""Independent sampling: the target ignores the drafts. The baseline of every comparison.

    P(target in list) = sum_j q_j (1 - prod_k (1 - p^(k)_j)).

Strongly invariant in the trivial way: the target uses the position's private noise and never reads
the drafts.

**Kernel** for the planner. Given that `y` is emitted, J independent drafts equal it a binomial
number of times, each with probability `p_y`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from gls_jax import races
from gls_jax.exact import inversion
from gls_jax.exact.counting import binomial_counts
from gls_jax.schemes.array_types import (
    Acceptances,
    AcceptedByLength,
    Active,
    DraftLogProbs,
    Drafts,
    Kernel,
    Token,
    Vector,
)
from gls_jax.schemes.function_types import ExactAcceptance, TokenVerification, Trial, Trials
from gls_jax.schemes.gls import propose  # K independent races
from gls_jax.schemes.scheme import Scheme

__all__ = ["SCHEME", "acceptance", "accepted", "inversion_trial", "propose", "verify"]


def verify(
    key: PRNGKeyArray,
    drafts: Drafts,
    log_p: DraftLogProbs,
    log_q: Vector,
    active: Active,
) -> Token:
    del drafts, log_p, active
    noise = races.exponentials(races.private_key(key), 1, log_q.shape[0])
    return races.winner(races.arrivals(noise[0], log_q))


def accepted(
    key: PRNGKeyArray,
    log_p: DraftLogProbs,
    log_q: Vector,
    num_drafts: int,
) -> AcceptedByLength:
    ((_, drafts),) = races.first_arrivals(key, num_drafts, log_p)
    ((_, token),) = races.first_arrivals(races.private_key(key), 1, log_q)
    return jnp.cumsum(drafts == token) > 0


def inversion_trial(log_p: DraftLogProbs, log_q: Vector, num_drafts: int) -> Trial:
    """The same trial by inversion: each draft is the target's token y with probability `p_y`."""
    q_table = inversion.weight_table(jnp.exp(log_q))

    def trial(key):
        noise = races.exponentials(key, 1, num_drafts + 2)[0]
        uniforms = -jnp.expm1(-noise)
        u, v = uniforms[:2]
        token = inversion.draw_index(q_table, log_q.shape[0], u, v)
        is_token = uniforms[2:] < races.weights(log_p[..., token])
        return jnp.cumsum(is_token) > 0

    return trial


def acceptance(
    log_p: DraftLogProbs,
    log_q: Vector,
    num_drafts: tuple[int, ...],
) -> Acceptances:
    q = jnp.exp(log_q)
    not_drafted = 1 - jnp.exp(log_p)
    if log_p.ndim == 1:
        return jnp.stack([jnp.sum(q * (1 - not_drafted**k)) for k in num_drafts])
    missed = jnp.cumprod(not_drafted, axis=0)
    return jnp.stack([jnp.sum(q * (1 - missed[k - 1])) for k in num_drafts])


def kernel(log_p: Vector, log_q: Vector, num_drafts: int) -> Kernel:
    return binomial_counts(num_drafts, races.weights(log_p)[0])


SCHEME = Scheme(
    name="naive",
    invariance="strong",
    max_drafts=None,
    needs_draft_probs=False,
    diverse=True,
    ranked=False,
    propose_fn=propose,
    verification=TokenVerification(verify),
    exact=ExactAcceptance(acceptance, kernel=kernel, tails_are_bounds=True),
    trials=Trials(accepted, inversion=inversion_trial, streaming=True),
)
