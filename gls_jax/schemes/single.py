"""Speculative sampling with one draft (Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023,
arXiv 2302.01318).

Accept the draft `x` with probability ``min(1, q_x / p_x)``, otherwise emit a sample of the residual
``(q - p)+ / TV``. Acceptance is ``1 - TV``, the most any scheme reaches with one draft; the price
is that `p` must be known to the verifier and that another drafter gives another text. SpecInfer
with `K = 1`.
"""

from __future__ import annotations

import dataclasses

from gls_jax.schemes import specinfer

__all__ = ["SCHEME"]

SCHEME = dataclasses.replace(
    specinfer.SCHEME,
    name="single",
    max_drafts=1,
    summary="one draft, kept with probability min(1, q/p), else a sample of the residual",
)
