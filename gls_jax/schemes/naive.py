"""The scheme without a scheme: the target draws on its own and hopes. A floor for every comparison.

``P(target in list) = sum_j q_j (1 - prod_k (1 - p^(k)_j))``. Strongly invariant in the trivial way:
the target uses the position's private noise and never looks at the drafts.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import races
from gls_jax.exact import inversion
from gls_jax.exact.counting import binomial_counts
from gls_jax.schemes.gls import propose  # K independent races
from gls_jax.schemes.scheme import ExactAcceptance, Scheme, TokenVerification, Trials

__all__ = ["SCHEME", "acceptance", "accepted", "inversion_trial", "propose", "verify"]


def verify(
    key: PRNGKeyArray,
    drafts: Int[Array, " K"],
    log_p: Float[Array, "*k N"],
    log_q: Float[Array, " N"],
    active: Bool[Array, " K"],
) -> Int[Array, ""]:
    del drafts, log_p, active
    clocks = races.exponentials(races.private_key(key), 1, log_q.shape[0])
    return races.winner(races.arrivals(clocks[0], log_q))


def accepted(
    key: PRNGKeyArray, log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: int
) -> Bool[Array, " K"]:
    ((_, drafts),) = races.first_arrivals(key, num_drafts, log_p)
    ((_, token),) = races.first_arrivals(races.private_key(key), 1, log_q)
    return jnp.cumsum(drafts == token) > 0


def inversion_trial(
    log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: int
) -> Callable[[PRNGKeyArray], Bool[Array, " K"]]:
    """The same trial without clocks: a draft is the target's token with its probability under `p`."""
    q = inversion.weight_table(jnp.exp(log_q))

    def trial(key):
        noise = -jnp.expm1(-races.exponentials(key, 1, num_drafts + 2)[0])
        token = inversion.draw_index(q, log_q.shape[0], *noise[:2])
        return jnp.cumsum(noise[2:] < races.weights(log_p[..., token])) > 0

    return trial


def acceptance(
    log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: tuple[int, ...]
) -> Float[Array, " C"]:
    q, absent = jnp.exp(log_q), 1 - jnp.exp(log_p)
    if log_p.ndim == 1:
        return jnp.stack([jnp.sum(q * (1 - absent**k)) for k in num_drafts])
    missed = jnp.cumprod(absent, axis=0)
    return jnp.stack([jnp.sum(q * (1 - missed[k - 1])) for k in num_drafts])


def kernel(log_p, log_q, num_drafts: int) -> Float[Array, "J J"]:
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
    exact=ExactAcceptance(acceptance, kernel=kernel, tails_bracket=True),
    trials=Trials(accepted, inversion=inversion_trial, streaming=True),
)
