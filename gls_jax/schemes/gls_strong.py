"""GLS with strong drafter invariance (Rowan, Phan, Khisti 2025, section on strong invariance).

The target's minimum runs over all K streams, whether or not their drafts are still active: the
output is then a function of key, context, target and the number K of streams, which a request must
not change on its way. At a position where every draft is active it is GLS; after rejections the
streams that are out of play can win without a match
(:func:`gls_jax.schemes.gls.acceptance_active`), which costs a little acceptance.
"""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import bounds
from gls_jax.schemes import gls
from gls_jax.schemes.scheme import ExactAcceptance, TokenVerification

__all__ = ["SCHEME", "verify"]


def verify(
    key: PRNGKeyArray,
    drafts: Int[Array, " K"],
    log_p: Float[Array, "*k N"],
    log_q: Float[Array, " N"],
    active: Bool[Array, " K"],
) -> Int[Array, ""]:
    del active  # strong invariance: all K streams count, always
    return gls.verify(key, drafts, log_p, log_q, None)


def kernel(
    log_p: Float[Array, " N"], log_q: Float[Array, " N"], num_drafts: int
) -> Float[Array, "J J"]:
    return gls.kernel(log_p, log_q, num_drafts, strong=True)


SCHEME = dataclasses.replace(
    gls.SCHEME,
    name="gls_strong",
    invariance="strong",
    verification=TokenVerification(verify),
    exact=ExactAcceptance(
        gls.acceptance, bound=bounds.list_matching, kernel=kernel, tails_bracket=True
    ),
)
