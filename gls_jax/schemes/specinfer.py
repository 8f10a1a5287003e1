"""SpecInfer: recursive rejection, drafts with replacement (Miao et al. 2023, arXiv 2305.09781;
diverse drafts allowed).

Each draft faces the single-draft test against what the refusals before it left of the target
(:mod:`gls_jax.rejection`). With one draft law the spent mass is ``s = u p`` with a number `u`:

    u_0 = 0,   u_{k+1} = u_k + Z(u_k),   Z(u) = sum_i (q_i - u p_i)+,   P(target in list) = sum_i min(q_i, u_K p_i).

SpecTr has the same acceptance at another `u`. Verification and exact acceptance are `O(K N)`; the
drafter must supply its law, and another drafter gives another text.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import races
from gls_jax.exact.counting import add_bernoulli, with_empty_row
from gls_jax.loops import varying_like
from gls_jax.rejection import recursive_rejection, residual
from gls_jax.schemes.gls import propose  # K independent races
from gls_jax.schemes.scheme import ExactAcceptance, Scheme, TokenVerification, Trials

__all__ = ["SCHEME", "acceptance", "accepted", "propose", "verify"]


def verify(
    key: PRNGKeyArray,
    drafts: Int[Array, " K"],
    log_p: Float[Array, "*k N"],
    log_q: Float[Array, " N"],
    active: Bool[Array, " K"],
) -> Int[Array, ""]:
    return recursive_rejection(key, drafts, log_p, log_q, active)[0]


def accepted(
    key: PRNGKeyArray, log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: int
) -> Bool[Array, " K"]:
    """One trial for every K."""
    return recursive_rejection(
        key, propose(key, log_p, num_drafts), log_p, log_q, jnp.ones(num_drafts, bool)
    )[1]


def acceptance(
    log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: tuple[int, ...]
) -> Float[Array, " C"]:
    p, q = races.weights(log_p), races.weights(log_q)

    def refuse(spent, k):
        spent = spent + residual(q, spent)[1] * (p if p.ndim == 1 else p[k])
        return spent, jnp.sum(jnp.minimum(q, spent))

    _, accepted = jax.lax.scan(
        refuse, varying_like(jnp.zeros_like(q), p, q), jnp.arange(max(num_drafts))
    )
    return accepted[jnp.asarray(num_drafts) - 1]


def kernel(log_p, log_q, num_drafts: int) -> Float[Array, "J J"]:
    p, q = races.weights(log_p), races.weights(log_q)
    one = jnp.zeros(num_drafts + 1, p.dtype).at[1].set(1)
    spent, hit, rows = jnp.zeros((), p.dtype), 0 * one, []
    for _ in range(num_drafts):
        rest, left = residual(q, spent * p)
        hit = add_bernoulli(hit, p[0]) + jnp.minimum(left * p[0], rest[0]) / q[0] * one
        rows.append(hit.at[0].add(1 - jnp.sum(hit)))
        spent = spent + left
    return with_empty_row(rows)


SCHEME = Scheme(
    name="specinfer",
    invariance="none",
    max_drafts=None,
    needs_draft_probs=True,
    diverse=True,
    ranked=False,
    propose_fn=propose,
    verification=TokenVerification(verify),
    exact=ExactAcceptance(acceptance, kernel=kernel),
    trials=Trials(accepted),
)
