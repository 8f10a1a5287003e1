"""GLS with strong drafter invariance.

Source: Rowan, Phan, Khisti 2025, section on strong invariance.

The target's minimum runs over all K streams, whether or not their drafts are still active. The
output is then a function of key, text, target and the number K of streams, which must stay the same
throughout a request. At a position where every draft is active this is GLS. After rejections a
stream whose draft is not active can win without a match
(:func:`gls_jax.schemes.gls.acceptance_active`), which costs a little acceptance.
"""

from __future__ import annotations

import dataclasses

from jaxtyping import PRNGKeyArray

from gls_jax import bounds
from gls_jax.schemes import gls
from gls_jax.schemes.array_types import Active, DraftLogProbs, Drafts, Kernel, Token, Vector
from gls_jax.schemes.function_types import ExactAcceptance, TokenVerification

__all__ = ["SCHEME", "verify"]


def verify(
    key: PRNGKeyArray,
    drafts: Drafts,
    log_p: DraftLogProbs,
    log_q: Vector,
    active: Active,
) -> Token:
    del active  # strong invariance: all K streams count, always
    return gls.verify(key, drafts, log_p, log_q, None)


def kernel(log_p: Vector, log_q: Vector, num_drafts: int) -> Kernel:
    return gls.kernel(log_p, log_q, num_drafts, strong=True)


SCHEME = dataclasses.replace(
    gls.SCHEME,
    name="gls_strong",
    invariance="strong",
    verification=TokenVerification(verify),
    exact=ExactAcceptance(
        gls.acceptance, bound=bounds.list_matching, kernel=kernel, tails_are_bounds=True
    ),
)
