"""Weighted MinHash drafting: one draft, shared darts, no communication.

Source: Daliri, Musco, Suresh 2024, arXiv 2408.07978.

Darts fall uniformly on categories x [0, 1]. The draft is the first category with a dart under `p`,
the token the first one with a dart under `q`. The first dart under either curve lies under both
with probability ``(1 - TV) / (1 + TV)``, the most that a scheme without communication can guarantee
for its worst pair. If it lies under one curve only, on category `j`, the other side's later dart
hits `j` too with probability ``m_j = min(p_j, q_j)``, so that

    P(target = draft) = sum_j m_j (1 + |p_j - q_j|) / (1 + TV).

The token is a function of key and `q` alone. The drafter only has to throw the same darts: neither
its distribution nor its draft is read. A token takes `N` darts on average for each party, where a
race draws `N` exponentials.

**Kernel** for the planner. Given that `y` is emitted, it is the draft with probability
``min(1, p_y / q_y) (1 + |p_y - q_y|) / (1 + TV)``.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from gls_jax import bounds, races
from gls_jax.couplings import first_dart, minhash_match
from gls_jax.exact.counting import single_draft_kernel
from gls_jax.schemes.array_types import (
    Acceptances,
    Active,
    DraftLogProbs,
    Drafts,
    Kernel,
    Scalar,
    Token,
    Vector,
)
from gls_jax.schemes.function_types import ExactAcceptance, TokenVerification
from gls_jax.schemes.scheme import Scheme
from gls_jax.typing import LogProbs

__all__ = ["SCHEME", "acceptance", "propose", "verify"]


def propose(key: PRNGKeyArray, log_p: DraftLogProbs, num_drafts: int) -> Drafts:
    del num_drafts  # one
    return first_dart(key, log_p.reshape(-1))[None]


def verify(
    key: PRNGKeyArray,
    drafts: Drafts,
    log_p: DraftLogProbs,
    log_q: Vector,
    active: Active,
) -> Token:
    del drafts, log_p, active
    return first_dart(key, log_q)


def acceptance(
    log_p: DraftLogProbs,
    log_q: Vector,
    num_drafts: tuple[int, ...],
) -> Acceptances:
    match = minhash_match(log_p.reshape(-1), log_q)
    return match[None].repeat(len(num_drafts))


def bound(log_p: LogProbs, log_q: LogProbs, num_drafts: int) -> Scalar:
    del num_drafts  # one
    row = log_p[0] if np.ndim(log_p) == 2 else log_p  # type: ignore
    return bounds.communication_free(row, log_q)


def kernel(log_p: Vector, log_q: Vector, num_drafts: int) -> Kernel:
    del num_drafts  # one
    p = races.weights(log_p)
    q = races.weights(log_q)
    total_variation = jnp.sum(jnp.abs(p - q)) / 2
    difference = jnp.abs(p[0] - q[0])
    match = jnp.minimum(1, p[0] / q[0]) * (1 + difference) / (1 + total_variation)
    return single_draft_kernel(match)


SCHEME = Scheme(
    name="minhash",
    invariance="strong",
    max_drafts=1,
    needs_draft_probs=False,
    diverse=True,
    ranked=False,
    propose_fn=propose,
    verification=TokenVerification(verify),
    exact=ExactAcceptance(acceptance, bound=bound, kernel=kernel, tails_are_bounds=True),
)
