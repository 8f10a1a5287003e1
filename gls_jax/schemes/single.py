"""Speculative sampling with one draft (Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023,
arXiv 2302.01318).

Accept the draft `x` with probability ``min(1, q_x / p_x)``, otherwise emit a sample of the residual
``(q - p)+ / TV``. Acceptance is ``1 - TV``, the most any scheme reaches with one draft; the price
is that `p` must be known to the verifier and that another drafter gives another text. SpecInfer
with `K = 1`.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from gls_jax.exact.counting import single_draft_kernel
from gls_jax.schemes import specinfer
from gls_jax.schemes.scheme import ExactAcceptance

__all__ = ["SCHEME"]


def kernel(
    log_p: Float[Array, " N"], log_q: Float[Array, " N"], num_drafts: int
) -> Float[Array, "J J"]:
    return single_draft_kernel(jnp.minimum(1, jnp.exp(log_p[0] - log_q[0])))


SCHEME = dataclasses.replace(
    specinfer.SCHEME,
    name="single",
    max_drafts=1,
    exact=ExactAcceptance(specinfer.acceptance, kernel=kernel, tails_bracket=True),
)
