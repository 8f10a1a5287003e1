"""SpecTr's K-SEQ: every draft faces the same discounted test (Sun et al. 2023, arXiv 2310.15141,
Algorithm 3).

Accept `x` with probability ``min(1, q_x / (rho p_x))``, test after test; when all refuse emit a
sample of ``(q - rho p)+``. That is exact for the `rho` in ``[1, K]`` that solves

    1 - (1 - b)^K = rho b,   b = sum_i min(p_i, q_i / rho),

and then ``P(target in list) = rho b = sum_i min(q_i, rho p_i)``: SpecInfer's formula at another
multiple of `p`. A refused draft has ``q_x < rho p_x``, so the residual never emits one. The left
side falls in `rho` and the right side rises: bisection, `O(N)` a step. Drafts must share one law,
which the drafter must supply.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import races
from gls_jax.exact.counting import add_bernoulli, one_more, with_empty_row
from gls_jax.loops import varying_like
from gls_jax.rejection import residual, residual_token
from gls_jax.schemes.gls import propose  # K independent races
from gls_jax.schemes.scheme import ExactAcceptance, Scheme, TokenVerification, Trials

__all__ = ["SCHEME", "acceptance", "accepted", "discount", "propose", "verify"]


def discount(
    p: Float[Array, " N"], q: Float[Array, " N"], num_drafts: ArrayLike
) -> Float[Array, ""]:
    """`rho` for `num_drafts` tests (may be traced; 0 gives 0: nothing is tested, all of `q` is
    left).
    """
    num_drafts = jnp.asarray(num_drafts).astype(q.dtype)
    ends = varying_like((jnp.ones((), q.dtype), jnp.maximum(num_drafts, 1)), p, q, num_drafts)

    def halve(_, ends):
        middle = (ends[0] + ends[1]) / 2
        gain = _gain(p, q, middle, num_drafts)
        return jnp.where(gain > 0, middle, ends[0]), jnp.where(gain > 0, ends[1], middle)

    low, high = jax.lax.fori_loop(0, jnp.finfo(q.dtype).nmant + 4, halve, ends)
    return jnp.where(num_drafts > 0, (low + high) / 2, 0)


def verify(
    key: PRNGKeyArray,
    drafts: Int[Array, " K"],
    log_p: Float[Array, "*k N"],
    log_q: Float[Array, " N"],
    active: Bool[Array, " K"],
) -> Int[Array, ""]:
    p, q = races.weights(log_p), races.weights(log_q)
    test_key, residual_key = races.split_key(races.private_key(key))
    rho = discount(p, q, jnp.sum(active))
    accept = (
        active
        & (p[drafts] > 0)
        & (races.uniforms(test_key, drafts.shape[0]) * rho * p[drafts] < q[drafts])
    )
    fresh = residual_token(residual_key, residual(q, rho * p)[0], log_q)
    return jnp.where(jnp.any(accept), drafts[jnp.argmax(accept)], fresh).astype(jnp.int32)


def accepted(
    key: PRNGKeyArray, log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: int
) -> Bool[Array, " K"]:
    """One trial for every K: the same tests under each K's discount; the residual is never in the
    list.
    """
    p, q = races.weights(log_p), races.weights(log_q)
    drafts = propose(key, log_p, num_drafts)
    test_key, _ = races.split_key(races.private_key(key))
    rho = jax.vmap(lambda k: discount(p, q, k))(jnp.arange(1, num_drafts + 1))
    accept = (
        races.uniforms(test_key, num_drafts) * rho[:, None] * p[drafts] < q[drafts]
    )  # [K, draft]
    return jnp.any(accept & jnp.tri(num_drafts, dtype=bool), axis=1)


def acceptance(
    log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: tuple[int, ...]
) -> Float[Array, " C"]:
    p, q = races.weights(log_p), races.weights(log_q)
    return jnp.stack([jnp.sum(jnp.minimum(q, _smooth_discount(p, q, k) * p)) for k in num_drafts])


def _gain(p, q, rho, num_drafts):
    """``1 - (1 - b)^K - rho b``, falling in `rho`."""
    b = jnp.minimum(jnp.sum(jnp.minimum(p, q / rho)), 1)
    return 1 - (1 - b) ** num_drafts - rho * b


def _smooth_discount(p, q, num_drafts: int):
    """`rho` with its first two derivatives: those of two Newton steps from the root, each of which
    adds one.
    """
    fixed_p, fixed_q = jax.lax.stop_gradient((p, q))
    rho = discount(fixed_p, fixed_q, num_drafts)
    full = fixed_q >= rho * fixed_p
    part = jnp.sum(jnp.where(full, 0, fixed_q))
    b = jnp.sum(jnp.minimum(fixed_p, fixed_q / rho))
    slope = (
        -jnp.sum(jnp.where(full, fixed_p, 0))
        - num_drafts * (1 - b) ** (num_drafts - 1) * part / rho**2
    )
    steep = (
        slope < -1e-12
    )  # else every item is cut or none can be, and no rho is better than another
    for _ in range(2):
        step = jnp.where(steep, _gain(p, q, rho, num_drafts) / jnp.where(steep, slope, -1), 0)
        rho = rho - (
            step - jax.lax.stop_gradient(step)
        )  # on a flat slope the step itself is rounding
    return rho


def kernel(log_p, log_q, num_drafts: int) -> Float[Array, "J J"]:
    p, q = races.weights(log_p), races.weights(log_q)
    counts = jnp.arange(1, num_drafts + 1, dtype=p.dtype)
    discounts = jax.vmap(partial(discount, p, q))(counts)

    def row(j: int):
        rho = discounts[j - 1]
        kept = jnp.minimum(p, q / rho)
        refused = jnp.maximum(1 - jnp.sum(kept), 0)
        missed = p[0] - kept[0]  # y itself is drafted and refused
        none = jnp.zeros(num_drafts + 1, p.dtype).at[0].set(1)  # all refused so far
        hit = 0 * none
        for _ in range(j):
            hit = add_bernoulli(hit, p[0]) + one_more(none) * kept[0] / q[0]
            none = none * (refused - missed) + one_more(none) * missed
        return hit.at[0].add(1 - jnp.sum(hit))

    return with_empty_row(row(j) for j in range(1, num_drafts + 1))


SCHEME = Scheme(
    name="spectr",
    invariance="none",
    max_drafts=None,
    needs_draft_probs=True,
    diverse=False,
    ranked=False,
    propose_fn=propose,
    verification=TokenVerification(verify),
    exact=ExactAcceptance(acceptance, kernel=kernel, tails_bracket=True),
    trials=Trials(accepted),
)
