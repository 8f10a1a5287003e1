"""SpecTr's K-SEQ: every draft faces the same discounted test.

Source: Sun et al. 2023, arXiv 2310.15141, Algorithm 3.

Accept `x` with probability ``min(1, q_x / (rho p_x))``, draft after draft; if all are rejected emit
a sample of ``(q - rho p)+``. That is exact for the `rho` in ``[1, K]`` that solves

    1 - (1 - b)^K = rho b,   b = sum_i min(p_i, q_i / rho),

and then ``P(target in list) = rho b = sum_i min(q_i, rho p_i)``: SpecInfer's formula at another
multiple of `p`. A rejected draft has ``q_x < rho p_x``, so the residual never emits one. The left
side falls in `rho` and the right side rises: `rho` is found by bisection, `O(N)` per step. All
drafts must share one distribution, which the drafter must supply.

**Kernel** for the planner. For an emitted token `y` it is a polynomial in `z`, whose power counts
drafts that equal `y`. With ``kept_i = min(p_i, q_i / rho)``, a rejected draft multiplies by
``(1 - sum kept - missed) + missed z``, ``missed = p_y - kept_y``; the accepted one by
``z kept_y / q_y``; and every later draft, which is not tested, by ``1 - p_y + p_y z``.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import PRNGKeyArray

from gls_jax import races
from gls_jax.exact.counting import add_bernoulli, one_more, with_empty_row
from gls_jax.loops import varying_like
from gls_jax.rejection import residual, residual_token
from gls_jax.schemes.array_types import (
    Acceptances,
    AcceptedByLength,
    Active,
    DraftLogProbs,
    Drafts,
    Kernel,
    Scalar,
    Token,
    Vector,
)
from gls_jax.schemes.function_types import ExactAcceptance, TokenVerification, Trials
from gls_jax.schemes.gls import propose  # K independent races
from gls_jax.schemes.scheme import Scheme

__all__ = ["SCHEME", "acceptance", "accepted", "discount", "propose", "verify"]


def discount(p: Vector, q: Vector, num_drafts: ArrayLike) -> Scalar:
    """`rho` for `num_drafts` tests.

    Args:
        p, q: probabilities `[N]`.
        num_drafts: may be traced. For 0 the discount is 0: nothing is tested, and the residual is
            all of `q`.
    """
    num_drafts = jnp.asarray(num_drafts).astype(q.dtype)
    interval = (jnp.ones((), q.dtype), jnp.maximum(num_drafts, 1))
    interval = varying_like(interval, p, q, num_drafts)

    def halve(_, interval):
        low, high = interval
        middle = (low + high) / 2
        is_below_root = _gain(p, q, middle, num_drafts) > 0
        return jnp.where(is_below_root, middle, low), jnp.where(is_below_root, high, middle)

    num_steps = jnp.finfo(q.dtype).nmant + 4
    low, high = jax.lax.fori_loop(0, num_steps, halve, interval)
    return jnp.where(num_drafts > 0, (low + high) / 2, 0)


def verify(
    key: PRNGKeyArray,
    drafts: Drafts,
    log_p: DraftLogProbs,
    log_q: Vector,
    active: Active,
) -> Token:
    p = races.weights(log_p)
    q = races.weights(log_q)
    test_key, residual_key = races.split_key(races.private_key(key))
    rho = discount(p, q, jnp.sum(active))
    uniforms = races.uniforms(test_key, drafts.shape[0])
    passes = uniforms * rho * p[drafts] < q[drafts]
    is_accepted = active & (p[drafts] > 0) & passes
    left, _ = residual(q, rho * p)
    from_residual = residual_token(residual_key, left, log_q)
    first_accepted = drafts[jnp.argmax(is_accepted)]
    token = jnp.where(jnp.any(is_accepted), first_accepted, from_residual)
    return token.astype(jnp.int32)


def accepted(
    key: PRNGKeyArray,
    log_p: DraftLogProbs,
    log_q: Vector,
    num_drafts: int,
) -> AcceptedByLength:
    """One trial for every list length: the same tests under the discount of each length."""
    p = races.weights(log_p)
    q = races.weights(log_q)
    drafts = propose(key, log_p, num_drafts)
    test_key, _ = races.split_key(races.private_key(key))
    list_lengths = jnp.arange(1, num_drafts + 1)
    rho = jax.vmap(lambda k: discount(p, q, k))(list_lengths)
    uniforms = races.uniforms(test_key, num_drafts)
    passes = uniforms * rho[:, None] * p[drafts] < q[drafts]  # [list length - 1, draft]
    is_listed = jnp.tri(num_drafts, dtype=bool)
    # A token from the residual is never in the list.
    return jnp.any(passes & is_listed, axis=1)


def acceptance(
    log_p: DraftLogProbs,
    log_q: Vector,
    num_drafts: tuple[int, ...],
) -> Acceptances:
    p = races.weights(log_p)
    q = races.weights(log_q)
    values = []
    for k in num_drafts:
        rho = _smooth_discount(p, q, k)
        values.append(jnp.sum(jnp.minimum(q, rho * p)))
    return jnp.stack(values)


def _gain(p, q, rho, num_drafts):
    """``1 - (1 - b)^K - rho b``, falling in `rho`."""
    b = jnp.minimum(jnp.sum(jnp.minimum(p, q / rho)), 1)
    return 1 - (1 - b) ** num_drafts - rho * b


def _smooth_discount(p, q, num_drafts: int):
    """`rho` with its first two derivatives.

    Bisection has no derivative. Two Newton steps from its root leave the value as it is, and each
    of them gives one derivative more.
    """
    fixed_p, fixed_q = jax.lax.stop_gradient((p, q))
    rho = discount(fixed_p, fixed_q, num_drafts)
    # The derivative of the gain by rho: tokens with q >= rho p are always accepted, the others in
    # part.
    is_full = fixed_q >= rho * fixed_p
    full_mass = jnp.sum(jnp.where(is_full, fixed_p, 0))
    part_mass = jnp.sum(jnp.where(is_full, 0, fixed_q))
    b = jnp.sum(jnp.minimum(fixed_p, fixed_q / rho))
    slope = -full_mass - num_drafts * (1 - b) ** (num_drafts - 1) * part_mass / rho**2
    # A flat gain: all tokens are accepted in part or none can be, and any rho is as good.
    is_steep = slope < -1e-12
    for _ in range(2):
        gain = _gain(p, q, rho, num_drafts)
        step = jnp.where(is_steep, gain / jnp.where(is_steep, slope, -1), 0)
        # Only the derivative of the step counts: on a small slope its value is rounding error.
        rho = rho - (step - jax.lax.stop_gradient(step))
    return rho


def kernel(log_p: Vector, log_q: Vector, num_drafts: int) -> Kernel:
    p = races.weights(log_p)
    q = races.weights(log_q)
    counts = jnp.arange(1, num_drafts + 1, dtype=p.dtype)
    discounts = jax.vmap(partial(discount, p, q))(counts)

    def row(num_active: int):
        # Category 0 is the emitted token y.
        rho = discounts[num_active - 1]
        kept = jnp.minimum(p, q / rho)
        rejected = jnp.maximum(1 - jnp.sum(kept), 0)
        missed = p[0] - kept[0]  # y itself is drafted and rejected
        # Coefficients of the polynomials in z: all drafts so far were rejected, or one was
        # accepted.
        all_rejected = jnp.zeros(num_drafts + 1, p.dtype).at[0].set(1)
        accepted_counts = 0 * all_rejected
        for _ in range(num_active):
            not_tested = add_bernoulli(accepted_counts, p[0])
            accepted_now = one_more(all_rejected) * kept[0] / q[0]
            accepted_counts = not_tested + accepted_now
            all_rejected = all_rejected * (rejected - missed) + one_more(all_rejected) * missed
        # In the other cases y comes from the residual, and no draft equals it.
        return accepted_counts.at[0].add(1 - jnp.sum(accepted_counts))

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
    exact=ExactAcceptance(acceptance, kernel=kernel, tails_are_bounds=True),
    trials=Trials(accepted),
)
