"""SpecInfer: recursive rejection, drafts with replacement.

Source: Miao et al. 2023, arXiv 2305.09781; drafts may have different distributions.

Each draft is tested against the residual of the target after the earlier rejections
(:mod:`gls_jax.rejection`). If all drafts share one distribution, the used mass is ``u p`` with a
number `u`:

    u_0 = 0,   u_{k+1} = u_k + Z(u_k),   Z(u) = sum_i (q_i - u p_i)+,
    P(target in list) = sum_i min(q_i, u_K p_i).

SpecTr has the same acceptance at another `u`. Verification and exact acceptance are `O(K N)`. The
drafter must supply its distribution, and another drafter gives another text.

**Kernel** for the planner. For an emitted token `y` it is a polynomial in `z`, whose power counts
drafts that equal `y`: an accepted draft multiplies by `z`, and every later draft, which is not
tested, by ``1 - p_y + p_y z``. Draft ``k + 1`` is tested, is `y` and is accepted with probability
``min(Z(u_k) p_y, q_y - u_k p_y)``, and a rejected draft is never `y`, because the residual cannot
emit it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from gls_jax import races
from gls_jax.exact.counting import add_bernoulli, with_empty_row
from gls_jax.loops import varying_like
from gls_jax.rejection import recursive_rejection, residual
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
from gls_jax.schemes.function_types import ExactAcceptance, TokenVerification, Trials
from gls_jax.schemes.gls import propose  # K independent races
from gls_jax.schemes.scheme import Scheme

__all__ = ["SCHEME", "acceptance", "accepted", "propose", "verify"]


def verify(
    key: PRNGKeyArray,
    drafts: Drafts,
    log_p: DraftLogProbs,
    log_q: Vector,
    active: Active,
) -> Token:
    token, _ = recursive_rejection(key, drafts, log_p, log_q, active)
    return token


def accepted(
    key: PRNGKeyArray,
    log_p: DraftLogProbs,
    log_q: Vector,
    num_drafts: int,
) -> AcceptedByLength:
    drafts = propose(key, log_p, num_drafts)
    all_active = jnp.ones(num_drafts, bool)
    _, is_accepted = recursive_rejection(key, drafts, log_p, log_q, all_active)
    return is_accepted


def acceptance(
    log_p: DraftLogProbs,
    log_q: Vector,
    num_drafts: tuple[int, ...],
) -> Acceptances:
    p = races.weights(log_p)
    q = races.weights(log_q)

    def reject(used, k):
        _, mass = residual(q, used)
        used = used + mass * (p if p.ndim == 1 else p[k])
        return used, jnp.sum(jnp.minimum(q, used))

    start = varying_like(jnp.zeros_like(q), p, q)
    _, accepted_by_length = jax.lax.scan(reject, start, jnp.arange(max(num_drafts)))
    return accepted_by_length[jnp.asarray(num_drafts) - 1]


def kernel(log_p: Vector, log_q: Vector, num_drafts: int) -> Kernel:
    p = races.weights(log_p)
    q = races.weights(log_q)
    # Category 0 is the emitted token y. Coefficients of the polynomial in z, given y, of the cases
    # in which a draft was accepted.
    z = jnp.zeros(num_drafts + 1, p.dtype).at[1].set(1)
    accepted_counts = 0 * z
    used = jnp.zeros((), p.dtype)
    rows = []
    for _ in range(num_drafts):
        left, mass = residual(q, used * p)
        not_tested = add_bernoulli(accepted_counts, p[0])
        accepted_now = jnp.minimum(mass * p[0], left[0]) / q[0]
        accepted_counts = not_tested + accepted_now * z
        # In the other cases y comes from the residual, and no draft equals it.
        rows.append(accepted_counts.at[0].add(1 - jnp.sum(accepted_counts)))
        used = used + mass
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
