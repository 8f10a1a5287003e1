"""Weighted MinHash drafting (Daliri, Musco, Suresh 2024, arXiv 2408.07978): one draft, shared
darts, no communication.

Darts fall uniformly on items x [0, 1]; the draft is the first under `p`, the token the first under
`q`. The first dart under either curve lies under both with probability ``(1 - TV) / (1 + TV)``, the
most that a scheme without communication can promise for its worst pair. If it lies under one curve
only, on item `j`, the other side's later dart hits `j` too with probability ``m_j = min(p_j,
q_j)``, so that

    P(target = draft) = sum_j m_j (1 + |p_j - q_j|) / (1 + TV).

The token is a function of key and `q` alone. All that is asked of the drafter is that it threw the
same darts: neither its law nor its draft is looked at. `N` darts on average a token and a party,
where a race draws `N` clocks.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import bounds, races
from gls_jax.couplings import first_dart, minhash_match
from gls_jax.exact.counting import single_draft_kernel
from gls_jax.schemes.scheme import ExactAcceptance, Scheme, TokenVerification
from gls_jax.typing import LogProbs

__all__ = ["SCHEME", "acceptance", "propose", "verify"]


def propose(key: PRNGKeyArray, log_p: Float[Array, "*k N"], num_drafts: int) -> Int[Array, " K"]:
    del num_drafts  # one
    return first_dart(key, log_p.reshape(-1))[None]


def verify(
    key: PRNGKeyArray,
    drafts: Int[Array, " K"],
    log_p: Float[Array, "*k N"],
    log_q: Float[Array, " N"],
    active: Bool[Array, " K"],
) -> Int[Array, ""]:
    del drafts, log_p, active
    return first_dart(key, log_q)


def acceptance(
    log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: tuple[int, ...]
) -> Float[Array, " C"]:
    return minhash_match(log_p.reshape(-1), log_q)[None].repeat(len(num_drafts))


def bound(log_p: LogProbs, log_q: LogProbs, num_drafts: int) -> Float[Array, ""]:
    del num_drafts  # one
    row = log_p[0] if np.ndim(log_p) == 2 else log_p  # type: ignore  # the draft's own law, or that of all drafts
    return bounds.communication_free(row, log_q)


def kernel(log_p, log_q, num_drafts: int) -> Float[Array, "J J"]:
    p, q = races.weights(log_p), races.weights(log_q)
    distance = jnp.sum(jnp.abs(p - q)) / 2
    return single_draft_kernel(
        jnp.minimum(1, p[0] / q[0]) * (1 + jnp.abs(p[0] - q[0])) / (1 + distance)
    )


SCHEME = Scheme(
    name="minhash",
    invariance="strong",
    max_drafts=1,
    needs_draft_probs=False,
    diverse=True,
    ranked=False,
    propose_fn=propose,
    verification=TokenVerification(verify),
    exact=ExactAcceptance(acceptance, bound=bound, kernel=kernel, tails_bracket=True),
)
