"""Speculative sampling with one draft (Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318).

Accept the draft `x` with probability ``min(1, q_x / p_x)``, otherwise emit a sample of the residual
``(q - p)+ / TV``. Acceptance is ``1 - TV``, the most any scheme reaches with one draft; the price is that `p` must be
known to the verifier and that another drafter gives another text.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gls_jax import races
from gls_jax.schemes.base import Scheme
from gls_jax.schemes.gls import propose  # K independent races

__all__ = ["SCHEME", "acceptance", "propose", "verify"]


def verify(key, drafts, log_p, log_q, active):
    # Acceptance test and residual must not share noise with the proposal: that biases the output.
    test_key, residual_key = jax.random.split(races.private_key(key))
    log_p = log_p.reshape(-1)
    draft = drafts[0]
    surprise = races.exponentials(test_key, 1, 1)[0, 0]  # -log of a uniform
    accept = active[0] & (surprise > log_p[draft] - log_q[draft])
    residual = jnp.maximum(jnp.exp(log_q) - jnp.exp(log_p), 0)
    # Rounding can reject although p = q, and a draft out of play leaves all of q to sample from.
    whole = ~active[0] | (jnp.max(residual) == 0)
    clocks = races.exponentials(residual_key, 1, log_q.shape[0])[0]
    fresh = races.winner(races.arrivals(clocks, jnp.where(whole, log_q, jnp.log(residual))))
    return jnp.where(accept, draft, fresh).astype(jnp.int32)


def acceptance(log_p, log_q, num_drafts: tuple[int, ...]) -> Float[Array, " C"]:
    return jnp.sum(jnp.minimum(jnp.exp(log_p.reshape(-1)), jnp.exp(log_q)))[None].repeat(len(num_drafts))


SCHEME = Scheme(
    name="single",
    invariance="none",
    max_drafts=1,
    needs_draft_law=True,
    diverse=True,
    summary="one draft, kept with probability min(1, q/p), else a sample of the residual",
    propose_fn=propose,
    verify_fn=verify,
    acceptance_fn=acceptance,
)
