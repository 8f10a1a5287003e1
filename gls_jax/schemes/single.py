"""Speculative sampling with one draft.

Sources: Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318.

Accept the draft `x` with probability ``min(1, q_x / p_x)``, otherwise emit a sample of the residual
``(q - p)+ / TV``. The acceptance is ``1 - TV``, and no scheme with one draft has more. In return
the verifier must know `p`, and another drafter gives another text. This is SpecInfer with `K = 1`.

**Kernel** for the planner. Given that `y` is emitted, it is the draft with probability
``p_y min(1, q_y / p_y) / q_y = min(1, p_y / q_y)``.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from gls_jax.exact.counting import single_draft_kernel
from gls_jax.schemes import specinfer
from gls_jax.schemes.array_types import Kernel, Vector
from gls_jax.schemes.function_types import ExactAcceptance

__all__ = ["SCHEME"]


def kernel(log_p: Vector, log_q: Vector, num_drafts: int) -> Kernel:
    del num_drafts  # one
    ratio = jnp.exp(log_p[0] - log_q[0])
    return single_draft_kernel(jnp.minimum(1, ratio))


SCHEME = dataclasses.replace(
    specinfer.SCHEME,
    name="single",
    max_drafts=1,
    exact=ExactAcceptance(specinfer.acceptance, kernel=kernel, tails_are_bounds=True),
)
